"""`compile`: a membrane system goes in, from a file or from a builder, one artifact comes out."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoc.compiler.bundle import Progress
from echoc.compiler.ir.algebra import System
from echoc.compiler.ir.systems import program_of
from echoc.errors import CompileError
from echoc.membranes.compound import Membrane as Compound
from echoc.membranes.compound import compile as compile_topology
from echoc.membranes.compound import is_topology
from echoc.membranes.numerical import NumericalSystem
from echoc.membranes.reading import READERS, read

if TYPE_CHECKING:
    from echoc.runtime.artifact import Artifact


def takes(source: Any) -> bool:
    """Whether something is a membrane system: a system, a topology, or a file with the extension of one of them."""
    if isinstance(source, System | NumericalSystem | Compound):
        return True
    return isinstance(source, str | os.PathLike) and (
        Path(os.fspath(source)).suffix.lower() in READERS or is_topology(source)
    )


def compile(
    source: System | NumericalSystem | Compound | str | os.PathLike[str],
    *,
    target: str = "cpu",
    output: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **reading: Any,
) -> Artifact:
    """Compile a membrane system.

    Args:
        source: a system, a topology, or a file: .pli, .kpl, .pep, .xml or .sbml, or .toml (a topology).
        target: `cpu`, or `cpu:LEVEL` with LEVEL `native` or a -march name from x86-64-v3 up; `cuda:LEVEL` or
            `rocm:LEVEL` as for models.
        output: the artifact's path; default: the file's or the system's name with `.echo` in the working folder.
        progress: called as progress(stage, done, total).
        reading: options of the language, such as `include_paths`, `parameters`, `seed` and `allow_substochastic` of
            P-Lingua.
    Returns: the opened artifact; `echoc.load` runs it.
    Raises: CompileError.
    """
    from echoc.compiler.systems import compile_system

    if isinstance(source, Compound) or (not isinstance(source, System | NumericalSystem) and is_topology(source)):
        if reading:
            raise CompileError(f"a topology has no option {sorted(reading)[0]!r} of reading; its file says everything")
        return compile_topology(source, target=target, output=output, progress=progress)
    report = progress or (lambda stage, done, total: None)
    origin: dict[str, Any] = {}
    if isinstance(source, System | NumericalSystem):
        if reading:
            raise CompileError(f"a system has been read already; {', '.join(sorted(reading))} belongs to a file")
        system, stem = source, source.name or "system"
    else:
        path = Path(os.fspath(source))
        report("read", 0, 1)
        system, stem = read(path, **reading), path.stem
        report("read", 1, 1)
        origin["file"] = path.name
    where = Path(output) if output is not None else Path(f"{stem}.echo")
    if isinstance(system, NumericalSystem):
        return _numerical(system, target, where, progress, origin)
    with _uncollected():
        return compile_system(program_of(system), target=target, output=where, source=origin, progress=progress)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of cycles, which would walk the millions of objects of a large program again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _numerical(
    system: NumericalSystem, target: str, output: Path, progress: Progress | None, origin: dict[str, Any]
) -> Artifact:
    from echoc.compiler.api import compile_program
    from echoc.membranes.lower.numerical import lower

    origin |= {
        "kind": "numerical",
        "name": system.name,
        "membranes": [list(m) for m in system.membranes],
        "variables": [[v.name, v.membrane, v.value] for v in system.variables],
    }
    return compile_program(lower(system), {}, target=target, output=output, progress=progress, source=origin)
