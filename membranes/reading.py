"""Reading a membrane system from a file, whatever language it is in."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from echoc.compiler.ir.algebra import System
from echoc.errors import CompileError
from echoc.membranes.numerical import NumericalSystem

READERS = {
    ".pli": ("echoc.membranes.plingua", "P-Lingua"),
    ".kpl": ("echoc.membranes.kplingua", "kP-Lingua"),
    ".pep": ("echoc.membranes.pep", "PeP"),
    ".xml": ("echoc.membranes.sbml", "SBML"),
    ".sbml": ("echoc.membranes.sbml", "SBML"),
}


def read(path: str | os.PathLike[str], **options: Any) -> System | NumericalSystem:
    """The system in a file, by the extension of its name: .pli, .kpl, .pep, .xml or .sbml.

    options: those of the language's own `read`, such as `text`.
    Raises CompileError for another extension, for an option that the language does not have, and as its `read` does.
    """
    suffix = Path(os.fspath(path)).suffix.lower()
    if suffix not in READERS:
        known = ", ".join(f"{extension} ({language})" for extension, (_, language) in READERS.items())
        raise CompileError(f"{os.fspath(path)!r} ends in {suffix or 'nothing'}; wanted one of {known}")
    module, language = READERS[suffix]
    reader: Callable[..., System | NumericalSystem] = import_module(module).read
    allowed = reader.__kwdefaults__ or {}
    for option in options:
        if option not in allowed:
            known = ", ".join(allowed) or "none"
            raise CompileError(f"{language} has no option {option!r} of reading; it has {known}")
    return reader(path, **options)
