"""P systems as programs of the IR: text, types, meanings."""

from __future__ import annotations

from dataclasses import replace

import pytest
from random_systems import random_system

from echoc.compiler.ir import Program, make, oracle
from echoc.compiler.ir.algebra import Bound, Group, Mode, System
from echoc.compiler.ir.encoding import attributes, decode, encode, from_attributes
from echoc.compiler.ir.interpret import run_rule
from echoc.compiler.ir.systems import CELLS, Derivation, Start, is_system, program_of, system_of
from echoc.compiler.ir.text import parse, show
from echoc.compiler.ir.verify import verify
from echoc.errors import IRError

FAMILIES = ("transition", "active", "tissue", "pdp", "spiking", "kernel", "chemical")


@pytest.fixture(params=FAMILIES)
def system(request: pytest.FixtureRequest) -> System:
    return random_system(7, request.param)


def test_text_brings_a_system_back(system: System) -> None:
    program = verify(program_of(system))
    text = show(program)
    assert is_system(program)
    again = parse(text)
    assert show(again) == text
    assert system_of(again) == system


def test_one_step_of_the_program_is_one_step_of_the_interpreter(system: System) -> None:
    skin = program_of(system).skin
    _, begun = run_rule(skin, skin.rule("start"), {})
    cells = begun["cells"]
    wanted = oracle.start(system)
    assert cells.configuration == wanted
    for step in range(4):
        if oracle.halted(system, wanted):
            applications = []
        else:
            applications = oracle.choose(system, wanted, oracle.generator(11, step))
            wanted = oracle.apply(system, wanted, applications)
        outputs, states = run_rule(skin, skin.rule("step"), {"seed": 11, "step": step}, states={"cells": cells})
        assert outputs["applied"] == sum(a.times for a in applications)
        if not applications:
            return
        cells = states["cells"]
        assert cells.configuration == wanted


def test_the_program_is_nested_as_the_membranes_are() -> None:
    system = random_system(1, "active")
    (skin,) = program_of(system).skin.children
    assert skin.name == system.cells[0].label
    inside = {c.label for c in system.cells if c.parent == 0}
    assert {m.name for m in skin.children} == inside


def test_encoding_is_exact(system: System) -> None:
    for rule in system.rules:
        assert from_attributes(type(rule), attributes(rule)) == rule
        assert decode(type(rule), encode(rule)) == rule


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("%0 = population() {cells=[]} : value<i64[]>", "the text says"),
        ("%0 = population() : cells<i64[]>", "'cells' is missing"),
        ('%0 = state() {dtype="i64", kind="herd", name="cells", shape=[]} : cells<i64[]>', "wanted pages, value"),
    ],
)
def test_ill_typed_text_is_refused(line: str, wanted: str) -> None:
    text = f'eir 1\nmembrane @s {{\n  state "cells" : cells<i64[]>\n  rule @start {{\n    {line}\n  }}\n}}\n'
    with pytest.raises(IRError, match=wanted):
        parse(text)


def test_states_are_linear() -> None:
    program = program_of(random_system(3, "transition"))
    skin = program.skin
    step = skin.rule("step")
    chosen = next(n for n in step.order if n.op == "choose")
    state = next(n for n in step.order if n.op == "state")
    twice = make("release", make("fork", make("apply", state, chosen), chosen))
    other = make("fork", make("apply", state, chosen), chosen)
    assert twice is dict(step.next_states)["cells"]  # interned: the same step
    bad = replace(step, next_states=(("cells", make("apply", other, chosen)),))
    rules = tuple(bad if r.name == "step" else r for r in skin.rules)
    verify(Program(replace(skin, rules=rules)))  # an apply on a later version is one more change, not the same twice
    with pytest.raises(IRError, match=r"apply\(cells<i64\[\]>\)"):
        make("apply", state)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"groups": ((0, 1), "maximal")}, "wanted the 3 entries of a Group"),
        ({"groups": 3}, "wanted a list"),
        ({"groups": (((0,), "often", 1),)}, "wanted one of maximal"),
        ({"groups": (), "mode": "sometimes"}, "wanted one of parallel"),
        ({"groups": (), "speed": 3}, "has no field 'speed'"),
        ({"groups": (((0,), "maximal", True),)}, "wanted a int"),
        ({}, "not complete"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(values: dict[str, object], wanted: str) -> None:
    with pytest.raises(IRError, match=wanted):
        from_attributes(Derivation, values)


def test_another_program_is_no_system() -> None:
    node = make("population", **attributes(Start(())))
    assert node.type == CELLS
    program = program_of(System("t", (), (), (Group((), Bound.MAXIMAL),), Mode.PARALLEL))
    assert system_of(program).rules == ()
    broken = replace(program.skin, rules=program.skin.rules[:1])
    with pytest.raises(IRError, match="has no rule 'step'"):
        system_of(Program(broken))
