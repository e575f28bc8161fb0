"""Numerical P systems."""

from dataclasses import replace

import pytest
from random_systems import random_numerical

from echoc.compiler.ir.expression import Expression, call, name, number
from echoc.compiler.ir.oracle import StepError
from echoc.membranes import numerical_steps as numerical
from echoc.membranes.numerical import NumericalSystem, Production, Variable


def mul(a: float, x: str) -> Expression:
    return call("mul", number(a), name(x))


def system(values: dict[str, float], *programs: Production, one: bool = False) -> NumericalSystem:
    return NumericalSystem(
        (("m", None),), tuple(Variable(k, "m", v) for k, v in values.items()), programs, one_program=one
    )


def test_the_result_is_dealt_out_by_shares_and_variables_are_consumed() -> None:
    s = system({"x": 3, "y": 1}, Production("m", mul(4, "x"), ((1, "x"), (3, "y"))))
    assert numerical.run(s, 1).values == {"x": 3.0, "y": 10.0}


def test_all_programs_read_the_values_at_the_start() -> None:
    s = system({"x": 1, "y": 10}, Production("m", name("x"), ((1, "y"),)), Production("m", name("y"), ((1, "x"),)))
    assert [tuple(c.values.values()) for c in numerical.trace(s, 3)] == [(1, 10), (10, 1), (1, 10), (10, 1)]


def test_a_variable_of_no_production_function_accumulates() -> None:
    s = system({"x": 2, "sum": 1}, Production("m", mul(2, "x"), ((1, "x"), (1, "sum"))))
    assert numerical.run(s, 3).values == {"x": 2.0, "sum": 7.0}


@pytest.mark.parametrize(("enzyme", "runs"), [(3.0, True), (2.0, False), (-5.0, False)])
def test_an_enzyme_must_exceed_the_least_of_the_variables(enzyme: float, runs: bool) -> None:
    function = call("add", name("x"), name("y"))
    s = system({"x": -2, "y": 7, "e": enzyme}, Production("m", function, ((1, "y"),), enzyme="e"))
    expected = {"x": 0.0, "y": 5.0, "e": enzyme} if runs else {"x": -2.0, "y": 7.0, "e": enzyme}
    assert numerical.run(s, 1).values == expected
    assert numerical.active(replace(s, signed=True), numerical.start(s)) == ([0] if enzyme > -2 else [])


def test_one_program_of_a_membrane_is_drawn() -> None:
    programs = [Production("m", number(k), ((1, "x"),)) for k in (1, 2)]
    found = [numerical.run(system({"x": 0}, *programs, one=True), 1, seed).values["x"] for seed in range(200)]
    assert set(found) == {1.0, 2.0} and 70 < found.count(1.0) < 130
    again = [numerical.run(system({"x": 0}, *programs, one=True), 1, 4, run).values["x"] for run in range(200)]
    assert again != found and 70 < again.count(1.0) < 130
    assert numerical.run(system({"x": 0}, *programs), 1).values == {"x": 3.0}


def test_shares_that_add_up_to_nothing_are_an_error() -> None:
    with pytest.raises(StepError, match="add up to 0"):
        numerical.run(system({"x": 1}, Production("m", name("x"), ((1, "x"), (-1, "x")))), 1)


def test_random_systems_conserve_what_is_produced() -> None:
    """What is there after a step is what was not consumed and what was produced."""
    ran = 0
    for seed in range(40):
        s = random_numerical(seed)
        before, after = list(numerical.trace(s, 1, seed))
        chosen = numerical.choose(s, before, seed)
        gone = {v for i in chosen for v in numerical.variables(s.programs[i].function)}
        made = sum(numerical.evaluate(s.programs[i].function, before.values) for i in chosen)
        kept = sum(v for k, v in before.values.items() if k not in gone)
        assert sum(after.values.values()) == pytest.approx(kept + made)
        ran += bool(chosen)
    assert ran > 30
