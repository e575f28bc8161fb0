"""`check` names what is wrong with a claimed choice, and takes every one that `choose` makes."""

import pytest
from random_systems import FAMILIES, random_system

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
from echoc.compiler.ir.oracle import Application, StepError, apply, check, choose, generator, halted, start
from echoc.membranes.validate import validate

A = Application


def system(
    *groups: tuple[Bound, list[Rule]], priority: Priority = Priority.STRONG, mode: Mode = Mode.PARALLEL
) -> System:
    """Skin 1 with a*4, b*2; inside two membranes 2 with a*2 and one 3."""
    cells = (
        Cell("1", None, bag({"a": 4, "b": 2})),
        Cell("2", 0, bag({"a": 2})),
        Cell("2", 0, bag({"a": 2}), 1),
        Cell("3", 0),
    )
    rules = [rule for _, block in groups for rule in block]
    numbered, first = [], 0
    for bound, block in groups:
        numbered.append(Group(tuple(range(first, first + len(block))), bound))
        first += len(block)
    return System("test", cells, tuple(rules), tuple(numbered), mode=mode, priority=priority)


MAXIMAL, AT_MOST = Bound.MAXIMAL, Bound.AT_MOST
TWO = system((MAXIMAL, [Rule("1", bag({"a": 2}), bag("x")), Rule("1", bag("a"), bag("y"))]))
PRIORITY = [Rule("1", bag({"a": 3}), priority=1), Rule("1", bag("a"), priority=2)]
UP = Rule(None, inner=(Inner("2", 0, bag("a"), (Result("2", 1),)),))
DOWN = Rule(None, inner=(Inner("2", 0, bag("a"), (Result("2", -1),)),))
SPLIT = Rule(None, inner=(Inner("2", 0, bag("a"), (Result("2"), Result("2"))),))
DISSOLVE = Rule(None, inner=(Inner("2", 0, bag("a")),))
SEND = Rule("1", bag("b"), send=(Send(Target.IN, bag("c"), "2"),))
KERNEL = system(
    (Bound.CHOICE, [Rule("1", bag("a")), Rule("1", bag("b"))]), (MAXIMAL, [Rule("1", bag("a"))]), mode=Mode.ORDERED
)


@pytest.mark.parametrize(
    ("s", "claimed"),
    [
        (TWO, [A(0, (0,), 2)]),
        (TWO, [A(1, (0,), 2), A(0, (0,), 1)]),
        (TWO, [A(1, (0,), 1), A(1, (0,), 3)]),
        (system((MAXIMAL, PRIORITY)), [A(0, (0,), 1)]),
        (system((MAXIMAL, PRIORITY), priority=Priority.WEAK), [A(1, (0,), 1), A(0, (0,), 1)]),
        (system((MAXIMAL, [UP, DOWN])), [A(1, (0, 1), 2)]),
        (system((AT_MOST, [UP, SPLIT])), [A(1, (0, 1), 1)]),
        (system((MAXIMAL, [SEND])), [A(0, (0, 1), 1), A(0, (0, 2), 1)]),
        (system((Bound.ARBITRARY, [SEND])), []),
        (system((Bound.MINIMAL, [Rule("1", bag("a"))])), [A(0, (0,), 3)]),
        (system((Bound.SEQUENCE, [Rule("1", bag("a")), Rule("1", bag("z"))])), [A(0, (0,), 1)]),
        (system((MAXIMAL, [Rule("1", bag("a"))]), mode=Mode.SEQUENTIAL), [A(0, (0,), 1)]),
        (KERNEL, [A(1, (0,), 1), A(2, (0,), 4)]),
    ],
)
def test_legal_choices(s: System, claimed: list[Application]) -> None:
    check(s, start(s), claimed)


@pytest.mark.parametrize(
    ("s", "claimed", "why"),
    [
        (TWO, [A(0, (0,), 3)], "applied 3 times in .*its objects suffice for 2"),
        (TWO, [A(0, (0,), 1), A(1, (0,), 3)], "needs more objects|suffice"),
        (TWO, [A(0, (0,), 1), A(1, (0,), 1)], "not maximal: rule 1"),
        (TWO, [], "not maximal"),
        (TWO, [A(2, (0,), 1)], "no rule 2"),
        (TWO, [A(0, (0,), 0), A(1, (0,), 4)], "applied 0 times"),
        (TWO, [A(0, (0, 1), 2)], "binds 1 membranes and 0 targets; found 2"),
        (TWO, [A(0, (1,), 1)], "needs the label 1; membrane #1 has 2"),
        (TWO, [A(0, (9,), 1)], "no membrane #9"),
        (system((MAXIMAL, PRIORITY)), [A(0, (0,), 1), A(1, (0,), 1)], "barred .* by a rule of higher priority"),
        (system((MAXIMAL, PRIORITY), priority=Priority.WEAK), [A(1, (0,), 4)], "has to wait"),
        (system((MAXIMAL, [UP, DOWN])), [A(0, (0, 2), 1)], "needs the charge 0; membrane #2 has 1"),
        (system((MAXIMAL, [UP])), [A(0, (0, 3), 1)], "needs the label 2"),
        (system((MAXIMAL, [UP])), [A(0, (1, 1), 1)], "binds a membrane twice"),
        (system((MAXIMAL, [UP])), [A(0, (3, 1), 1)], "not directly inside"),
        (system((MAXIMAL, [UP, DOWN])), [A(0, (0, 1), 1), A(1, (0, 1), 1)], "contradicts .* charge of membrane #1"),
        (system((MAXIMAL, [SPLIT, DISSOLVE])), [A(0, (0, 1), 1), A(1, (0, 1), 1)], "contradicts .* structure"),
        (system((MAXIMAL, [SPLIT])), [A(0, (0, 1), 2)], "the bound still allows 1"),
        (system((AT_MOST, [UP, SPLIT])), [A(0, (0, 1), 1), A(1, (0, 1), 1)], "exceeds the bound"),
        (system((AT_MOST, [UP, SPLIT])), [], "not maximal"),
        (system((MAXIMAL, [SEND])), [A(0, (0, 3), 2)], "membrane #3, which is no 2 to choose for 'in'"),
        (system((MAXIMAL, [SEND])), [A(0, (0,), 2)], "1 targets; found 1"),
        (system((MAXIMAL, [Rule("1", bag("a"), guard=Guard("gt", "b", 2))])), [A(0, (0,), 4)], "guard that is false"),
        (system((MAXIMAL, [Rule("1", bag("a"), promoters=bag("p"))])), [A(0, (0,), 4)], "lacks its promoter p"),
        (system((MAXIMAL, [Rule("1", bag("a"), inhibitors=bag("b"))])), [A(0, (0,), 4)], "inhibited by b"),
        (system((Bound.MINIMAL, [Rule("1", bag("a"))])), [], "not maximal"),
        (
            system((Bound.CHOICE, [Rule("1", bag("a")), Rule("1", bag("b"))])),
            [A(0, (0,)), A(1, (0,))],
            "exceeds the bound",
        ),
        (system((Bound.SEQUENCE, [Rule("1", bag("a")), Rule("1", bag("b"))])), [A(1, (0,))], "exceeds the bound"),
        (system((Bound.SEQUENCE, [Rule("1", bag("a")), Rule("1", bag("b"))])), [A(0, (0,))], "not maximal"),
        (system((MAXIMAL, [Rule("1", bag("a"))]), mode=Mode.SEQUENTIAL), [A(0, (0,), 2)], "one rule a step"),
        (system((MAXIMAL, [Rule("1", bag("a"))]), mode=Mode.SEQUENTIAL), [], "nothing is applied"),
        (KERNEL, [A(2, (0,), 4)], "not maximal: rule [01]"),
        (KERNEL, [A(0, (0,), 1), A(2, (0,), 4)], "suffice for 3"),
        (KERNEL, [A(1, (0,), 1)], "not maximal: rule 2"),
    ],
)
def test_illegal_choices(s: System, claimed: list[Application], why: str) -> None:
    with pytest.raises(StepError, match=why):
        check(s, start(s), claimed)


def test_a_target_is_one_for_all_applications_of_a_rule_where_it_is_linked() -> None:
    rule = Rule("P", bag("a"), send=(Send(Target.LINKED, bag("b"), "Q"),))
    cells = (Cell("P", None, bag({"a": 2})), Cell("Q"), Cell("Q"))
    s = System("kernel", cells, (rule,), (Group((0,)),), mode=Mode.ORDERED, links=((0, 1), (0, 2)))
    check(s, start(s), [A(0, (0, 2), 2)])
    with pytest.raises(StepError, match="chooses two targets Q"):
        check(s, start(s), [A(0, (0, 1), 1), A(0, (0, 2), 1)])


def test_a_closed_neuron_does_not_fire() -> None:
    rule = Rule("0", bag("a"), delay=2)
    s = System("spiking", (Cell("0", None, bag({"a": 3})), Cell("1")), (rule,), (Group((0,), AT_MOST),))
    closed = apply(s, start(s), [A(0, (0,), 1)])
    with pytest.raises(StepError, match="#0 is closed"):
        check(s, closed, [A(0, (0,), 1)])


def test_apply_refuses_to_take_what_is_not_there() -> None:
    with pytest.raises(StepError, match="takes 2 more of a than there are in membrane #0"):
        apply(TWO, start(TWO), [A(0, (0,), 3)])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_choice_made_is_legal_and_fewer_or_more_are_not(family: str) -> None:
    made = refused = 0
    for seed in range(40):
        s = validate(random_system(seed, family))
        configuration = start(s)
        for step in range(6):
            chosen = choose(s, configuration, generator(seed, step))
            check(s, configuration, chosen)
            assert not (chosen and halted(s, configuration))
            made += len(chosen)
            if chosen and family not in ("kernel",):
                with pytest.raises(StepError):  # a whole application too many
                    check(s, configuration, [*chosen, *(A(a.rule, a.membranes, a.times + 50) for a in chosen)])
                refused += 1
                if all(g.bound is MAXIMAL for g in s.groups):
                    with pytest.raises(StepError):
                        check(s, configuration, chosen[1:])
            configuration = apply(s, configuration, chosen)
    assert made > 100
    assert refused or family == "kernel"


@pytest.mark.parametrize("family", ["transition", "active", "tissue", "spiking", "kernel"])
def test_confluent_systems_choose_alike_for_every_seed(family: str) -> None:
    applied = 0
    for seed in range(40):
        s = validate(random_system(seed, family, confluent=True))
        configuration = start(s)
        for step in range(6):
            one, other = (choose(s, configuration, generator(k, step)) for k in (seed, seed + 1000))
            assert sorted(one, key=repr) == sorted(other, key=repr)
            configuration = apply(s, configuration, one)
            applied += len(one)
    assert applied > 50
