"""The builder: its examples, every kind of rule, and what it refuses."""

from __future__ import annotations

import doctest

import pytest

from echoc.compiler.ir import oracle
from echoc.compiler.ir.algebra import Bound, Guard, Inner, Mode, Result, Rule, Send, Target
from echoc.errors import CompileError
from echoc.membranes import builder
from echoc.membranes.builder import (
    PSystem,
    count,
    dissolve,
    inside,
    into,
    link,
    linked,
    nothing,
    out,
    part,
    spread,
    unlink,
)
from echoc.membranes.terms import Arrow, Multiset

A, B = Multiset.of("a"), Multiset.of("b")


def test_examples() -> None:
    result = doctest.testmod(builder)
    assert result.attempted > 20 and not result.failed


def test_multisets() -> None:
    P = PSystem()
    a, b = P.objects("a, b")
    x = P.indexed("x")
    assert (a * 2 + 3 * b + a).bag == (("a", 3), ("b", 3))
    assert x[1, 2].bag == (("x{1,2}", 1),) and x["i"].bag == (("x{i}", 1),)
    assert (a * 0 + nothing).bag == () and str(a * 2 + b) == "a*2 + b" and str(nothing) == "nothing"


@pytest.mark.parametrize(
    ("arrow", "rule"),
    [
        (A * 2 + B >> A + B * 3, Rule("m", (("a", 2), ("b", 1)), (("a", 1), ("b", 3)))),
        (A >> nothing, Rule("m", (("a", 1),))),
        (A >> B + out(A) + out(B), Rule("m", (("a", 1),), (("b", 1),),
                                        send=(Send(Target.OUT, (("a", 1), ("b", 1))),))),
        (A >> into("3", B) + dissolve,
         Rule("m", (("a", 1),), send=(Send(Target.IN, (("b", 1),), "3"),), dissolve=True)),
        (A >> linked("T", B), Rule("m", (("a", 1),), send=(Send(Target.LINKED, (("b", 1),), "T"),))),
        (A >> spread(A), Rule("m", (("a", 1),), send=(Send(Target.SYNAPSES, (("a", 1),)),))),
        (A >> part("T", B) + part("U"), Rule("m", (("a", 1),), divide=(("T", (("b", 1),)), ("U", ())))),
        (A >> link("T"), Rule("m", (("a", 1),), link="T")),
        (A >> unlink("T"), Rule("m", (("a", 1),), unlink="T")),
        (A + inside("h", charge=0) >> inside("h", B, 1),
         Rule("m", (("a", 1),), inner=(Inner("h", 0, (), (Result("h", 1, (("b", 1),)),)),))),
        (inside("h", A) >> B, Rule("m", (), (("b", 1),), inner=(Inner("h", None, (("a", 1),)),))),
        (inside("h", A) >> inside("h", keeps=[A, B]) + inside("g", keeps=[]),
         Rule("m", inner=(Inner("h", None, (("a", 1),), (Result("h", keeps=frozenset("ab")),
                                                        Result("g", keeps=frozenset()))),))),
        (inside("h", A) + inside("g", B) >> inside("h", B) + inside("g", A),
         Rule("m", inner=(Inner("h", None, (("a", 1),), (Result("h", None, (("b", 1),)),)),
                          Inner("g", None, (("b", 1),), (Result("g", None, (("a", 1),)),))))),
    ],
)  # fmt: skip
def test_arrows(arrow: Arrow, rule: Rule) -> None:
    assert arrow.rule("m") == rule


def test_everything_else_of_a_rule() -> None:
    P = PSystem("all")
    a, b = P.objects("a b")
    P.structure("+[ []'in ]'skin")
    when = (count(a) >= 2) & (count(b) < 3) | ~(count(b) == 0)
    P.rule("skin", a >> b, charge=1, becomes=-1, when=when, promoters=b, inhibitors=a * 3, priority=2, probability=0.5)
    P.rule(inside("in", a) >> inside("in", b))
    with P.block(Bound.MINIMAL):
        P.rule("in", a >> b)
    P.rule("in", b >> a)
    system = P.system()
    rule = system.rules[0]
    assert (rule.charge, rule.new_charge, rule.priority, rule.probability) == (1, -1, 2, 0.5)
    assert (rule.promoters, rule.inhibitors) == ((("b", 1),), (("a", 3),))
    both = Guard("all", parts=(Guard("ge", "a", 2), Guard("lt", "b", 3)))
    assert rule.guard == Guard("any", parts=(both, Guard("not", parts=(Guard("eq", "b", 0),))))
    assert system.rules[1].label is None and system.rules[1].home == "in"
    assert [(g.rules, g.bound) for g in system.groups] == [
        ((0, 1), Bound.MAXIMAL), ((2,), Bound.MINIMAL), ((3,), Bound.MAXIMAL),
    ]  # fmt: skip
    assert [(c.label, c.parent, c.charge) for c in system.cells] == [("skin", None, 1), ("in", 0, 0)]


def test_a_spiking_system() -> None:
    P = PSystem("spikes")
    (a,) = P.objects("a")
    first, second = P.cell("n1", a * 3), P.cell("n2")
    P.synapse(first, second)
    with P.at_most(1):
        P.rule("n1", a * 2 >> spread(a), when=count(a) >= 3)
    end = oracle.run(P.system(), None, 0)
    assert [dict(c.objects) for c in end.cells.values()] == [{"a": 1}, {"a": 1}]


def test_loose_rules_of_an_ordered_system_stay_apart_by_membrane() -> None:
    P = PSystem(mode=Mode.ORDERED)
    P.cell("s", A), P.cell("t", B)
    P.rule("s", A >> B)
    P.rule("s", B >> A)
    P.rule("t", B >> A)
    assert [g.rules for g in P.system().groups] == [(0, 1), (2,)]


def test_refusals() -> None:
    P = PSystem("no")
    P.structure("[]'1")
    with pytest.raises(CompileError, match="has membranes already"):
        P.structure("[]'1")
    with pytest.raises(CompileError, match="no membrane '2' to start with a; found 1"):
        P.start("2", A)
    with pytest.raises(CompileError, match="no membrane 7"):
        P.cell("x", parent=7)
    with pytest.raises(CompileError, match="no membrane holds it"):
        P.rule(A >> B)
    with pytest.raises(CompileError, match="without an arrow"):
        P.rule("1")
    with pytest.raises(CompileError, match="has targets"):
        P.rule("1", out(A) >> B)
    with pytest.raises(CompileError, match="comes out of none"):
        P.rule("1", A >> inside("h"))
    with pytest.raises(CompileError, match="2 membranes on the left and 1"):
        P.rule("1", inside("g") + inside("h") >> inside("g"))
    with pytest.raises(CompileError, match="multiplicity"):
        A * -1
    with pytest.raises(CompileError, match="single object"):
        count(A + B)
    with pytest.raises(CompileError, match="not a side of a rule"):
        A >> "b"  # type: ignore[operator]
    with pytest.raises(CompileError, match="no object is named"):
        P.objects(" ")
    with pytest.raises(CompileError, match="block within a block"), P.at_most(1), P.choice():
        pass
    P.rule("absent", A >> B)
    with pytest.raises(CompileError, match="absent"):
        P.system()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'\\[\\]' and a label"), ("[", "'\\]' and a label"), ("[]", "unexpected character"), ("[]'", "the label"),
        ("[]'1 []'2", "a second skin"), ("]'1", "expected '\\['"), ("[" * 300, "nested more than"),
        ("[]'1 x", "found 'x'"),
    ],
)  # fmt: skip
def test_structures_that_are_none(text: str, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        PSystem().structure(text)
