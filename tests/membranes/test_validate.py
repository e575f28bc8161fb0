"""Systems that make no sense are refused, with every problem and its place."""

from dataclasses import replace

import pytest

from echoc.compiler.ir.algebra import (
    Bound,
    Cell,
    Group,
    Guard,
    Inner,
    Mode,
    Result,
    Rule,
    Send,
    System,
    Target,
    Where,
)
from echoc.errors import CompileError
from echoc.membranes.blocks import completed
from echoc.membranes.validate import InvalidSystem, problems, validate

A, B = (("a", 1),), (("b", 1),)
CELLS = (Cell("skin"), Cell("1", 0, A), Cell("2", 1, B, -1))


def system(*rules: Rule, **parts: object) -> System:
    groups = (Group(tuple(range(len(rules)))),) if rules else ()
    return replace(System("m", CELLS, rules, groups), **parts)  # type: ignore[arg-type]


def inner(label: str, *results: str) -> tuple[Inner, ...]:
    return (Inner(label, None, A, tuple(Result(r) for r in results)),)


def test_a_sound_system_is_returned() -> None:
    sound = system(
        Rule("1", A, B, priority=1, probability=0.5),
        Rule(None, B, A, inner("1", "1", "3")),
        Rule("3", A, dissolve=True),
        Rule("1", inner=(Inner("2", -1, (), ()),)),
        Rule("1", A, inner=inner("2")),
        Rule("2", A, guard=Guard("all", parts=(Guard("ge", "a", 2), Guard("not", parts=(Guard("eq", "b"),))))),
        Rule("1", A, send=(Send(Target.IN, A, "2"), Send(Target.OUT, B))),
        environment=A,
        links=((0, 1), (1, 0)),
    )
    assert validate(sound) is sound


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (system(cells=()), "without membranes"),
        (system(cells=(Cell("1"), Cell("2", 1))), "the parent of cell 1 is 1"),
        (system(cells=(Cell("1", charge=2),)), "the charge 2 of cell 0"),
        (system(cells=(Cell("1", objects=(("a", 0),)),)), "the multiplicity 0 of a"),
        (system(cells=(Cell("1", objects=(("a", 1 << 63),)),)), "the multiplicity 9223372036854775808 of a"),
        (system(environment=(("a", -1),)), "the multiplicity -1 of a"),
        (system(links=((0, 3),)), r"the link \(0, 3\); there are 3 cells"),
        (system(Rule("1", A), groups=()), "rule 0 is in 0 groups"),
        (system(Rule("1", A), groups=(Group((0,)), Group((0,)))), "rule 0 is in 2 groups"),
        (system(Rule("1", A), groups=(Group((0, 7)),)), "names the rule 7; there are 1"),
        (system(Rule("1", A), groups=(Group((0,), Bound.AT_MOST, 0),)), "the limit 0"),
        (system(Rule(None, A)), "held by no membrane"),
        (system(Rule("9", A)), "of the label 9, which no membrane has"),
        (system(Rule(None, A, inner=inner("9", "9"))), "the label 9, which none has"),
        (system(Rule("skin", A, dissolve=True)), "dissolves skin, the skin"),
        (system(Rule(None, A, inner=inner("skin"))), "dissolves skin, the skin"),
        (system(Rule(None, A, inner=inner("skin", "skin", "skin"))), "divides skin, the skin"),
        (system(Rule("skin", A, divide=(("1", A), ("2", A)))), "divides skin, the skin"),
        (system(Rule("1", A, inner=inner("skin", "skin"))), "needs skin inside of 1"),
        (system(Rule("1", A, send=(Send(Target.IN, A, "9"),))), "sends objects into 9"),
        (system(Rule("1", A, charge=3)), "a charge that is not"),
        (system(Rule(None, A, inner=(Inner("1", 0, A, (Result("1", 5),)),))), "the charge 5"),
        (system(Rule("1", A, priority=-1)), "the priority -1"),
        (system(Rule("1", A, probability=1.5)), "the probability 1.5"),
        (system(Rule("1", A, probability=float("nan"))), "the probability nan"),
        (system(Rule("1", A, rate=float("inf"))), "the rate inf"),
        (system(Rule("1", A, delay=-1)), "the delay -1"),
        (system(Rule("1", (("a", 0),))), "the multiplicity 0 of a"),
        (system(Rule("1", A, guard=Guard("like", "a"))), "the guard operator 'like'"),
        (system(Rule("1", A, guard=Guard("not"))), "'not' has 0 parts"),
        (system(Rule("1", A, guard=Guard("in", "a", period=0))), "a guard of period 0"),
        (system(Rule("1", (), A)), "consumes nothing"),
        (system(Rule(None, (), B, (Inner("1", 0, (), (Result("1", 1),)),))), "consumes nothing"),
        (system(Rule("1", A), mode=Mode.GILLESPIE), "without a rate constant"),
    ],
)
def test_problems(broken: System, message: str) -> None:
    with pytest.raises(InvalidSystem, match=message):
        validate(broken)


def test_every_problem_is_reported_with_its_place() -> None:
    where = Where("f.pli", 3, 4)
    found = problems(system(Rule("8", A, where=where), Rule("9", A, priority=-1)))
    assert len(found) == 3
    assert str(found[0]).startswith("f.pli:3:4: ")
    assert issubclass(InvalidSystem, CompileError)
    many = system(*(Rule("9", (("a", n),)) for n in range(1, 60)))
    with pytest.raises(InvalidSystem, match=r"\.\.\. and 39 more") as caught:
        validate(many)
    assert len(caught.value.problems) == 59


def test_labels_count_only_where_a_rule_can_make_them() -> None:
    assert problems(system(Rule(None, A, inner=inner("1", "3")), Rule("3", A))) == []
    assert problems(system(Rule(None, A, inner=inner("3", "3")), Rule("3", A))) != []


def test_a_graph_has_no_skin() -> None:
    cells = (Cell("1"), Cell("2"))
    assert problems(system(Rule("1", A, divide=(("1", A), ("2", B))), Rule("2", A, dissolve=True), cells=cells)) == []


def test_block_sums_of_population_dynamics() -> None:
    def rule(probability: float | None, charge: int, *more: Inner) -> Rule:
        held = Inner("1", 0, A, (Result("1", charge, B),))
        return Rule("skin" if more else None, inner=(held, *more), probability=probability)

    other = Inner("2", 0, (), (Result("2", 0, B),))
    whole = system(rule(0.25, 0), rule(0.75, 0), rule(None, 1), mode=Mode.DCBA)
    assert problems(whole) == []
    between = system(rule(0.25, 0, other), rule(0.5, 0, Inner("3", 0, (), (Result("3", 0, B),))), mode=Mode.DCBA)
    told = [p.message for p in problems(between) if "add up" in p.message]
    assert len(told) == 1 and "the 2 rules with the left side [[a]'1 []'2]'skin add up to 0.75, 0.25 short" in told[0]
    assert not any("add up" in p.message for p in problems(replace(between, mode=Mode.PARALLEL)))
    mended, blocks = completed(between)
    assert not any("add up" in p.message for p in problems(mended)) and blocks.totals == [1.0]
    assert mended.rules[-1].inner == (Inner("1", 0, A, (Result("1", 0, A),)),)
