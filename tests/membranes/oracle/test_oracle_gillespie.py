"""Chemical systems in continuous time."""

import math

import numpy as np
import pytest

from echoc.compiler.ir.algebra import Cell, Group, Mode, Rule, Send, System, Target, bag
from echoc.compiler.ir.expression import call, name, number
from echoc.compiler.ir.oracle import StepError, choose, generator, halted, run, start, trace
from echoc.compiler.ir.oracle.gillespie import propensities


def system(objects: dict[str, int], *rules: Rule) -> System:
    group = Group(tuple(range(len(rules))))
    return System("chemical", (Cell("1", None, bag(objects)),), rules, (group,), mode=Mode.GILLESPIE)


def test_propensities_count_distinct_combinations() -> None:
    s = system(
        {"a": 5, "b": 3},
        Rule("1", bag("a"), rate=2.0),
        Rule("1", bag({"a": 2}), rate=2.0),
        Rule("1", bag({"a": 3, "b": 2}), rate=0.5),
        Rule("1", (), bag("a"), rate=7.0),
        Rule("1", bag({"b": 4}), rate=1.0),
    )
    assert {b[0]: p for b, p in propensities(s, start(s)).items()} == {0: 10.0, 1: 20.0, 2: 15.0, 3: 7.0}


def test_a_rate_law_is_evaluated_on_the_counts() -> None:
    law = call("div", call("mul", number(6), name("a")), call("add", number(1), name("b")))
    s = system({"a": 4}, Rule("1", bag("a"), bag("b"), rate=law))
    assert list(propensities(s, start(s)).values()) == [24.0]
    assert list(propensities(s, run(s, 1, 0)).values()) == [9.0]


def test_a_step_is_one_event_and_time_moves_on() -> None:
    s = system({"a": 20}, Rule("1", bag("a"), rate=1.0))
    times = [c.time for c, _ in trace(s, None, 3)]
    assert len(times) == 21 and times[0] == 0 and (np.diff(times) > 0).all()
    assert halted(s, run(s, None, 3))


def test_decay_has_the_mean_and_spread_of_its_law() -> None:
    """The last of 5 independent decays of rate 1 comes after 1 + 1/2 + ... + 1/5 on average."""
    s = system({"a": 5}, Rule("1", bag("a"), rate=1.0))
    found = np.array([run(s, None, seed).time for seed in range(300)])
    mean, variance = sum(1 / k for k in range(1, 6)), sum(1 / k**2 for k in range(1, 6))
    assert abs(found.mean() - mean) < 4 * math.sqrt(variance / 300)


def test_reactions_are_drawn_by_propensity() -> None:
    s = system({"a": 3, "b": 1}, Rule("1", bag("a"), rate=1.0), Rule("1", bag("b"), rate=9.0))
    share = np.mean([choose(s, start(s), generator(seed, 0))[0].rule for seed in range(800)])
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 800)


def test_products_cross_membranes() -> None:
    cells = (Cell("1", None, bag({"a": 6})), Cell("2", 0))
    rules = (Rule("1", bag("a"), send=(Send(Target.IN, bag("b"), "2"),), rate=1.0),)
    end = run(System("chemical", cells, rules, (Group((0,)),), mode=Mode.GILLESPIE), None, 0)
    assert [dict(c.objects) for c in end.cells.values()] == [{}, {"b": 6}]


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        (Rule("1", bag("a")), "has no rate"),
        (Rule("1", bag("a"), rate=-1.0), "propensity -4.0"),
        (Rule("1", bag("a"), rate=call("log", number(-1))), "propensity nan"),
    ],
)
def test_rates_that_are_none(rule: Rule, wrong: str) -> None:
    with pytest.raises(StepError, match=wrong):
        run(system({"a": 4}, rule), 1, 0)
