"""Topologies of small P systems, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from echoc.membranes.compound import compile, read
from echoc.runtime.compound import CompoundProgram

Compiled = Callable[[str], CompoundProgram]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The program of a topology's text; each text is compiled once."""
    folder = tmp_path_factory.mktemp("compound")
    made: dict[str, Path] = {}

    def program(text: str) -> CompoundProgram:
        if text not in made:
            made[text] = folder / f"{len(made)}.echo"
            compile(read(folder / "topology.toml", text=text), output=made[text])
        return CompoundProgram(made[text])

    return program
