"""The rule algebra: every P system is rules of one shape, a start configuration and a derivation mode, as data.

A membrane model (transition, active membranes, tissue, population dynamics, spiking, kernel, chemical) is a choice of
rule shapes and a mode; nothing below knows a model by its name. Numerical P systems rewrite real numbers and stand in
`membranes/numerical.py`.

The meaning of one step, which the interpreter of `compiler/ir/oracle/` spells out and every compiled program follows:

1. *Choose*: a multiset of rule applications over the configuration as it is at the start of the step, as the mode says.
   An application is a rule with the membranes it binds. It needs its charges, guard, promoters and inhibitors on the
   starting configuration, a membrane to choose for every target, and its consumed objects from what other applications
   have left. A rule of probability 0 is never applicable; one that takes nothing that runs out must be bounded.
2. *Apply*: consumed objects vanish, then products appear where their targets say: no product is seen within the step.
3. *Charges*: applications of one step agree on the charge, and the new label, that each membrane gets; one that would
   contradict an application already chosen is not applicable any more. `None` asks for no charge and contradicts none.
4. *Structure*, with the products of the step in place: first divisions, innermost first (the whole content but the
   consumed objects goes to every part, children and links are copied with it; a separation deals the content out by
   `Result.keeps`), then dissolutions, innermost first: content and children go to the membrane around.
   A membrane divides, or dissolves as an `Inner` without results, by one application a step; `dissolve` may be asked
   for by many and happens once (but in mode ORDERED, see there).

The cells of a tree have a *skin*: no `Inner` with other than one result binds it, and `dissolve` leaves it where it is.
Cells without parents of mode ORDERED, with links, or more than one of them, are a *graph*: none is a skin, `out` leads
to the environment, and a cell that dissolves takes its content and links with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from .expression import Expression
from .records import quick

Bag = tuple[tuple[str, int], ...]
"""A multiset: (object, count) pairs, sorted by object, counts at least 1. Made by `bag`."""


def bag(objects: Mapping[str, int] | Iterable[str | tuple[str, int]] = ()) -> Bag:
    """The multiset of a mapping or of objects and (object, count) pairs; zero counts vanish.

    Raises ValueError for a negative count.
    """
    counts: dict[str, int] = {}
    items = objects.items() if isinstance(objects, Mapping) else objects
    for item in items:
        key, count = (item, 1) if isinstance(item, str) else item
        counts[key] = counts.get(key, 0) + count
    for key, count in counts.items():
        if count < 0:
            raise ValueError(f"the object {key} has the negative multiplicity {count}")
    return tuple(sorted((k, c) for k, c in counts.items() if c))


@dataclass(frozen=True, slots=True)
class Where:
    """Where a rule or cell was written, for messages. Lines and columns count from 1."""

    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition on the multiset of the membrane that holds the rule, at the start of the step.

    `op`: `ge`, `gt`, `le`, `lt`, `eq`, `ne` compare the count of `object` with `count`;
    `all`, `any`, `not` combine `parts`; `in` holds when the count of `object` is in an ultimately periodic set:
    `count in starts` below `threshold`, and (count - threshold) % period in `residues` from there on (every regular
    expression over one letter is such a set: Parikh).
    """

    op: str
    object: str = ""
    count: int = 0
    parts: tuple[Guard, ...] = ()
    starts: tuple[int, ...] = ()
    threshold: int = 0
    period: int = 1
    residues: tuple[int, ...] = ()


@quick
@dataclass(frozen=True, slots=True)
class Result:
    """One membrane that comes out of an inner membrane. `charge` None: as it was. `keeps`: for separation, the objects
    of the old content that go here (None: all of it, as in division and where the membrane simply stays)."""

    label: str
    charge: int | None = None
    produce: Bag = ()
    keeps: frozenset[str] | None = None


@quick
@dataclass(frozen=True, slots=True)
class Inner:
    """A child membrane that a rule binds: it has `label` and `charge` (None: any) and loses `consume`.

    `results`: () it dissolves into the membrane around it, one: it stays (perhaps with another label, charge, more
    objects), two or more: it divides or separates.
    """

    label: str
    charge: int | None = None
    consume: Bag = ()
    results: tuple[Result, ...] = ()


class Target(StrEnum):
    """Where a product goes, seen from the membrane that holds the rule."""

    OUT = "out"  # the membrane around it; the environment from the skin
    IN = "in"  # a child with `label`, chosen uniformly for every application
    LINKED = "linked"  # a linked cell with `label`, chosen uniformly once per rule, holder and step (kernel P systems)
    SYNAPSES = "synapses"  # every cell that a directed link leads to gets all of them (spiking)


@dataclass(frozen=True, slots=True)
class Send:
    """Products for another membrane than the one that holds the rule."""

    target: Target
    objects: Bag
    label: str = ""


@quick
@dataclass(frozen=True, slots=True)
class Rule:
    """A rewriting rule.

    label: the membrane that holds it, or None for whatever stands around `inner` (the environment, if that is the
        skin). Its *subjects* are the inner membranes, or that membrane where there are none.
    charge: the charge that it needs; None: any.
    consume, produce: objects taken from it and placed in it.
    inner: child membranes that it binds, all different, each by itself an application's choice.
    new_charge: the charge of the membrane afterwards; None: not touched.
    dissolve: the membrane dissolves at the end of the step.
    send: products for elsewhere.
    guard, promoters, inhibitors: on the membrane that holds it; promoters must be there in these counts, an inhibitor
        (object, n) blocks when at least n are there.
    priority: smaller goes first (P-Lingua writes it in front); None: no relation to any other rule.
    probability: of population dynamics, or the weight with which it is chosen among those applicable; None: 1.
    rate: stochastic rate constant c (propensity c * h, h the number of distinct reactant combinations) or a rate law
        over object names (counts of the membrane) and parameters already put in as numbers; for mode GILLESPIE.
    delay: steps for which the cell is closed before the products, `produce` and `send`, leave (spiking). A rule of step
        t with delay d: in steps t to t + d - 1 what is sent to the cell is lost; in step t + d its products leave and
        it receives, but applies no rule before step t + d + 1.
    divide: for kernel P systems, parts ((label, products), ...) that replace the membrane.
    link, unlink: for kernel P systems, a label: make a link to one other cell of that label not linked yet, or cut one,
        both ways, chosen uniformly.
    where: the source.
    """

    label: str | None
    consume: Bag = ()
    produce: Bag = ()
    inner: tuple[Inner, ...] = ()
    charge: int | None = None
    new_charge: int | None = None
    dissolve: bool = False
    send: tuple[Send, ...] = ()
    guard: Guard | None = None
    promoters: Bag = ()
    inhibitors: Bag = ()
    priority: int | None = None
    probability: float | None = None
    rate: float | Expression | None = None
    delay: int = 0
    divide: tuple[tuple[str, Bag], ...] = ()
    link: str | None = None
    unlink: str | None = None
    where: Where = field(default=Where(), compare=False)

    @property
    def home(self) -> str:
        """The label by which priorities and groups find it: `label`, or that of the first inner membrane."""
        return self.label if self.label is not None else self.inner[0].label


class Bound(StrEnum):
    """How the rules of a group are applied in one membrane in one step (counted in the rule's subjects).

    "Any number": a binding or a stop is drawn, all equally likely, until the stop; before what other bounds ask for.
    """

    MAXIMAL = "maximal"  # as often as possible (maximally parallel)
    AT_MOST = "at_most"  # at most `limit` applications per subject membrane, and that many if possible
    MINIMAL = "minimal"  # minimally parallel: at least one application of the group if one is possible, any number more
    SEQUENCE = "sequence"  # rules one after another, each once, up to the first that is not applicable
    CHOICE = "choice"  # exactly one rule, once, if any is applicable
    ARBITRARY = "arbitrary"  # any number of applications, possibly none


@dataclass(frozen=True, slots=True)
class Group:
    """Rules (indices into System.rules) that are applied together under one bound."""

    rules: tuple[int, ...]
    bound: Bound = Bound.MAXIMAL
    limit: int = 1


class Mode(StrEnum):
    """The derivation mode: how a step chooses.

    PARALLEL: groups compete for objects and are maximal together: applications are drawn one at a time, uniformly
        (weighted by `probability`, not by counts) among all (rule, holder, inner membranes) that are applicable then,
        until none is; targets are drawn afterwards.
    ORDERED: in each membrane the groups run in order, each on what the ones before left (kernel P systems); if a group
        replaces the membrane (dissolution, division), or is a SEQUENCE that stops before its last rule, the later ones
        do not run there. A membrane has one division, dissolution or change of links a step.
    SEQUENTIAL: one application in the whole system a step, drawn likewise.
    DCBA: population dynamics by direct distribution over consistent blocks (Martinez-del-Amor et al. 2012); bounds do
        not count, probabilities are relative to their sum in a block.
    GILLESPIE: one reaction at a time in continuous time by the direct method (Gillespie 1977); a step is one event;
        bounds do not count. A moment at which a trigger changes by itself (`Event`) is a step without an application.
    """

    PARALLEL = "parallel"
    ORDERED = "ordered"
    SEQUENTIAL = "sequential"
    DCBA = "dcba"
    GILLESPIE = "gillespie"


class Priority(StrEnum):
    """Between rules with a number and the same home: their holder, or the first inner membrane where `label` is None.

    STRONG: a rule is barred for the step when one with a smaller number is applicable there, taken alone, at its start.
    WEAK: it gets what the ones with smaller numbers left."""

    STRONG = "strong"
    WEAK = "weak"


@dataclass(frozen=True, slots=True)
class Cell:
    """A membrane of the start configuration. `parent` is the index of the membrane around it, before it in the list;
    None for the skin, and for every cell of a graph (kernel P systems, spiking)."""

    label: str
    parent: int | None = None
    objects: Bag = ()
    charge: int = 0
    name: str = ""
    where: Where = field(default=Where(), compare=False)


@dataclass(frozen=True, slots=True)
class Event:
    """A sudden change in mode GILLESPIE, in every membrane with a label (SBML Level 3 Version 2 Core, section 4.11).

    When `trigger` turns from false (0) to true, the counts become what `assignments` say, all at once, after `delay`.
    Triggers are looked at at the start, after every step, and after every event. Events that are due together happen in
    their order, with triggers looked at in between: one that is not `persistent` is dropped if its trigger turns false.

    trigger, assignments, delay: over counts of the membrane and TIME. Time stands in a trigger only in comparisons that
        are linear in it, so that the moments at which it turns can be solved for (`moments.py`).
    holds: whether the trigger counts as true before the start.
    early: whether assignments are evaluated when the trigger turns, rather than when the event happens.
    delay: evaluated when the trigger turns; a trigger may turn again meanwhile, PENDING times. None: none.
    """

    label: str
    trigger: Expression
    assignments: tuple[tuple[str, Expression], ...] = ()
    holds: bool = True
    persistent: bool = True
    early: bool = True
    name: str = ""
    where: Where = field(default=Where(), compare=False)
    delay: Expression | None = None


PENDING = 64
"""How often an event may be waiting for its delay in one membrane."""


@dataclass(frozen=True, slots=True)
class System:
    """A P system. `validate` (validate.py) checks it; front ends and builders call it.

    cells: the start configuration, parents first.
    groups: every rule is in exactly one.
    links: (from, to) pairs of cells. Undirected ones are there in both directions.
    unbounded: objects that the skin's multiset holds in unlimited supply (the environment of tissue P systems); they
        are not counted there.
    environment: what is outside the skin at the start.
    features: whatever else the source says of itself, as text.
    events: of mode GILLESPIE.
    """

    model: str
    cells: tuple[Cell, ...]
    rules: tuple[Rule, ...]
    groups: tuple[Group, ...]
    mode: Mode = Mode.PARALLEL
    priority: Priority = Priority.STRONG
    links: tuple[tuple[int, int], ...] = ()
    unbounded: frozenset[str] = frozenset()
    environment: Bag = ()
    name: str = ""
    features: Mapping[str, str] = field(default_factory=dict)
    events: tuple[Event, ...] = ()

    @property
    def objects(self) -> tuple[str, ...]:
        """The alphabet: every object that occurs, in order of first appearance (cells, then rules)."""
        seen: dict[str, None] = {}
        for cell in self.cells:
            seen.update((o, None) for o, _ in cell.objects)
        seen.update((o, None) for o, _ in self.environment)
        seen.update((o, None) for o in sorted(self.unbounded))
        for rule in self.rules:
            seen.update((o, None) for o in rule_objects(rule))
        for event in self.events:
            seen.update((o, None) for o, _ in event.assignments)
        return tuple(seen)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that a membrane can have, in order of first appearance."""
        seen: dict[str, None] = {cell.label: None for cell in self.cells}
        for rule in self.rules:
            for inner in rule.inner:
                seen.update((r.label, None) for r in inner.results)
            seen.update((label, None) for label, _ in rule.divide)
        return tuple(seen)


def rule_objects(rule: Rule) -> Iterable[str]:
    """Every object a rule mentions, repeats included."""
    bags = [rule.consume, rule.produce, rule.promoters, rule.inhibitors, *(s.objects for s in rule.send)]
    for inner in rule.inner:
        bags.append(inner.consume)
        bags.extend(r.produce for r in inner.results)
    bags.extend(b for _, b in rule.divide)
    for b in bags:
        yield from (o for o, _ in b)
    if rule.guard is not None:
        yield from guard_objects(rule.guard)


def guard_objects(guard: Guard) -> Iterable[str]:
    """Every object a guard looks at."""
    if guard.object:
        yield guard.object
    for part in guard.parts:
        yield from guard_objects(part)
