"""The list of passes: names, verification between them, and what ECHOC_DUMP writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from device import interpret, port, program_of

from echoc.compiler.ir import DType, Program, make, symbol
from echoc.compiler.ir.text import parse, show
from echoc.compiler.pipeline import language_model_passes, program_passes, run_passes
from echoc.errors import IRError

T = symbol("T")


def program() -> Program:
    weight = make("weight", name="w", shape=(3,), dtype="f32")
    doubled = make("mul", make("neg", make("neg", weight)), make("const", value=2.0, dtype="f32"))
    return program_of({"y": make("add", port("x", T, 3), make("exp", doubled))}, {"T": (1, 8)})


def test_dumps_say_what_each_pass_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new" / "dump"
    monkeypatch.setenv("ECHOC_DUMP", str(folder))
    before = program()
    after = run_passes(before, list(program_passes()))
    names = ["input", *(p.name for p in program_passes())]
    files = sorted(folder.iterdir())
    assert [f.name for f in files] == [f"{i:02d}_{n}.eir" for i, n in enumerate(names)]
    texts = [f.read_text() for f in files]
    assert texts[0] == show(before)
    last = texts[0]
    changed = 0
    for name, text in zip(names[1:], texts[1:], strict=True):
        if "(unchanged)" in text:
            assert text == f"(unchanged) {name}\n"
        else:
            parse(text)
            assert text != last
            last = text
            changed += 1
    assert last == show(after)
    assert 0 < changed < len(program_passes())


def test_without_the_variable_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECHOC_DUMP", raising=False)
    monkeypatch.chdir(tmp_path)
    run_passes(program(), list(program_passes()))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ECHOC_DUMP", str(tmp_path / "file"))
    with pytest.raises(IRError, match="ECHOC_DUMP="):
        run_passes(program(), list(program_passes()))


@dataclass(frozen=True)
class Spoil:
    """Declares the out port with another type than it gets."""

    name: str = "spoil"

    def run(self, program: Program) -> Program:
        ports = tuple(
            replace(p, type=replace(p.type, dtype=DType.F64)) if p.direction == "out" else p for p in program.skin.ports
        )
        return replace(program, skin=replace(program.skin, ports=ports))


def test_a_pass_that_breaks_the_program_is_named() -> None:
    with pytest.raises(IRError, match="pass spoil: rule @step"):
        run_passes(program(), [Spoil()])


def test_names_of_passes_are_words() -> None:
    for step in language_model_passes(DType.F32):
        assert step.name.isidentifier()


def test_folding_computes_weights_once() -> None:
    after = run_passes(program(), list(program_passes()))
    step = next(r for r in after.skin.rules if r.name == "step")
    assert sorted({n.op for n in step.order}) == ["add", "port", "weight"]
    x, w = np.ones((2, 3), np.float32), np.arange(3, dtype=np.float32)
    got = interpret(after, {"x": x}, {"w": w})
    np.testing.assert_allclose(got["y"], x + np.exp(2 * w), rtol=1e-6)
