"""Numerical P systems as tensor programs: interpreter, numpy reference and compiled code agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_systems import random_numerical

import echoc
from echoc.compiler.api import compile_program
from echoc.compiler.ir import Program
from echoc.compiler.ir.algebra import Where
from echoc.compiler.ir.expression import Expression, call, name, number
from echoc.compiler.ir.interpret import run_rule
from echoc.errors import CompileError, RequestError
from echoc.membranes import numerical_steps as numerical
from echoc.membranes.lower.numerical import lower
from echoc.membranes.numerical import NumericalSystem, Production, Variable
from echoc.membranes.pep import read
from echoc.runtime.program import Program as LoadedProgram

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
    "choices": """p = { H = {a, b, c}; structure = [a [b ]b [c ]c ]a;
        a = { var = {x, y}; pr = {x/2 + 1 -> 1|y + 1|u}; pr = {y/3 -> 1|x}; pr = {1 -> 1|x + 2|w}; var0 = (1, 2); };
        b = { var = {u}; E = {e}; pr = {u -> 1|x}; pr = {u/2 - x [e -> ] 1|u}; pr = {2 -> 1|u}; E0 = (1); };
        c = { var = {w}; pr = {w * 0.75 -> 1|w + 1|e}; }; }""",
}
CHOOSING = ["choices", *range(0, 60, 3)]  # a source, or the seed of a random system


def wanted(system: NumericalSystem, seed: int = 0, run: int = 0) -> list[list[float]]:
    return [list(v.values.values()) for v in numerical.trace(system, STEPS, seed, run)][1:]


def stepped(program: Program, seed: int = 0, run: int = 0) -> list[list[float]]:
    """By the numpy meanings of the op table."""
    skin = program.skin
    states = {s.name: np.zeros(s.type.shape, s.type.dtype.numpy) for s in skin.states}
    numbers = {"seed": np.array(seed), "run": np.array(run)}
    given = {port.name: numbers[port.name] for port in skin.ports if port.direction == "in"}
    found = []
    for _ in range(STEPS):
        outputs, states = run_rule(skin, skin.rules[0], given, None, states)
        found.append(outputs["values"].tolist())
    return found


def choosing(which: str | int) -> NumericalSystem:
    if isinstance(which, str):
        return read(which, text=SOURCES[which])
    return replace(random_numerical(which), one_program=True, signed=which % 2 == 0)


def loaded(system: NumericalSystem, folder: Path) -> LoadedProgram:
    program = echoc.load(compile_program(lower(system), {}, weights_dtype="f32", output=folder / "p.echo"))
    assert isinstance(program, LoadedProgram)
    return program


@pytest.mark.parametrize("which", CHOOSING)
def test_choices_are_those_of_the_interpreter(which: str | int) -> None:
    system = choosing(which)
    program = lower(system)
    for seed, run in ((0, 0), (1, 0), (0, 1), (-1, 2**32 - 1), (2**63 - 1, 5)):
        np.testing.assert_allclose(stepped(program, seed, run), wanted(system, seed, run), rtol=1e-11, atol=1e-12)


def test_some_random_systems_choose() -> None:
    assert sum(bool(choosing(which).choices()) for which in CHOOSING) > 5


def test_compiled_choices_are_those_of_the_interpreter(tmp_path: Path) -> None:
    system = choosing("choices")
    program = loaded(system, tmp_path)
    ends = set()
    for seed in (*range(40), 2**63, 2**64 - 1):
        for run in (0, 1, 2**31):
            instance = program.create(seed=np.array(seed, np.uint64).view(np.int64), run=run)
            found = [instance.step()["values"].tolist() for _ in range(STEPS)]
            np.testing.assert_allclose(found, wanted(system, seed, run), rtol=1e-12, atol=1e-13)
            ends.add(tuple(found[-1]))
    assert len(ends) == 42 * 3


def test_instances_and_forks_go_their_own_ways(tmp_path: Path) -> None:
    system = choosing("choices")
    program = loaded(system, tmp_path)
    first, second = program.create(seed=1), program.create(seed=2, run=3)
    own, found = [], ([], [])
    for i in range(STEPS):
        found[0].append(first.step({"run": 0})["values"])
        own.append(program.step({"seed": 5, "run": 1})["values"])
        found[1].append(second.step()["values"])
        if i == 4:
            fork = second.fork()
    np.testing.assert_allclose(found[0], wanted(system, 1), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found[1], wanted(system, 2, 3), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(own, wanted(system, 5, 1), rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal([fork.step()["values"] for _ in range(5, STEPS)], found[1][5:])
    with pytest.raises(RequestError, match="no input port 'sead'; it has run, seed"):
        program.create(sead=1)


def test_draws_are_uniform_and_membranes_draw_apart(tmp_path: Path) -> None:
    """Over seeds, over steps of one seed, and over pairs of two membranes: each program as often as the others."""
    text = """p = { H = {a, b}; structure = [a [b ]b ]a;
        a = { var = {x, y, z}; pr = {1 -> 1|x}; pr = {1 -> 1|y}; pr = {1 -> 1|z}; };
        b = { var = {u, v, w}; pr = {1 -> 1|u}; pr = {1 -> 1|v}; pr = {1 -> 1|w}; }; }"""
    program = loaded(read("p", text=text), tmp_path)

    def pairs(numbers: Iterable[tuple[int, int]], steps: int) -> np.ndarray:
        found = np.zeros((3, 3))
        for seed, run in numbers:
            instance = program.create(seed=seed, run=run)
            before = np.zeros(6)
            for _ in range(steps):
                values = instance.step()["values"]
                a, b = np.flatnonzero(values - before)
                found[a, b - 3] += 1
                before = values
        return found

    for counts in (
        pairs(((seed, 0) for seed in range(1800)), 1),
        pairs(((5, run) for run in range(1800)), 1),
        pairs([(7, 0)], 1800),
    ):
        assert counts.sum() == 1800
        assert ((counts - 200) ** 2 / 200).sum() < 26.1  # 0.999 quantile of chi-square with 8 degrees


def test_only_a_system_that_chooses_takes_a_seed(tmp_path: Path) -> None:
    assert [p.name for p in lower(choosing("gates")).skin.ports] == ["values"]
    program = loaded(choosing("choices"), tmp_path)
    with pytest.raises(RequestError, match="lacks its input seed"):
        program.create(run=0).step()


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


def test_long_sums_and_high_formulas_compile(tmp_path: Path) -> None:
    """500 programs that give to x, and a function that is nested 350 deep."""
    high = name("x")
    for _ in range(350):
        high = call("add", high, number(0.5)) if high.op == "neg" else call("neg", high)
    programs = [Production("m", number(k), ((1.0, "x"), (2.0, "y"))) for k in range(1, 501)]
    programs.append(Production("m", high, ((1.0, "z"),)))
    system = NumericalSystem((("m", None),), tuple(Variable(v, "m", 1.0) for v in "xyz"), tuple(programs))
    program = loaded(system, tmp_path)
    found = [program.step({})["values"].tolist() for _ in range(2)]
    np.testing.assert_allclose(found, wanted(system)[:2], rtol=1e-12)


def test_parts_that_a_formula_repeats_are_computed_once() -> None:
    """Written out, it has 3^20 parts."""
    function = name("x")
    for _ in range(20):
        function = call("add", function, call("mul", function, function))
    order = lower(only(function)).skin.rules[0].order
    assert sum(node.op == "mul" for node in order) == 21  # one for the share


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
        (replace(only(number(1)), membranes=(("k", None),)), "program 0 is of membrane m"),
    ],
)
def test_systems_that_have_no_such_step(system: NumericalSystem, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        lower(system)
