"""Sound programs that no kernels can be made for, and bad options: refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from device import port, program_of

from echoc.compiler.api import compile_program
from echoc.compiler.ir import Membrane, Port, Program, Rule, TensorType, make, symbol
from echoc.errors import CompileError

T = symbol("T")


def good() -> Program:
    return program_of({"y": make("neg", port("x", T))}, {"T": (1, 8)})


def wide_port() -> Program:
    return program_of({"y": make("reshape", port("x", T, 3), shape=(T * 3,))}, {"T": (1, 8)})


def nothing_given() -> Program:
    program = good()
    ports = (*program.skin.ports, Port("z", "out", TensorType((T,), program.skin.ports[0].type.dtype)))
    return replace(program, skin=replace(program.skin, ports=ports))


def two_rules() -> Program:
    program = good()
    return replace(program, skin=replace(program.skin, rules=(*program.skin.rules, Rule("other", ()))))


def with_child() -> Program:
    program = good()
    return replace(program, skin=replace(program.skin, children=(Membrane("inner"),)))


def no_weight() -> Program:
    return program_of({"y": make("add", port("x", 3), make("weight", name="w", shape=(3,), dtype="f32"))})


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (wide_port, {}, r"port y of membrane skin is f32\[3\*T\]"),
        (nothing_given, {}, "gives nothing to the out port 'z'"),
        (two_rules, {}, "has 2 rules"),
        (with_child, {}, "1 children"),
        (no_weight, {}, "the weight 'w' has no value"),
        (good, {"weights_dtype": "int3"}, "unknown weights dtype 'int3'"),
        (good, {"group": 33}, "unknown quantisation group 33"),
        (good, {"target": "abacus"}, "unknown target 'abacus'"),
    ],
)
def test_refused(build: Callable[[], Program], options: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=words):
        compile_program(build(), {}, output=tmp_path / "x.echo", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([1.0, np.nan, 2.0], np.float32), r"weight w holds nan at \[1\]"),
        (np.zeros((2, 3), np.float32), r"weight w has shape \[2, 3\]"),
    ],
)
def test_bad_weights_leave_nothing_behind(value: np.ndarray[tuple[int, ...], np.dtype[np.float32]], words: str,
                                          tmp_path: Path) -> None:  # fmt: skip
    with pytest.raises(CompileError, match=words):
        compile_program(no_weight(), {"w": value}, output=tmp_path / "x.echo")
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="does not exist"):
        compile_program(good(), {}, output=tmp_path / "no" / "x.echo")
