"""One step: maximality, bounds, priorities, targets, and the faults that simulators are known for."""

from collections import Counter

import numpy as np
import pytest

from echoc.compiler.ir.algebra import (
    Bound,
    Cell,
    Group,
    Guard,
    Inner,
    Mode,
    Priority,
    Result,
    Rule,
    Send,
    System,
    Target,
    bag,
)
from echoc.compiler.ir.oracle import (
    ENVIRONMENT,
    Application,
    StepError,
    apply,
    choose,
    generator,
    halted,
    run,
    start,
    step,
    trace,
)


def system(
    *rules: Rule, objects: dict[str, int], bound: Bound = Bound.MAXIMAL, limit: int = 1, **more: object
) -> System:
    """One membrane 1 with objects, its rules in one group."""
    group = Group(tuple(range(len(rules))), bound, limit)
    return System("test", (Cell("1", None, bag(objects)),), rules, (group,), **more)  # type: ignore[arg-type]


def skin(s: System, seed: int = 0, steps: int = 1) -> dict[str, int]:
    return dict(run(s, steps, seed).cells[0].objects)


def choices(s: System, seeds: int) -> set[tuple[tuple[int, int], ...]]:
    """The distinct choices of the first step over seeds, as (rule, times) pairs."""
    found = set()
    for seed in range(seeds):
        counts: Counter[int] = Counter()
        for a in choose(s, start(s), generator(seed, 0)):
            counts[a.rule] += a.times
        found.add(tuple(sorted(counts.items())))
    return found


def test_a_rule_is_applied_as_often_as_its_objects_allow() -> None:
    assert skin(system(Rule("1", bag({"a": 2}), bag("b")), objects={"a": 7})) == {"a": 1, "b": 3}


def test_products_are_not_seen_within_the_step() -> None:
    s = system(Rule("1", bag("a"), bag("b")), Rule("1", bag("b"), bag("c")), objects={"a": 1, "b": 1})
    assert skin(s) == {"b": 1, "c": 1}


def test_objects_sent_out_of_the_skin_are_in_the_environment() -> None:
    s = system(Rule("1", bag("a"), send=(Send(Target.OUT, bag({"b": 2})),)), objects={"a": 5})
    end = run(s, 1, 0)
    assert end.environment == {"b": 10}
    assert end.cells[0].objects == {}


def test_counts_past_63_bits_are_an_error_or_exact_and_never_wrap() -> None:
    s = system(Rule("1", bag("a"), bag({"a": 2})), objects={"a": 1})
    assert skin(s, steps=62) == {"a": 2**62}
    with pytest.raises(StepError, match=r"9223372036854775808 of a; counts end at 2\^63 - 1"):
        run(s, 63, 0)
    assert run(s, 300, 0, exact=True).cells[0].objects == {"a": 2**300}


def test_competing_draws_past_63_bits_are_an_error() -> None:
    s = system(Rule("1", bag("a"), bag("b")), Rule("1", bag("a"), bag("c")), objects={"a": 2**70})
    with pytest.raises(StepError, match="a draw holds at most"):
        run(s, 1, 0, exact=True)


def test_every_cell_of_a_label_is_bound() -> None:
    cells = (Cell("0", None, bag({"k": 2})), Cell("1", 0), Cell("1", 0, bag("a")), Cell("1", 0, bag("a")))
    rule = Rule("0", bag("k"), inner=(Inner("1", None, bag("a"), (Result("1", produce=bag("b")),)),))
    end = run(System("test", cells, (rule,), (Group((0,)),)), 1, 0)
    assert [dict(c.objects) for c in end.cells.values()] == [{}, {}, {"b": 1}, {"b": 1}]


def test_a_system_without_an_applicable_rule_halts_with_no_step() -> None:
    s = system(Rule("1", bag("a"), bag("b")), objects={"c": 1})
    assert halted(s, start(s))
    assert run(s, None, 0).step == 0
    assert [(c.step, a) for c, a in trace(s, 5, 0)] == [(0, [])]


def test_trace_and_step_and_run_agree() -> None:
    s = system(Rule("1", bag("a"), bag("b")), Rule("1", bag("a"), bag("c")), objects={"a": 9})
    (first, chosen), (second, none) = trace(s, None, 4)
    assert apply(s, first, chosen) == second == step(s, start(s), 4) == run(s, None, 4)
    assert none == [] and halted(s, second)


def test_a_maximal_choice_between_two_rules_is_binomial() -> None:
    s = system(Rule("1", bag("a"), bag("b")), Rule("1", bag("a"), bag("c")), objects={"a": 30})
    found = np.array([skin(s, seed).get("b", 0) for seed in range(800)])
    assert abs(found.mean() - 15) < 4 * np.sqrt(7.5 / 800)
    assert abs(found.var() / 7.5 - 1) < 4 * np.sqrt(2 / 800)
    assert all(set(skin(s, seed)) <= {"b", "c"} for seed in range(20))


def test_probabilities_weigh_the_draw_and_multiplicities_do_not() -> None:
    heavy = (Rule("1", bag({"a": 2}), bag("b"), probability=3.0), Rule("1", bag({"a": 1}), bag("c"), probability=1.0))
    first = [choices_in_order(system(*heavy, objects={"a": 2}), seed) for seed in range(1200)]
    share = sum(rule == 0 for rule in first) / len(first)
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 1200)


def choices_in_order(s: System, seed: int) -> int:
    """With two a, the rule of the first draw: aa -> b leaves nothing, a -> c leaves no room for the other."""
    return choose(s, start(s), generator(seed, 0))[0].rule


def test_a_probability_of_zero_is_never_chosen() -> None:
    s = system(Rule("1", bag("a"), bag("b"), probability=0.0), objects={"a": 3})
    assert halted(s, start(s))


def test_batches_of_draws_keep_the_distribution_of_single_ones() -> None:
    # aa -> x competes with a -> y over an odd number: exact law of the sequential draws by recursion
    s = system(Rule("1", bag({"a": 2}), bag("x")), Rule("1", bag("a"), bag("y")), objects={"a": 9})
    law = np.zeros((10, 5))
    law[9, 0] = 1.0
    for left in range(9, 0, -1):
        for pairs in range(5):
            here = law[left, pairs]
            if left == 1:
                law[0, pairs] += here
            elif here:
                law[left - 1, pairs] += here / 2
                law[left - 2, pairs + 1] += here / 2
    found = np.bincount([skin(s, seed).get("x", 0) for seed in range(1500)], minlength=5)
    expected = law[0] * 1500
    assert ((found - expected) ** 2 / np.maximum(expected, 1e-9)).sum() < 20  # chi square, 4 degrees: p < 0.0005


def test_at_most_bounds_the_whole_group_in_every_membrane() -> None:
    rules = (Rule("1", bag("a"), bag("x")), Rule("1", bag("b"), bag("x")))
    s = system(*rules, objects={"a": 5, "b": 5}, bound=Bound.AT_MOST, limit=3)
    assert {sum(n for _, n in choice) for choice in choices(s, 30)} == {3}
    assert choices(s, 60) == {((0, 3),), ((1, 3),), ((0, 1), (1, 2)), ((0, 2), (1, 1))}


def test_at_most_counts_in_the_inner_membranes() -> None:
    cells = (Cell("0", None, bag({"k": 9})), Cell("1", 0), Cell("1", 0))
    rule = Rule(None, bag("k"), inner=(Inner("1", None, (), (Result("1", produce=bag("b")),)),))
    end = run(System("test", cells, (rule,), (Group((0,), Bound.AT_MOST, 1),)), 1, 0)
    assert [dict(c.objects) for c in end.cells.values()] == [{"k": 7}, {"b": 1}, {"b": 1}]


def test_minimal_applies_at_least_one_and_any_number_more() -> None:
    s = system(Rule("1", bag("a"), bag("b")), objects={"a": 3}, bound=Bound.MINIMAL)
    assert choices(s, 60) == {((0, 1),), ((0, 2),), ((0, 3),)}


def test_arbitrary_applies_any_number() -> None:
    s = system(Rule("1", bag("a"), bag("b")), objects={"a": 2}, bound=Bound.ARBITRARY)
    assert choices(s, 60) == {(), ((0, 1),), ((0, 2),)}
    assert not halted(s, start(s))


def test_choice_applies_exactly_one_rule_once() -> None:
    rules = (Rule("1", bag("a"), bag("b")), Rule("1", bag("a"), bag("c")), Rule("1", bag("z"), bag("d")))
    assert choices(system(*rules, objects={"a": 5}, bound=Bound.CHOICE), 30) == {((0, 1),), ((1, 1),)}


def test_a_sequence_runs_each_rule_once_up_to_the_first_that_cannot() -> None:
    rules = (Rule("1", bag("a"), bag("b")), Rule("1", bag("a"), bag("c")), Rule("1", bag("z")), Rule("1", bag("a")))
    assert choices(system(*rules, objects={"a": 5}, bound=Bound.SEQUENCE), 3) == {((0, 1), (1, 1))}


def test_sequential_applies_one_rule_in_the_whole_system() -> None:
    s = system(
        Rule("1", bag("a"), bag("b")), Rule("1", bag("c"), bag("d")), objects={"a": 5, "c": 5}, mode=Mode.SEQUENTIAL
    )
    assert choices(s, 30) == {((0, 1),), ((1, 1),)}
    assert run(s, None, 1).step == 10


PRIORITIES = (Rule("1", bag({"a": 2}), bag("x"), priority=1), Rule("1", bag("a"), bag("y"), priority=2))


def test_strong_priority_bars_the_lower_rule_for_the_step() -> None:
    s = system(*PRIORITIES, objects={"a": 5}, priority=Priority.STRONG)
    assert skin(s) == {"a": 1, "x": 2}
    assert skin(s, steps=2) == {"x": 2, "y": 1}


def test_weak_priority_leaves_the_rest_to_the_lower_rule() -> None:
    assert skin(system(*PRIORITIES, objects={"a": 5}, priority=Priority.WEAK)) == {"x": 2, "y": 1}


def test_priority_says_nothing_between_membranes_or_to_rules_without_one() -> None:
    cells = (Cell("1", None, bag({"a": 1})), Cell("2", 0, bag({"b": 1})))
    rules = (
        Rule("1", bag("a"), bag("x"), priority=1),
        Rule("2", bag("b"), bag("y"), priority=2),
        Rule("1", bag("a"), bag("z")),
    )
    s = System("test", cells, rules, (Group((0, 1, 2)),))
    assert {tuple(run(s, 1, seed).cells[0].objects) for seed in range(30)} == {("x",), ("z",)}
    assert run(s, 1, 0).cells[1].objects == {"y": 1}


def test_promoters_are_not_consumed_and_inhibitors_block_from_their_count_on() -> None:
    rule = Rule("1", bag("a"), bag("b"), promoters=bag({"p": 2}), inhibitors=bag({"q": 2}))
    assert skin(system(rule, objects={"a": 3, "p": 2, "q": 1})) == {"b": 3, "p": 2, "q": 1}
    for objects in ({"a": 3, "p": 1}, {"a": 3, "p": 2, "q": 2}):
        s = system(rule, objects=objects)
        assert halted(s, start(s))


@pytest.mark.parametrize(
    ("guard", "true"),
    [
        (Guard("ge", "a", 3), {3, 4, 5, 6, 7}),
        (Guard("gt", "a", 3), {4, 5, 6, 7}),
        (Guard("le", "a", 3), {0, 1, 2, 3}),
        (Guard("lt", "a", 3), {0, 1, 2}),
        (Guard("eq", "a", 3), {3}),
        (Guard("ne", "a", 3), {0, 1, 2, 4, 5, 6, 7}),
        (Guard("in", "a", starts=(1,), threshold=3, period=2, residues=(0,)), {1, 3, 5, 7}),
        (Guard("all", parts=(Guard("ge", "a", 2), Guard("le", "a", 4))), {2, 3, 4}),
        (Guard("any", parts=(Guard("lt", "a", 1), Guard("gt", "a", 6))), {0, 7}),
        (Guard("not", parts=(Guard("gt", "a", 1),)), {0, 1}),
    ],
)
def test_guards(guard: Guard, true: set[int]) -> None:
    rule = Rule("1", bag("k"), bag("x"), guard=guard)
    assert {n for n in range(8) if skin(system(rule, objects={"a": n, "k": 1})).get("x")} == true


def test_a_guard_looks_at_the_start_of_the_step_and_not_at_what_is_left() -> None:
    s = system(Rule("1", bag("a"), bag("b"), guard=Guard("ge", "a", 3)), objects={"a": 3})
    assert skin(s) == {"b": 3}


def test_in_chooses_a_child_for_every_application() -> None:
    cells = (Cell("0", None, bag({"a": 300})), Cell("1", 0), Cell("1", 0), Cell("2", 0))
    s = System("test", cells, (Rule("0", bag("a"), send=(Send(Target.IN, bag("b"), "1"),)),), (Group((0,)),))
    found = [run(s, 1, seed).cells[1].objects["b"] for seed in range(100)]
    assert abs(np.mean(found) - 150) < 4 * np.sqrt(75 / 100)
    end = run(s, 1, 0)
    assert end.cells[1].objects["b"] + end.cells[2].objects["b"] == 300 and not end.cells[3].objects


def test_a_rule_without_its_target_cannot_be_applied() -> None:
    s = system(Rule("1", bag("a"), send=(Send(Target.IN, bag("b"), "2"),)), objects={"a": 1})
    assert halted(s, start(s))


def test_a_rule_without_label_is_held_by_what_is_around_even_the_environment() -> None:
    rule = Rule(None, bag("e"), bag("f"), inner=(Inner("1", None, bag("a"), (Result("1", produce=bag("b")),)),))
    s = system(rule, objects={"a": 3}, environment=bag({"e": 2}))
    assert choose(s, start(s), generator(0, 0)) == [Application(0, (ENVIRONMENT, 0), 2)]
    end = run(s, 1, 0)
    assert (end.environment, end.cells[0].objects) == ({"f": 2}, {"a": 1, "b": 2})


def test_unlimited_objects_are_never_used_up_nor_counted() -> None:
    cells = (Cell("0", None, bag({"k": 1})), Cell("1", 0, bag({"a": 3})))
    rule = Rule(
        "0", bag({"w": 2}), bag("a"), inner=(Inner("1", None, bag("a"), (Result("1", produce=bag({"w": 2})),)),)
    )
    s = System("test", cells, (rule,), (Group((0,)),), unbounded=frozenset("w"))
    end = run(s, None, 0)
    assert (end.cells[0].objects, end.cells[1].objects) == ({"a": 3, "k": 1}, {"w": 6})


def test_a_maximal_rule_that_nothing_limits_is_an_error() -> None:
    with pytest.raises(StepError, match="takes nothing that runs out"):
        run(system(Rule("1", (), bag("b")), objects={}), 1, 0)
    with pytest.raises(StepError, match="takes nothing that runs out"):
        run(system(Rule("1", bag("w"), bag("b")), Rule("1", bag("w")), objects={}, unbounded=frozenset("w")), 1, 0)


def test_confluent_competition_ends_alike_for_every_seed() -> None:
    # n squared additions in any order: every a meets the catalyst once
    s = system(Rule("1", bag(["a", "c"]), bag({"c": 1, "b": 3})), objects={"a": 20, "c": 3})
    assert {tuple(run(s, None, seed).cells[0].objects.items()) for seed in range(10)} == {(("b", 60), ("c", 3))}
    assert run(s, None, 0).step == 7


def test_bounds_and_charges_with_large_counts_are_drawn_in_batches() -> None:
    """A million draws one by one would take minutes; both laws are binomial."""
    million = 10**6
    rules = (Rule("1", bag("a"), bag("x"), new_charge=1), Rule("1", bag("a"), bag("y"), new_charge=1))
    charged = run(system(*rules, objects={"a": million}), 1, 0).cells[0]
    assert charged.charge == 1 and charged.objects["x"] + charged.objects["y"] == million
    assert abs(charged.objects["x"] - million / 2) < 4 * 500
    bounded = skin(system(*rules, objects={"a": 2 * million}, bound=Bound.AT_MOST, limit=million))
    assert bounded["a"] == million and abs(bounded["x"] - million / 2) < 4 * 500
