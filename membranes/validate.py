"""What must hold for every P system, whatever it was read from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from echoc.compiler.ir.algebra import (
    Bag,
    Bound,
    Event,
    Guard,
    Inner,
    Mode,
    Rule,
    System,
    Target,
    Where,
)
from echoc.compiler.ir.expression import TIME, names
from echoc.compiler.ir.moments import solve
from echoc.errors import CompileError

from .blocks import Blocks, blocks_of, wrong_sums
from .source import SourceText

MOST = (1 << 63) - 1
SHOWN = 20  # problems in one message


_CHARGES = (None, 0, 1, -1)
NOWHERE = Where()


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with a system, and where it was written."""

    message: str
    where: Where = NOWHERE

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if str(self.where) else self.message


class InvalidSystem(CompileError):
    """A P system that makes no sense; `problems` holds everything that was found."""

    def __init__(self, problems: Sequence[Problem], source: SourceText | None = None) -> None:
        more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        lines = [str(p) + (source.excerpt(p.where) if source is not None else "") for p in problems[:SHOWN]]
        super().__init__("\n".join(lines) + more)
        self.problems = tuple(problems)


def validate(system: System, source: SourceText | None = None) -> System:
    """The system itself, if nothing is wrong with it. `source` is the text that it was read from, for messages.

    Checked: a cell, parents before children, labels exist, groups partition the rules, the skin is neither dissolved
    nor divided, targets exist, priorities are 0 or more, probabilities in [0, 1], counts from 1 to 2^63 - 1, links in
    range, guards of known operators, events that can be solved, and that a rule which is applied as often as possible
    consumes something. Raises CompileError with every problem.
    """
    found = problems(system)
    if found:
        raise InvalidSystem(found, source)
    return system


def problems(system: System, samples: Sequence[int] | None = None, blocks: Blocks | None = None) -> list[Problem]:
    """Everything that is wrong with a system.

    samples: the numbers of rules to look at, where every other one differs from one of them only in the names of its
        objects, in counts from 1 to 2^63 - 1, in a probability from 0 to 1 and in a priority that is not negative.
    blocks: those of the rules, where they are known already.
    """
    found = [*_cells(system), *_groups(system)]
    if any(cell.parent is not None and not 0 <= cell.parent < i for i, cell in enumerate(system.cells)):
        return found
    rules = system.rules if samples is None else [system.rules[i] for i in samples]
    labels = _Labels(system, rules)
    for rule in rules:
        if not _plain(rule, labels):
            found.extend(Problem(message, rule.where) for message in _rule(rule, system, labels))
    for event in system.events:
        found.extend(Problem(message, event.where) for message in _event(event, system, labels))
    if system.mode in (Mode.PARALLEL, Mode.ORDERED, Mode.DCBA):
        found.extend(_endless(system, None if samples is None else frozenset(samples)))
    if system.mode is Mode.DCBA:
        sums = wrong_sums(system.rules, blocks or blocks_of(system.rules))
        found.extend(Problem(message, where) for message, where in sums)
    return found


def _event(event: Event, system: System, labels: _Labels) -> Iterator[str]:
    what = f"the event {event.name}".rstrip()
    if system.mode is not Mode.GILLESPIE:
        yield f"{what} in mode {system.mode}; wanted mode gillespie"
    if event.label not in labels.all:
        yield f"{what} is of the label {event.label}, which no membrane has"
    known = {*system.objects, TIME}
    formulas = [event.trigger, *(value for _, value in event.assignments), *([event.delay] if event.delay else [])]
    for name in dict.fromkeys(n for formula in formulas for n in names(formula)):
        if name not in known:
            yield f"{what} reads {name}, which is no object of the system"
    targets = [name for name, _ in event.assignments]
    if len(set(targets)) < len(targets):
        yield f"{what} sets an object twice"
    try:
        solve(event.trigger)
    except CompileError as error:
        yield f"the trigger of {what}: {error}"


def _endless(system: System, samples: frozenset[int] | None) -> Iterator[Problem]:
    """Rules that a maximal step would apply without end, since they take nothing."""
    for group in system.groups:
        if group.bound not in (Bound.MAXIMAL, Bound.MINIMAL, Bound.ARBITRARY):
            continue
        for number in group.rules if samples is None else samples.intersection(group.rules):
            rule = system.rules[number] if 0 <= number < len(system.rules) else None
            if rule is None or rule.consume or rule.divide or rule.link or rule.unlink:
                continue
            if not any(i.consume or len(i.results) != 1 for i in rule.inner):
                yield Problem("the rule consumes nothing, so a step would apply it without end", rule.where)


class _Labels:
    """Which labels there can be, and which only the skin has."""

    def __init__(self, system: System, rules: Sequence[Rule]) -> None:
        self.all = _reached(rules, {cell.label for cell in system.cells})
        inside = _reached(rules, {cell.label for cell in system.cells if cell.parent is not None})
        roots = {cell.label for cell in system.cells if cell.parent is None}
        self.rates = system.mode is Mode.GILLESPIE
        self.only_skin = frozenset() if sum(c.parent is None for c in system.cells) > 1 else roots - inside
        self.safe = self.all - self.only_skin


def _reached(rules: Sequence[Rule], start: set[str]) -> frozenset[str]:
    """The labels that membranes with the labels `start` can come to have."""
    edges: dict[str, set[str]] = {}
    for rule in rules:
        for inner in rule.inner:
            for result in inner.results:
                if result.label != inner.label:
                    edges.setdefault(inner.label, set()).add(result.label)
        if rule.label is not None and rule.divide:
            edges.setdefault(rule.label, set()).update(label for label, _ in rule.divide)
    found, queue = set(start), list(start)
    while queue:
        new = edges.get(queue.pop(), set()) - found
        found |= new
        queue.extend(new)
    return frozenset(found)


def _cells(system: System) -> Iterator[Problem]:
    if not system.cells:
        yield Problem("a system without membranes; wanted one at least")
    for i, cell in enumerate(system.cells):
        if cell.parent is not None and not 0 <= cell.parent < i:
            yield Problem(f"the parent of cell {i} is {cell.parent}; wanted a cell before it", cell.where)
        if cell.charge not in (-1, 0, 1):
            yield Problem(f"the charge {cell.charge} of cell {i}; wanted -1, 0 or 1", cell.where)
        for message in _bag(cell.objects):
            yield Problem(message, cell.where)
    for message in _bag(system.environment):
        yield Problem(message)
    for a, b in system.links:
        if not (0 <= a < len(system.cells) and 0 <= b < len(system.cells)):
            yield Problem(f"the link ({a}, {b}); there are {len(system.cells)} cells")


def _bag(bag: Bag) -> Iterator[str]:
    for name, count in bag:
        if not 1 <= count <= MOST:
            yield f"the multiplicity {count} of {name}; wanted 1 to 2^63 - 1"


def _groups(system: System) -> Iterator[Problem]:
    for group in system.groups:
        if group.bound is Bound.AT_MOST and group.limit < 1:
            yield Problem(f"a group with the limit {group.limit}; wanted 1 or more")
    numbers = [rule for group in system.groups for rule in group.rules]
    if len(numbers) == len(system.rules) and set(numbers) == set(range(len(numbers))):
        return
    seen = [0] * len(system.rules)
    for group in system.groups:
        for rule in group.rules:
            if 0 <= rule < len(seen):
                seen[rule] += 1
            else:
                yield Problem(f"a group names the rule {rule}; there are {len(seen)}")
    for i, count in enumerate(seen):
        if count != 1:
            yield Problem(f"rule {i} is in {count} groups; wanted one", system.rules[i].where)


def _plain(rule: Rule, labels: _Labels) -> bool:
    """Whether nothing can be wrong with a rule, seen quickly: most rules of large systems are of this kind."""
    if (
        rule.send
        or rule.divide
        or rule.guard
        or rule.rate is not None
        or rule.dissolve
        or rule.label in labels.only_skin
    ):
        return False
    if rule.label is not None and rule.label not in labels.safe:
        return False
    bags = [rule.consume, rule.produce, rule.promoters, rule.inhibitors]
    charges = [rule.charge, rule.new_charge]
    for inner in rule.inner:
        if inner.label not in labels.safe:
            return False
        bags.append(inner.consume)
        charges.append(inner.charge)
        for result in inner.results:
            bags.append(result.produce)
            charges.append(result.charge)
    p = rule.probability
    return (
        (rule.label is not None or bool(rule.inner))
        and not [1 for bag in bags for _, count in bag if not 1 <= count <= MOST]
        and not [1 for c in charges if c not in _CHARGES]
        and (p is None or 0 <= p <= 1)
        and (rule.priority is None or rule.priority >= 0)
        and rule.delay == 0
        and not labels.rates
    )


def _rule(rule: Rule, system: System, labels: _Labels) -> Iterator[str]:
    if rule.label is None and not rule.inner:
        yield "a rule that is held by no membrane and binds none"
    if rule.label is not None and rule.label not in labels.all:
        yield f"the rule is of the label {rule.label}, which no membrane has"
    for inner in rule.inner:
        yield from _inner(inner, rule, labels)
    if rule.dissolve and rule.label in labels.only_skin:
        yield f"the rule dissolves {rule.label}, the skin; the skin never dissolves"
    if rule.divide and rule.label in labels.only_skin:
        yield f"the rule divides {rule.label}, the skin; the skin never divides"
    for send in rule.send:
        if send.target in (Target.IN, Target.LINKED) and send.label not in labels.all:
            yield f"the rule sends objects into {send.label}, which no membrane has as its label"
    for label, _ in rule.divide:
        if not label:
            yield "a part of a division without a label"
    yield from _numbers(rule, system)
    for bag in _bags(rule):
        yield from _bag(bag)
    if rule.guard is not None:
        yield from _guard(rule.guard)


def _inner(inner: Inner, rule: Rule, labels: _Labels) -> Iterator[str]:
    if inner.label not in labels.all:
        yield f"the rule needs a membrane with the label {inner.label}, which none has"
    if inner.label in labels.only_skin:
        if rule.label is not None:
            yield f"the rule needs {inner.label} inside of {rule.label}, but {inner.label} is the skin"
        elif not inner.results:
            yield f"the rule dissolves {inner.label}, the skin; the skin never dissolves"
        elif len(inner.results) > 1:
            yield f"the rule divides {inner.label}, the skin; the skin never divides"
    for result in inner.results:
        if result.charge not in (None, -1, 0, 1):
            yield f"the charge {result.charge}; wanted -1, 0 or 1"


def _numbers(rule: Rule, system: System) -> Iterator[str]:
    if rule.charge not in (None, -1, 0, 1) or rule.new_charge not in (None, -1, 0, 1):
        yield "a charge that is not -1, 0 or 1"
    if rule.priority is not None and rule.priority < 0:
        yield f"the priority {rule.priority}; wanted 0 or more"
    p = rule.probability
    if p is not None and not (math.isfinite(p) and 0 <= p <= 1):
        yield f"the probability {p}; wanted 0 to 1"
    if isinstance(rule.rate, float | int) and not (math.isfinite(rule.rate) and rule.rate >= 0):
        yield f"the rate {rule.rate}; wanted a finite number, 0 or more"
    if rule.delay < 0:
        yield f"the delay {rule.delay}; wanted 0 or more steps"
    if system.mode is Mode.GILLESPIE and rule.rate is None:
        yield "a rule without a rate constant in a stochastic system"


def _bags(rule: Rule) -> Iterator[Bag]:
    yield from (rule.consume, rule.produce, rule.promoters, rule.inhibitors)
    yield from (send.objects for send in rule.send)
    for inner in rule.inner:
        yield inner.consume
        yield from (result.produce for result in inner.results)
    yield from (bag for _, bag in rule.divide)


def _guard(guard: Guard) -> Iterator[str]:
    queue = [guard]
    while queue:
        part = queue.pop()
        queue.extend(part.parts)
        if part.op not in ("ge", "gt", "le", "lt", "eq", "ne", "all", "any", "not", "in"):
            yield f"the guard operator {part.op!r}"
        if part.op == "not" and len(part.parts) != 1:
            yield f"the guard 'not' has {len(part.parts)} parts; wanted one"
        if part.op == "in" and (part.period < 1 or part.threshold < 0):
            yield f"a guard of period {part.period} from {part.threshold} on; wanted 1 or more from 0 or more"
