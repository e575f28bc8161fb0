"""What is printed is read again as the same system."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plingua_examples import EVERY
from random_systems import FAMILIES, random_system

from echoc.compiler.ir import oracle
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
    Where,
    bag,
)
from echoc.membranes.plingua import Unprintable, read, show
from echoc.membranes.plingua.wording import worded


def placeless(system: System) -> System:
    """Without the places in the source, which printing does not keep."""
    return replace(
        system,
        cells=tuple(replace(c, where=Where()) for c in system.cells),
        rules=tuple(replace(r, where=Where()) for r in system.rules),
    )


def again(system: System) -> System:
    return placeless(read(system.name, text=show(system)))


@pytest.mark.parametrize("name", EVERY)
def test_examples(name: str) -> None:
    system = placeless(read(name, text=EVERY[name]))
    assert system.rules
    assert again(system) == system


objects = st.sampled_from(["a", "b", "x{1}", "x{1,-2}", "u", "long.name"])
bags = st.dictionaries(objects, st.integers(1, 9), max_size=3).map(bag)
some = st.dictionaries(objects, st.integers(1, 9), min_size=1, max_size=3).map(bag)
charges = st.sampled_from([-1, 0, 1])
priorities = st.none() | st.integers(0, 3)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """A rule over the structure [[]'1 [[]'3]'2]'skin with charges."""
    kind = draw(st.integers(0, 4))
    label, priority = draw(st.sampled_from(["1", "2", "3"])), draw(priorities)
    charge = draw(charges)
    if kind == 0:
        change = draw(charges)
        new = None if change == charge else change
        return Rule(
            label,
            draw(some),
            draw(bags),
            charge=charge,
            new_charge=new,
            dissolve=draw(st.booleans()),
            priority=priority,
        )
    if kind == 1:
        inner = Inner("3", draw(charges), draw(bags), (Result("3", draw(charges), draw(bags)),))
        return Rule("2", draw(some), draw(bags), (inner,), charge=charge, priority=priority)
    if kind == 2:
        return Rule(None, draw(bags), draw(bags), (Inner(label, charge, draw(some), ()),), priority=priority)
    results = tuple(Result(label, draw(charges), draw(bags)) for _ in range(kind - 2))
    if kind == 3:
        return Rule(None, draw(some), draw(bags), (Inner(label, charge, draw(bags), results),), priority=priority)
    return Rule(None, draw(bags), draw(bags), (Inner(label, charge, draw(some), results),), priority=priority)


@st.composite
def systems(draw: st.DrawFn) -> System:
    made = tuple({replace(r, priority=None): r for r in draw(st.lists(rules(), min_size=1, max_size=6))}.values())
    cells = (
        Cell("skin", None, draw(bags), 1),
        Cell("1", 0, draw(bags), draw(charges)),
        Cell("2", 0, draw(bags), -1),
        Cell("3", 2, draw(bags), draw(charges)),
    )
    owners = [draw(st.integers(0, 2)) for _ in made]
    members = [tuple(i for i, o in enumerate(owners) if o == g) for g in range(3)]
    groups = [Group(members[0])] if members[0] else []
    groups += [Group(m, Bound.AT_MOST, g) for g, m in enumerate(members) if g and m]
    mode = draw(st.sampled_from([Mode.PARALLEL, Mode.SEQUENTIAL]))
    priority = draw(st.sampled_from(list(Priority)))
    features = ({} if mode is Mode.PARALLEL else {"mode": mode.value}) | (
        {} if priority is Priority.STRONG else {"priority": priority.value}
    )
    return System("any_model", cells, made, tuple(groups), mode, priority, name="any", features=features)


@settings(max_examples=80, deadline=None)
@given(systems())
def test_random_systems(system: System) -> None:
    assert again(system) == system


def test_labels_that_are_no_names_are_quoted() -> None:
    cells = (Cell("the skin", None), Cell('a "quoted" \\ label', 0, bag(["a"])), Cell("def", 0), Cell("007", 0))
    rule = Rule('a "quoted" \\ label', bag(["a"]), bag(["b"]))
    system = System("m", cells, (rule,), (Group((0,)),), name="m")
    assert again(system) == system


MAXIMAL = (Group((0,)),)
FIELDS = ("model", "cells", "rules", "groups", "mode", "priority", "links", "unbounded")


@pytest.mark.parametrize("family", FAMILIES)
def test_random_systems_are_read_as_they_are_or_refused(family: str) -> None:
    """Promoters, guards, charges, blocks, neurons: what is printed is read as the same system, in P-Lingua's words."""
    for seed in range(25):
        system = random_system(seed, family)
        try:
            text = show(system)
        except Unprintable:
            continue
        read_again, wanted = read(system.name, text=text), worded(system)
        assert all(getattr(read_again, f) == getattr(wanted, f) for f in FIELDS), seed
        assert show(wanted) == text


@pytest.mark.parametrize("family", ["active", "pdp", "spiking", "chemical"])
def test_random_systems_can_be_printed(family: str) -> None:
    def printed(seed: int) -> bool:
        try:
            return bool(show(random_system(seed, family)))
        except Unprintable:
            return False

    assert sum(map(printed, range(25))) >= 3


RULES = [
    Rule("1", bag(["a"]), promoters=bag({"b": 2}), inhibitors=bag(["c"])),
    Rule("1", bag(["a"]), guard=Guard("not", parts=(Guard("any", parts=(Guard("ge", "a", 3), Guard("eq", "b", 1))),))),
    Rule("1", bag(["a"]), guard=Guard("any"), inhibitors=bag(["c"])),
    Rule("1", bag(["a"]), guard=Guard("in", "b", starts=(0, 2), threshold=3, residues=(0,))),
    Rule("1", bag(["a"]), bag(["b"]), send=(Send(Target.OUT, bag(["c"])),)),
]


@pytest.mark.parametrize("rule", RULES)
def test_other_words_for_a_rule_run_the_same(rule: Rule) -> None:
    """Every step from every small content takes and makes the same objects."""
    for counts in product(range(4), repeat=3):
        start = bag(dict(zip("abc", counts, strict=True)))
        system = System("m", (Cell("0"), Cell("1", 0, start)), (rule,), MAXIMAL, name="m")
        one, other = (oracle.run(s, 1, seed=0) for s in (system, read("m", text=show(system))))
        assert [dict(c.objects) for c in one.cells.values()] == [dict(c.objects) for c in other.cells.values()]


KEPT = (Inner("2", None, (), (Result("2"),)),)


@pytest.mark.parametrize(
    ("rule", "changes", "message"),
    [
        (Rule("1", bag(["a"]), guard=Guard("in", "a", period=2, residues=(0,))), {}, "the rule a in .*: .* guard 'in'"),
        (Rule(None, bag(["a"]), inner=KEPT, inhibitors=bag(["b"])), {}, "a guard on a rule that no membrane holds"),
        (Rule("1", bag(["a"]), send=(Send(Target.IN, bag(["a"]), "2"),)), {}, r"the rule \[a .*'1: .* sent elsewhere"),
        (Rule("1", bag(["a"]), rate=1.0), {}, r"the rule \[a .* rate 1: .* would be read as \[a"),
        (Rule("1", bag(["no name"])), {}, "the object 'no name'"),
        (Rule("1", bag(["def"])), {}, "the object 'def'"),
        (Rule("1", bag(["a"])), {"environment": bag(["a"])}, "outside of the skin"),
        (Rule("1", bag(["a"])), {"mode": Mode.ORDERED}, "one after another"),
        (Rule("1", bag(["a"])), {"groups": (Group((0,), Bound.CHOICE),)}, "applied by choice"),
        (Rule("1", bag(["a"])), {"cells": (Cell("1"), Cell("2", 0), Cell("2", 0, bag(["a"])))}, "different contents"),
    ],
)
def test_what_cannot_be_said(rule: Rule, changes: dict[str, object], message: str) -> None:
    system = replace(System("m", (Cell("1"), Cell("2", 0)), (rule,), MAXIMAL), **changes)  # type: ignore[arg-type]
    with pytest.raises(Unprintable, match=message):
        show(system)
