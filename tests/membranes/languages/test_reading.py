"""Reading by extension."""

from __future__ import annotations

from pathlib import Path

import pytest

from echoc.compiler.ir.algebra import System
from echoc.errors import CompileError
from echoc.membranes.numerical import NumericalSystem
from echoc.membranes.reading import read
from echoc.membranes.source import SourceError


def test_every_language(tmp_path: Path) -> None:
    sources = {
        "a.kpl": "type A { a -> b . }\nx {a} (A) .",
        "b.PEP": "p = { m = { var = {x}; pr = {x -> 1|x}; }; }",
        "c.pli": "@model<transition> def main() { @mu = []'1; @ms(1) = a; [a --> b]'1; }",
    }
    found = {}
    for file_name, text in sources.items():
        (tmp_path / file_name).write_text(text)
        found[file_name] = read(tmp_path / file_name)
    assert isinstance(found["b.PEP"], NumericalSystem)
    for file_name in ("a.kpl", "c.pli"):
        system = found[file_name]
        assert isinstance(system, System) and system.objects == ("a", "b")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"ends in .txt; wanted one of .pli \(P-Lingua\), .kpl"):
        read("x.txt")
    with pytest.raises(CompileError, match="ends in nothing"):
        read("x")
    with pytest.raises(CompileError, match="kP-Lingua has no option 'seed' of reading; it has text"):
        read("x.kpl", seed=1)
    path = tmp_path / "latin.kpl"
    path.write_bytes("type A { a -> b . } // \xe9".encode("latin-1"))
    with pytest.raises(SourceError, match=r"latin.kpl:1:24: the byte 0xe9 is not UTF-8 text"):
        read(path)
    with pytest.raises(CompileError, match="cannot read"):
        read(tmp_path / "absent.sbml")
    with pytest.raises(CompileError, match="cannot read"):
        read(tmp_path.with_suffix(".kpl"))
