"""P systems written in Python as on paper.

Doubling, with a membrane that dissolves after it has sent everything out:

>>> P = PSystem("doubling")
>>> a, b = P.objects("a b")
>>> P.structure("[ []'2 ]'1")
>>> P.start("2", a * 3 + b)
>>> P.rule("2", a >> out(a * 2))
>>> P.rule("2", b >> dissolve)
>>> system = P.system()
>>> from echoc.compiler.ir import oracle
>>> end = oracle.run(system, None, seed=0)
>>> end.step, dict(end.cells[0].objects), len(end.cells)
(1, {'a': 6}, 1)

Active membranes: `inside` is a membrane within the one that holds the rule, left and right of the arrow. Two of them on
the right divide it:

>>> P = PSystem("subsets")
>>> x, left = P.indexed("x"), P.indexed("left")
>>> P.structure("[ []'2 ]'1")
>>> P.start("2", left[1] + left[2])
>>> with P.at_most(1):
...     for i in (1, 2):
...         P.rule(inside("2", left[i]) >> inside("2", x[i]) + inside("2"))
>>> end = oracle.run(P.system(), None, seed=0)
>>> sorted(" ".join(c.objects) for c in end.cells.values() if c.label == "2")
['', 'x{1}', 'x{1} x{2}', 'x{2}']

A chemical system, its rates in events per unit of time:

>>> P = PSystem("decay", mode=Mode.GILLESPIE)
>>> m, = P.objects("m")
>>> P.structure("[]'cell")
>>> P.start("cell", m * 20)
>>> P.rule("cell", m >> nothing, rate=0.1)
>>> oracle.run(P.system(), None, seed=1).step
20

A kernel P system: cells, links, guards and blocks.

>>> P = PSystem("relay", mode=Mode.ORDERED)
>>> a, = P.objects("a")
>>> source, sink = P.cell("Source", a * 3), P.cell("Sink")
>>> P.link(source, sink)
>>> with P.choice():
...     P.rule("Source", a * 2 >> linked("Sink", a), when=count(a) >= 2)
...     P.rule("Source", a >> nothing, when=count(a) == 1)
>>> end = oracle.run(P.system(), None, seed=0)
>>> [dict(cell.objects) for cell in end.cells.values()]
[{}, {'a': 1}]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from echoc.compiler.ir.algebra import Bound, Cell, Group, Mode, Priority, Rule, System
from echoc.compiler.ir.expression import Expression
from echoc.errors import CompileError

from .blocks import completed
from .structure import parse_structure
from .terms import (
    Arrow,
    Condition,
    Indexed,
    Multiset,
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
from .validate import validate

__all__ = [
    "Mode", "PSystem", "Priority", "count", "dissolve", "inside", "into", "link", "linked", "nothing", "out", "part",
    "spread", "unlink",
]  # fmt: skip


class PSystem:
    """Collects membranes, objects and rules; `system` gives the checked System.

    model: what the system says it is, for messages. mode, priority: see the algebra.
    """

    def __init__(
        self, name: str = "", *, model: str = "built", mode: Mode = Mode.PARALLEL, priority: Priority = Priority.STRONG
    ) -> None:
        self.name, self.model, self.mode, self.priority = name, model, mode, priority
        self._cells: list[Cell] = []
        self._links: dict[tuple[int, int], None] = {}
        self._rules: list[Rule] = []
        self._groups: list[Group] = []
        self._open: list[int] | None = None  # rules of the block that is being written
        self._environment = nothing
        self._unbounded: set[str] = set()

    # objects

    def objects(self, names: str) -> tuple[Multiset, ...]:
        """One object for each name of a list such as `"a b c"`."""
        found = tuple(Multiset.of(name) for name in names.replace(",", " ").split())
        if not found:
            raise CompileError(f"no object is named in {names!r}; wanted names such as 'a b c'")
        return found

    def indexed(self, name: str) -> Indexed:
        """A family of objects: `x[1, 2]` is the object `x{1,2}`."""
        return Indexed(name)

    # membranes

    def structure(self, text: str) -> None:
        """The membranes, as in P-Lingua: `[ []'2 +[]'3 ]'1`, a charge before the bracket.

        Raises SourceError for anything else, CompileError if there are membranes already.
        """
        if self._cells:
            raise CompileError(f"{self.name or 'the system'} has membranes already; write one structure")
        self._cells = parse_structure(text)

    def cell(self, label: str, objects: Multiset | None = None, *, parent: int | None = None, name: str = "",
             charge: int = 0) -> int:  # fmt: skip
        """One more membrane, inside `parent`; returns its number, for `link` and as a parent."""
        if parent is not None and not 0 <= parent < len(self._cells):
            raise CompileError(f"there is no membrane {parent} for {label} to be in; found {len(self._cells)}")
        self._cells.append(Cell(label, parent, (objects or nothing).bag, charge, name))
        return len(self._cells) - 1

    def link(self, first: int, *others: int) -> None:
        """Links cells in a chain, both ways."""
        for other in others:
            self._links[first, other] = self._links[other, first] = None
            first = other

    def synapse(self, source: int, *targets: int) -> None:
        """Links from one cell to others, one way."""
        self._links.update(((source, target), None) for target in targets)

    def start(self, label: str, objects: Multiset) -> None:
        """Objects at the start, in every membrane of a label, besides those given before."""
        found = [i for i, cell in enumerate(self._cells) if cell.label == label]
        if not found:
            labels = ", ".join(sorted({cell.label for cell in self._cells})) or "none"
            raise CompileError(f"there is no membrane {label!r} to start with {objects}; found {labels}")
        for i in found:
            cell = self._cells[i]
            self._cells[i] = replace(cell, objects=(Multiset(dict(cell.objects)) + objects).bag)

    def environment(self, objects: Multiset) -> None:
        """Objects outside the skin at the start."""
        self._environment = Multiset(dict(self._environment.counts)) + objects

    def unlimited(self, objects: Multiset) -> None:
        """Objects that the skin holds in unlimited supply."""
        self._unbounded |= set(objects.counts)

    # rules

    def rule(
        self,
        label: str | Arrow | None,
        arrow: Arrow | None = None,
        *,
        charge: int | None = None,
        becomes: int | None = None,
        when: Condition | None = None,
        promoters: Multiset = nothing,
        inhibitors: Multiset = nothing,
        priority: int | None = None,
        probability: float | None = None,
        rate: float | Expression | None = None,
        delay: int = 0,
    ) -> None:
        """A rule `left >> right` of the membranes with a label; without a label, of whatever is around its `inside`.

        charge: what the membrane needs; becomes: its charge afterwards. when: a condition on its objects.
        The rest is as in the algebra's Rule. Raises CompileError for an arrow that makes no rule.
        """
        if isinstance(label, Arrow):
            label, arrow = None, label
        if arrow is None:
            raise CompileError(f"a rule of {label!r} without an arrow; wanted left >> right")
        rule = replace(
            arrow.rule(label), charge=charge, new_charge=becomes, guard=None if when is None else when.guard,
            promoters=promoters.bag, inhibitors=inhibitors.bag, priority=priority, probability=probability, rate=rate,
            delay=delay,
        )  # fmt: skip
        self._rules.append(rule)
        index = len(self._rules) - 1
        if self._open is not None:
            self._open.append(index)
        elif self._groups and self._joins(self._groups[-1], rule):
            last = self._groups[-1]
            self._groups[-1] = replace(last, rules=(*last.rules, index))
        else:
            self._groups.append(Group((index,)))

    def _joins(self, group: Group, rule: Rule) -> bool:
        """Whether a rule outside a block goes on with the group before it."""
        same = self.mode is not Mode.ORDERED or self._rules[group.rules[0]].home == rule.home
        return same and group.bound is Bound.MAXIMAL

    @contextmanager
    def block(self, bound: Bound, limit: int = 1) -> Iterator[None]:
        """The rules written within are applied together under a bound."""
        if self._open is not None:
            raise CompileError("a block within a block; close the first one")
        self._open = []
        try:
            yield
            if self._open:
                self._groups.append(Group(tuple(self._open), bound, limit))
        finally:
            self._open = None

    def at_most(self, limit: int) -> AbstractContextManager[None]:
        """At most so many applications of the block's rules in a membrane and step."""
        return self.block(Bound.AT_MOST, limit)

    def choice(self) -> AbstractContextManager[None]:
        """One of the block's rules, once."""
        return self.block(Bound.CHOICE)

    def sequence(self) -> AbstractContextManager[None]:
        """The block's rules in order, each once, up to the first that is not applicable."""
        return self.block(Bound.SEQUENCE)

    def arbitrary(self) -> AbstractContextManager[None]:
        """Any number of applications of the block's rules."""
        return self.block(Bound.ARBITRARY)

    # result

    def system(self, *, allow_substochastic: bool = False) -> System:
        """The system, checked. Raises InvalidSystem (a CompileError) that lists everything that is wrong with it.

        allow_substochastic: in mode DCBA, accept blocks of rules whose probabilities add up to less than 1: what they
        fall short of is the probability that nothing happens.
        """
        system = System(
            self.model, tuple(self._cells), tuple(self._rules), tuple(self._groups), self.mode, self.priority,
            tuple(self._links), frozenset(self._unbounded), self._environment.bag, self.name,
        )  # fmt: skip
        if allow_substochastic and self.mode is Mode.DCBA:
            system, _ = completed(system)
        return validate(system)
