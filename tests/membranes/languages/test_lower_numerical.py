"""Numerical P systems as tensor programs: interpreter, numpy reference and compiled code agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import echoc
from echoc.compiler.api import compile_program
from echoc.compiler.ir import Program
from echoc.compiler.ir.algebra import Where
from echoc.compiler.ir.expression import Expression, call, name, number
from echoc.compiler.ir.interpret import run_rule
from echoc.errors import CompileError
from echoc.membranes import numerical_steps as numerical
from echoc.membranes.lower.numerical import lower
from echoc.membranes.numerical import NumericalSystem, Production, Variable
from echoc.membranes.pep import read

STEPS = 12
SOURCES = {
    "gates": """p = { H = {a, b}; structure = [a [b ]b ]a;
        a = { var = {x, y}; E = {e}; pr = {x - y/3 [e -> ] 1|x + 2|u}; pr = {x^3/50 - 1 -> 1|y + 1|e}; var0 = (3, 0.5);
              E0 = (2); };
        b = { var = {u, w}; pr = {u * 0.25 + w [y -> ] 1|w + 1|x}; var0 = (1, ~2); }; }""",
    "functions": """p = { m = { var = {x, y, z};
        pr = {sin(x) + cos(y)*0.5 + tan(x/9) + atan2(y, x)/9 + (x < y) - (z >= 0) * 0.1 -> 1|x + 3|y};
        pr = {sqrt(abs(z)) + log(2 + z*z) - exp(~abs(z)) + min(z, 1) + max(z, ~1) + floor(z) - ceil(z) + tanh(z)
              + abs(z)^1.5/9 [x -> ] 1|z};
        var0 = (0.3, 1, ~0.7); }; }""",
    "alone": "p = { m = { var = {x}; pr = {x * 2 -> 1|x}; var0 = (1.5); }; }",
    "still": "p = { m = { var = {x, y}; var0 = (1.5, ~0.25); }; }",
}


def wanted(system: NumericalSystem) -> list[list[float]]:
    return [list(v.values.values()) for v in numerical.trace(system, STEPS)][1:]


def stepped(program: Program) -> list[list[float]]:
    """By the numpy meanings of the op table."""
    skin = program.skin
    states = {s.name: np.zeros(s.type.shape, s.type.dtype.numpy) for s in skin.states}
    found = []
    for _ in range(STEPS):
        outputs, states = run_rule(skin, skin.rules[0], {}, None, states)
        found.append(outputs["values"].tolist())
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_the_reference_device_agrees_with_the_interpreter(source: str) -> None:
    system = read(source, text=SOURCES[source])
    np.testing.assert_allclose(stepped(lower(system)), wanted(system), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("source", ["gates", "functions"])
def test_compiled_code_agrees_with_the_interpreter(source: str, tmp_path: Path) -> None:
    system = read(source, text=SOURCES[source])
    artifact = compile_program(lower(system), {}, weights_dtype="f32", output=tmp_path / "p.echo")
    program = echoc.load(artifact)
    found = [program.step({})["values"].tolist() for _ in range(STEPS)]
    np.testing.assert_allclose(found, wanted(system), rtol=1e-9, atol=1e-10)
    assert program.step({})["values"].dtype == np.float64


def test_small_powers_are_exact_products() -> None:
    system = read("cube", text="p = { m = { var = {x, y}; pr = {x^5 - x^0 -> 1|y}; var0 = (7); }; }")
    program = lower(system)
    assert all(node.op != "pow" for node in program.skin.rules[0].order)
    assert stepped(program)[0] == [0.0, 7.0**5 - 1]


def only(function: Expression, shares: tuple[tuple[float, str], ...] = ((1.0, "x"),)) -> NumericalSystem:
    program = Production("m", function, shares, None, Where("p.pep", 3, 4))
    return NumericalSystem((("m", None),), (Variable("x", "m", 1.0),), (program,))


def deep() -> Expression:
    result = name("x")
    for _ in range(5000):
        result = call("neg", result)
    return result


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (NumericalSystem((("m", None),), (), ()), "without variables"),
        (only(name("z")), "p.pep:3:4: program 0 uses 'z'"),
        (only(number(1), ((1.0, "q"),)), "uses 'q'"),
        (only(number(1), ((0.0, "x"),)), "add up to 0"),
        (only(deep()), "nested more than 400"),
        (
            read("p", text="p = { m = { var = {x}; pr = {1 -> 1|x}; pr = {2 -> 1|x}; }; }"),
            "one of 2 programs at random",
        ),
    ],
)
def test_systems_that_have_no_such_step(system: NumericalSystem, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        lower(system)
