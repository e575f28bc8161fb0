"""Rules and configurations in the field's notation."""

import pytest
from random_systems import FAMILIES, random_system

from echoc.compiler.ir.algebra import Bound, Cell, Group, Guard, Inner, Mode, Result, Rule, Send, System, Target, bag
from echoc.compiler.ir.expression import call, name, number
from echoc.membranes.view.frames import header_of, interpreted
from echoc.membranes.view.notation import rule_text, system_text
from echoc.membranes.view.text import configuration_text, frame_text
from echoc.membranes.view.trace import Frame, Membrane

A, B = bag("a"), bag("b")
SEVERAL = (Result("2", 1, B), Result("3", -1))
RULES = [
    (Rule("h", A, bag({"b": 2})), "[a --> b*2]'h"),
    (Rule("h", A, charge=1), "+[a --> #]'h"),
    (Rule("h", A, B, charge=1, new_charge=-1), "+[a]'h --> -[b]'h"),
    (Rule("h", A, B, dissolve=True, priority=3), "(3) [a --> b, @d]'h"),
    (Rule("h", A, send=(Send(Target.OUT, B),)), "[a]'h --> b []'h"),
    (Rule("h", A, B, send=(Send(Target.IN, bag("c"), "k"),)), "[a --> b, (c; in k)]'h"),
    (Rule("h", A, send=(Send(Target.LINKED, B, "t"),)), "[a --> {b} (t)]'h"),
    (Rule("h", A, send=(Send(Target.SYNAPSES, A),), delay=2), "[a --> (a; synapses)]'h delay 2"),
    (Rule(None, inner=(Inner("2", 0, A, SEVERAL),)), "[a]'2 --> +[b]'2 -[]'3"),
    (Rule(None, A, inner=(Inner("2", 0, (), (Result("2", 1, B),)),)), "a []'2 --> +[b]'2"),
    (Rule(None, (), B, inner=(Inner("2", 1, A),)), "+[a]'2 --> b"),
    (Rule("1", A, B, inner=(Inner("2", None, A, (Result("2"),)),)), "[a [a]'2 --> b []'2]'1"),
    (Rule(None, inner=(Inner("2", 0, A, (Result("2", keeps=frozenset("xy")),)),)), "[a]'2 --> [keeps {x, y}]'2"),
    (Rule("h", A, divide=(("s", A), ("t", B))), "[a]'h --> [a]'s [b]'t"),
    (Rule("h", A, link="t"), "[a --> -(t)]'h"),
    (Rule("h", A, unlink="t"), "[a --> \\-(t)]'h"),
    (Rule("h", A, B, probability=0.25), "[a --> b]'h :: 0.25"),
    (Rule("h", A, B, rate=0.1), "[a --> b]'h rate 0.1"),
    (Rule("h", A, B, rate=call("mul", number(2), call("add", name("a"), name("k")))), "[a --> b]'h rate 2 * (a + k)"),
    (Rule("h", A, B, promoters=bag({"p": 2}), inhibitors=bag("q")), "[a --> b]'h | p*2, !q"),
    (Rule("h", A, B, guard=Guard("ge", "a", 2)), ">= 2a : [a --> b]'h"),
    (
        Rule("h", A, guard=Guard("any", parts=(Guard("not", parts=(Guard("eq", "b", 1),)), Guard("lt", "a", 4)))),
        "!(= b) | < 4a : [a --> #]'h",
    ),
    (
        Rule("h", A, guard=Guard("in", "a", starts=(0,), threshold=3, period=2, residues=(1,))),
        "a in {0} or >= 3 with (n - 3) mod 2 in {1} : [a --> #]'h",
    ),
    (Rule("h\x1b[2J", bag(["a\n"])), "[a\\u000a --> #]'h\\u001b[2J"),
]


@pytest.mark.parametrize(("rule", "text"), RULES, ids=[text[:30] for _, text in RULES])
def test_rules(rule: Rule, text: str) -> None:
    assert rule_text(rule) == text


def test_a_guard_deeper_than_any_stack_is_cut() -> None:
    guard = Guard("eq", "a", 1)
    for _ in range(100_000):
        guard = Guard("not", parts=(guard,))
    assert "..." in rule_text(Rule("h", A, guard=guard))
    while guard.parts:  # taken apart from outside, so that freeing it needs no stack either
        guard = guard.parts[0]


def skin(*inner: Membrane) -> Frame:
    return Frame(3, (Membrane(0, "1", 0, None, {"c": 10, "d{29}": 64}), *inner))


def test_equal_membranes_are_grouped() -> None:
    inner = [Membrane(i, "2", 1, 0, {"x": 1}) for i in range(1, 65)] + [Membrane(99, "2", -1, 0)]
    assert configuration_text(skin(*inner), 80) == "[ c*10, d{29}*64 +[ x ]'2 ×64 -[ ]'2 ]'1"
    assert configuration_text(skin(*inner), 24) == "[ c*10, d{29}*64\n  +[ x ]'2 ×64\n  -[ ]'2\n]'1"


def test_long_contents_fold_at_the_width() -> None:
    text = configuration_text(Frame(0, (Membrane(0, "1", objects={f"o{i}": 1 for i in range(100)}),)), 60)
    assert max(map(len, text.splitlines())) <= 61 and text.count("o") == 100


def test_a_graph() -> None:
    cells = (Membrane(0, "Type", objects={"a": 2, "b": 1}, name="m"), Membrane(1, "Other"), Membrane(2, "Free"))
    frame = Frame(0, (*cells, Membrane(3, "Free")), links=((0, 1),))
    assert configuration_text(frame, 80) == "m (Type) {2a, b} -> Other#1\nOther#1 (Other) {}\n(Free) {} ×2"


def test_nesting_deeper_than_any_stack() -> None:
    depth = 20_000
    chain = tuple(Membrane(i, "m", 0, i - 1 if i else None, {"a": i + 1}) for i in range(depth))
    text = configuration_text(Frame(0, chain), 80)
    assert "... 18000 more membranes" in text and "[ a\n" in text


def test_a_run_of_the_interpreter() -> None:
    rules = (Rule(None, inner=(Inner("2", 0, A, (Result("2", 1), Result("2", -1, B))),)), Rule("2", B, A, charge=-1))
    cells = (Cell("1"), Cell("2", 0, A))
    system = System("active", cells, rules, (Group((0,), Bound.AT_MOST), Group((1,))), name="split")
    frames = list(interpreted(system, None))
    header = header_of(system)
    assert header.rules == ("[a]'2 --> +[]'2 -[b]'2", "-[b --> a]'2") and header.labels == ("1", "2")
    last = frame_text(frames[-1], header.rules, 60)
    assert last == "  1 × -[b --> a]'2\nConfiguration 2, 3 membranes\n[ +[ ]'2 -[ a ]'2 ]'1"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_system_has_a_text(family: str) -> None:
    for seed in range(15):
        system = random_system(seed, family)
        lines = system_text(system).splitlines()
        assert all(f"  {rule_text(rule)}" in lines for rule in system.rules)


def test_blocks_of_a_kernel_system_stand_in_order() -> None:
    rules = (Rule("T", A, B), Rule("T", B, promoters=A, inhibitors=bag({"c": 2})))
    groups = (Group((0,), Bound.CHOICE), Group((1,), Bound.SEQUENCE))
    system = System("kernel", (Cell("T", None, A),), rules, groups, Mode.ORDERED, name="two")
    assert system_text(system) == (
        "two (kernel): ordered, strong priorities\n[ a ]'T\n1. choice:\n  [a --> b]'T\n2. sequence:\n"
        "  [b --> #]'T | a, !c*2"
    )
