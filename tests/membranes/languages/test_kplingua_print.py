"""What is printed as kP-Lingua is read again as the same system."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from random_systems import random_system

from echoc.compiler.ir.algebra import Bound, Cell, Group, Guard, Mode, Priority, Rule, Send, System, Target, bag
from echoc.membranes.kplingua import __doc__ as language
from echoc.membranes.kplingua import read
from echoc.membranes.kplingua_print import FIELDS, Unprintable, show, worded

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "membranes"
DOC = "\n".join(line[4:] for line in (language or "").splitlines() if line.startswith("    "))
SEQUENCES = "type A { a -> b. max { } b -> c. choice { c -> # . } } one {a} (A). two {} (A). one - two."
GUARDS = "type A { max { >= 2a & (!b | < 3c): a -> [b](A)[2c](A). = 0b: a -> -(A). } } one {a} (A). two {} (A)."


def test_examples() -> None:
    for text in ((EXAMPLES / "vote.kpl").read_text(), SEQUENCES, GUARDS):
        system = read("x.kpl", text=text)
        assert system.rules
        assert read("x.kpl", text=show(system)) == system


def test_linked_instances_get_names() -> None:
    system = read("x.kpl", text=DOC)
    again = read("x.kpl", text=show(system))
    assert again == replace(system, cells=worded(system).cells)
    assert [c.name for c in again.cells] == ["w", "cell1", "store", "spare"]


def test_random_systems_are_read_as_they_are_or_refused() -> None:
    printed = 0
    for seed in range(60):
        system = random_system(seed, "kernel")
        try:
            text = show(system)
        except Unprintable:
            continue
        printed += 1
        again, wanted = read("x", text=text), worded(system)
        assert all(getattr(again, field) == getattr(wanted, field) for field in FIELDS), seed
    assert printed >= 3


def test_promoters_and_inhibitors_are_guards() -> None:
    rule = Rule("A", bag(["a"]), bag(["b"]), promoters=bag(["p"]), inhibitors=bag({"q": 2}))
    system = System("kernel", (Cell("A", name="one"),), (rule,), (Group((0,)),), Mode.ORDERED)
    assert "    >= 1p & < 2q: a -> b." in show(system)


CELLS = (Cell("A", name="one"), Cell("B", name="two"))


@pytest.mark.parametrize(
    ("rule", "changes", "message"),
    [
        (Rule("A", bag(["a"])), {"mode": Mode.PARALLEL}, "the mode parallel; wanted ordered"),
        (Rule("A", bag(["a"])), {"groups": (Group((0,), Bound.MINIMAL),)}, "a block that is applied by minimal"),
        (Rule("A", bag(["a"]), charge=1), {}, r"the rule \+\[a --> #\]'A: kP-Lingua cannot say it"),
        (Rule("A", bag(["a"]), priority=1), {"priority": Priority.WEAK}, r"the rule \(1\) \[a .*: kP-Lingua cannot"),
        (Rule("A", bag(["a"]), send=(Send(Target.OUT, bag(["a"])),)), {}, "the rule .* kP-Lingua cannot say it"),
        (Rule("A", bag(["a"]), guard=Guard("in", "a", period=2, residues=(0,))), {}, "the guard 'in'"),
        (Rule("A", bag(["x{1}"])), {}, "what is printed is not read: system:3:6"),
        (Rule("A", bag(["a"])), {"links": ((0, 1),)}, "the links of this system"),
    ],
)
def test_what_cannot_be_said(rule: Rule, changes: dict[str, object], message: str) -> None:
    system = replace(System("kernel", CELLS, (rule,), (Group((0,)),), Mode.ORDERED), **changes)  # type: ignore[arg-type]
    with pytest.raises(Unprintable, match=message):
        show(system)
