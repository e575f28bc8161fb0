"""Population dynamics: distribution over consistent blocks."""

import numpy as np
import pytest

from echoc.compiler.ir.algebra import Cell, Group, Inner, Mode, Result, Rule, System, bag
from echoc.compiler.ir.oracle import check, choose, generator, run, start


def system(objects: dict[str, int], *rules: Rule, around: dict[str, int] | None = None) -> System:
    """One environment e with membrane 1 inside."""
    cells = (Cell("0"), Cell("e", 0, bag(around or {})), Cell("1", 1, bag(objects)))
    return System("pdp", cells, rules, (Group(tuple(range(len(rules)))),), mode=Mode.DCBA)


def rule(take: dict[str, int], make: dict[str, int], p: float | None = None, after: int = 0, around: str = "") -> Rule:
    inner = Inner("1", 0, bag(take), (Result("1", after, bag(make)),))
    return Rule(None, bag(around), inner=(inner,), probability=p)


def inside(s: System, seed: int) -> dict[str, int]:
    return dict(run(s, 1, seed).cells[2].objects)


def test_a_block_deals_its_applications_out_by_probability() -> None:
    s = system({"a": 1000}, rule({"a": 1}, {"x": 1}, 0.2), rule({"a": 1}, {"y": 1}, 0.3), rule({"a": 1}, {"z": 1}, 0.5))
    found = np.array([[inside(s, seed).get(o, 0) for o in "xyz"] for seed in range(200)])
    assert (found.sum(axis=1) == 1000).all()
    expected, sd = np.array([200, 300, 500]), np.sqrt([160, 210, 250])
    assert (abs(found.mean(axis=0) - expected) < 4 * sd / np.sqrt(200)).all()
    assert (abs(found.std(axis=0) / sd - 1) < 4 / np.sqrt(400)).all()


def test_objects_are_shared_in_proportion_to_the_inverse_squares_of_multiplicities() -> None:
    """Blocks ab -> x and aab -> y over a*90, b*60: row a is 1 + 1/2, row b 1 + 1.

    Round 1: x gets min(90/1.5, 60/2) = 30, y min(90/4/1.5, 60/2) = 15. Left are a*30, b*15.
    Round 2: x min(20, 7) = 7, y min(5, 7) = 5. Left are a*13, b*3: phase 2 gives all three b to whichever comes first.
    """
    s = system({"a": 90, "b": 60}, rule({"a": 1, "b": 1}, {"x": 1}), rule({"a": 2, "b": 1}, {"y": 1}))
    ends = {(d["x"], d["y"], d["a"]) for d in (inside(s, seed) for seed in range(20))}
    assert ends == {(40, 20, 10), (37, 23, 7)}


def test_the_choice_is_maximal() -> None:
    s = system({"a": 5, "b": 1}, rule({"a": 1, "b": 1}, {"x": 1}), rule({"a": 2}, {"y": 1}))
    for seed in range(20):
        chosen = choose(s, start(s), generator(seed, 0))
        check(s, start(s), chosen)
        assert sum(a.times for a in chosen) == 3


def test_blocks_of_different_charges_do_not_meet_in_one_step() -> None:
    s = system({"a": 10, "b": 10}, rule({"a": 1}, {"x": 1}, after=1), rule({"b": 1}, {"y": 1}, after=0))
    ends = {(run(s, 1, seed).cells[2].charge, tuple(inside(s, seed).items())) for seed in range(20)}
    assert ends == {(1, (("b", 10), ("x", 10))), (0, (("a", 10), ("y", 10)))}


def test_rules_of_one_left_side_and_different_charges_are_different_blocks() -> None:
    s = system({"a": 8}, rule({"a": 1}, {"x": 1}, 0.5, after=1), rule({"a": 1}, {"y": 1}, 0.5, after=0))
    assert {tuple(inside(s, seed).items()) for seed in range(20)} == {(("x", 8),), (("y", 8),)}


def test_the_environment_of_the_membrane_gives_to_the_rule_too() -> None:
    s = system({"a": 10}, rule({"a": 1}, {"x": 1}, around="r"), around={"r": 4})
    end = run(s, 1, 0)
    assert (end.cells[1].objects, end.cells[2].objects) == ({}, {"a": 6, "x": 4})


def test_objects_move_between_environments_by_probability() -> None:
    def move(target: str, p: float) -> Rule:
        give = Inner("e1", None, bag("b"), (Result("e1"),))
        take = Inner(target, None, (), (Result(target, produce=bag("b")),))
        return Rule("0", inner=(give, take), probability=p)

    cells = (Cell("0"), Cell("e1", 0, bag({"b": 400})), Cell("e2", 0), Cell("e3", 0))
    s = System("pdp", cells, (move("e2", 0.25), move("e3", 0.75)), (Group((0, 1)),), mode=Mode.DCBA)
    found = np.array([[c.objects.get("b", 0) for c in run(s, 1, seed).cells.values()] for seed in range(100)])
    assert (found.sum(axis=1) == 400).all() and not found[:, :2].any()
    assert abs(found[:, 2].mean() - 100) < 4 * np.sqrt(75 / 100)


@pytest.mark.parametrize("seed", range(3))
def test_births_and_deaths_follow_their_expectation(seed: int) -> None:
    s = system({"a": 4000}, rule({"a": 1}, {"a": 2}, 0.1), rule({"a": 1}, {}, 0.1), rule({"a": 1}, {"a": 1}, 0.8))
    end = run(s, 10, seed).cells[2].objects["a"]
    assert abs(end - 4000) < 4 * np.sqrt(10 * 4000 * 0.2)


def test_a_block_discarded_for_other_charges_stays_out_though_its_objects_are_left() -> None:
    """A (ab, charge 1) or B (d, charge 0) is discarded; where it is B, C may take all a from A: then d stays."""
    a, b = rule({"a": 1, "b": 1}, {"x": 1}, after=1), rule({"d": 1}, {"y": 1}, after=0)
    c = Rule("1", bag("a"), bag("z"))
    s = system({"a": 1, "b": 1, "d": 3}, a, b, c)
    ends = set()
    for seed in range(40):
        check(s, start(s), choose(s, start(s), generator(seed, 0)))
        ends.add(tuple(inside(s, seed).items()))
    assert ends == {(("b", 1), ("y", 3), ("z", 1)), (("d", 3), ("x", 1)), (("b", 1), ("d", 3), ("z", 1))}
