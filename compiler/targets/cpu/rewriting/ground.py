"""Rules bound to cells: a system whose membranes stay is a fixed list of rule instances over one vector of counts."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from echoc.compiler.ir.algebra import Bag, Guard, Rule, System, Target, Where
from echoc.compiler.targets.cpu.rewriting.notation import show_rule
from echoc.errors import CompileError

MAX_COUNT = (1 << 63) - 1
MAX_INSTANCES = 1 << 20
Place = tuple[int, str]
"""A cell and an object. Cell `len(system.cells)` is the environment."""


class Condition(NamedTuple):
    """What an instance needs besides its reactants: charges of cells, and the holder's guard, promoters, inhibitors."""

    charges: tuple[tuple[int, int], ...] = ()
    holder: int = -1
    promoters: Bag = ()
    inhibitors: Bag = ()
    guard: Guard | None = None


class Instance(NamedTuple):
    """One rule in one place.

    cells: its holder, the inner membranes it binds, and the children that products sent inwards go to.
    share: what the choice of these children leaves it of the rule's probability or rate.
    """

    rule: int
    cells: tuple[int, ...]
    consume: tuple[tuple[Place, int], ...]
    produce: tuple[tuple[Place, int], ...]
    condition: Condition
    charges: tuple[tuple[int, int], ...]
    share: float = 1.0

    @property
    def holder(self) -> int:
        return self.cells[0]


@dataclass(slots=True)
class Ground:
    """The instances that can ever be applicable and the places that can ever hold something.

    places: (cell, object) -> index in the vector of counts, cell after cell.
    charges: per cell, the charges that it can have.
    events: (index into System.events, cell), in the order in which those due together happen.
    """

    system: System
    instances: list[Instance] = field(default_factory=list)
    places: dict[Place, int] = field(default_factory=dict)
    charges: list[set[int]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    events: list[tuple[int, int]] = field(default_factory=list)


def refuse(rule: Rule, what: str, mode: str) -> CompileError:
    """The error for a rule that a mode has no meaning for."""
    where = f"{rule.where}: " if str(rule.where) else ""
    return CompileError(f"{where}the rule {show_rule(rule)} {what}; mode {mode} does not have that")


def ground(system: System, inputs: Iterable[Place] = ()) -> Ground:
    """All instances of all rules, less those that can never be applicable.

    Args:
        inputs: places that something from outside may put objects in.
    Raises: CompileError for rules that change the membrane structure, counts beyond 64 bits, or too many instances.
    """
    _check(system)
    found = list(itertools.islice(_instances(system), MAX_INSTANCES + 1))
    if len(found) > MAX_INSTANCES:
        raise CompileError(f"the rules can send inwards in more than {MAX_INSTANCES} ways; wanted fewer cells")
    result = Ground(system)
    result.events = [
        (e, c) for e, v in enumerate(system.events) for c, w in enumerate(system.cells) if w.label == v.label
    ]
    assigned = [(c, o) for e, c in result.events for o, _ in system.events[e].assignments]
    reached, charges = _reach(system, found, [*inputs, *assigned], result.instances)
    result.charges = charges
    result.instances = [_simplify(instance, charges) for instance in result.instances]
    order: list[list[str]] = [[] for _ in range(len(system.cells) + 1)]
    rank = {o: i for i, o in enumerate(system.objects)}
    for cell, name in reached:
        order[cell].append(name)
    for cell, names in enumerate(order):
        for name in sorted(names, key=lambda o: (rank.get(o, len(rank)), o)):
            result.places[cell, name] = len(result.places)
    result.counts = [0] * len(result.places)
    for cell, objects in enumerate([*(c.objects for c in system.cells), system.environment]):
        for name, count in objects:
            result.counts[result.places[cell, name]] = count
    return result


def _check(system: System) -> None:
    """Refuses what a fixed structure cannot express."""
    mode = str(system.mode)
    if system.links or system.unbounded:
        what = "links between cells" if system.links else "objects in unlimited supply"
        raise CompileError(f"the system {system.name or system.model!r} has {what}; mode {mode} does not have that")
    for rule in system.rules:
        for bad, what in (
            (rule.dissolve, "dissolves its membrane"),
            (rule.divide, "divides its membrane"),
            (rule.delay, "has a delay"),
            (rule.link is not None or rule.unlink is not None, "changes links"),
            (rule.priority is not None, "has a priority"),
            (any(s.target not in (Target.OUT, Target.IN) for s in rule.send), "sends along links"),
        ):
            if bad:
                raise refuse(rule, what, mode)
        for inner in rule.inner:
            if len(inner.results) != 1:
                what = "dissolves" if not inner.results else "divides or separates"
                raise refuse(rule, f"{what} the membrane {inner.label}", mode)
            if inner.results[0].label != inner.label or inner.results[0].keeps is not None:
                raise refuse(rule, f"changes the label of the membrane {inner.label}", mode)
    for cell in system.cells:
        _check_counts(cell.objects, cell.where, "the membrane", cell.label)
    _check_counts(system.environment, Where(), "the environment", "")
    for rule in system.rules:
        bags = [rule.consume, rule.produce, rule.promoters, rule.inhibitors, *(s.objects for s in rule.send)]
        bags += [i.consume for i in rule.inner] + [r.produce for i in rule.inner for r in i.results]
        for objects in bags:
            _check_counts(objects, rule.where, "the rule", rule)


def _check_counts(objects: Bag, where: Where, what: str, whose: str | Rule) -> None:
    for name, count in objects:
        if not 0 <= count <= MAX_COUNT:
            shown = show_rule(whose) if isinstance(whose, Rule) else whose
            place = f"{where}: {what} {shown}".removeprefix(": ").rstrip()
            raise CompileError(f"{place} has {count} of {name}; wanted 0 to 2^63 - 1")


def _instances(system: System) -> Iterator[Instance]:
    outside = len(system.cells)
    children: list[dict[str, list[int]]] = [{} for _ in range(outside + 1)]
    by_label: dict[str, list[int]] = {}
    parents: list[int] = []
    tried = 0
    for index, cell in enumerate(system.cells):
        parent = outside if cell.parent is None else cell.parent
        parents.append(parent)
        children[parent].setdefault(cell.label, []).append(index)
        by_label.setdefault(cell.label, []).append(index)
    for number, rule in enumerate(system.rules):
        if rule.probability == 0:
            continue
        if rule.label is not None:
            holders: Sequence[int] = by_label.get(rule.label, ())
        elif rule.inner:
            holders = sorted({parents[c] for c in by_label.get(rule.inner[0].label, ())})
        else:
            raise refuse(rule, "names no membrane", str(system.mode))
        for holder in holders:
            options = [children[holder].get(inner.label, []) for inner in rule.inner]
            tried += math.prod(map(len, options))
            if tried > MAX_INSTANCES:
                raise CompileError(
                    f"the rules bind cells in more than {MAX_INSTANCES} ways (at {show_rule(rule)}); wanted fewer "
                    "cells, or rules that name them"
                )
            for inner in itertools.product(*options):
                if len(set(inner)) == len(inner):
                    parent = parents[holder] if holder != outside else -1
                    yield from _bind(system, number, (holder, *inner), parent, children[holder])


def _bind(
    system: System, number: int, cells: tuple[int, ...], parent: int, children: Mapping[str, Sequence[int]]
) -> Iterator[Instance]:
    """The instances of one rule with its cells: one for every way in which products sent inwards can go."""
    rule = system.rules[number]
    holder = cells[0]
    consume = [((holder, o), n) for o, n in rule.consume]
    produce = [((holder, o), n) for o, n in rule.produce]
    needs = {} if rule.charge is None else {holder: rule.charge}
    sets = {} if rule.new_charge is None else {holder: rule.new_charge}
    for cell, inner in zip(cells[1:], rule.inner, strict=True):
        consume += [((cell, o), n) for o, n in inner.consume]
        produce += [((cell, o), n) for o, n in inner.results[0].produce]
        if inner.charge is not None:
            needs[cell] = inner.charge
        if inner.results[0].charge is not None:
            sets[cell] = inner.results[0].charge
    if holder == len(system.cells):
        if sets.pop(holder, 0):
            raise refuse(rule, "gives the environment a charge", str(system.mode))
        if needs.pop(holder, 0):
            return
    conditional = rule.promoters or rule.inhibitors or rule.guard is not None
    condition = Condition(
        tuple(sorted(needs.items())), holder if conditional else -1, rule.promoters, rule.inhibitors, rule.guard
    )
    inwards = [s for s in rule.send if s.target == Target.IN]
    for send in rule.send:
        if send.target == Target.OUT:
            if parent < 0:
                raise refuse(rule, "sends objects out of the environment", str(system.mode))
            produce += [((parent, o), n) for o, n in send.objects]
    ways = [children.get(send.label, ()) for send in inwards]
    share = 1.0
    for way in ways:
        share /= max(1, len(way))
    taken, charges = tuple(sorted(consume)), tuple(sorted(sets.items()))
    for targets in itertools.product(*ways):
        sent = [((t, o), n) for t, send in zip(targets, inwards, strict=True) for o, n in send.objects]
        made = _sum([*produce, *sent] if sent else produce)
        if any(count > MAX_COUNT for _, count in made):
            raise CompileError(
                f"{rule.where}: the rule {show_rule(rule)} puts more than 2^63 - 1 of an object in one place"
            )
        yield Instance(number, (*cells, *targets), taken, made, condition, charges, share)


def _sum(entries: Sequence[tuple[Place, int]]) -> tuple[tuple[Place, int], ...]:
    """The entries by place, those of one place added up."""
    total = dict(entries)
    if len(total) < len(entries):
        total = dict.fromkeys(total, 0)
        for place, count in entries:
            total[place] += count
    return tuple(sorted(total.items()))


def _reach(
    system: System, instances: Sequence[Instance], inputs: Iterable[Place], out: list[Instance]
) -> tuple[list[Place], list[set[int]]]:
    """The least fixed point: an instance is possible when its reactants, promoters and charges are."""
    charges = [{cell.charge} for cell in system.cells] + [{0}]
    known: dict[Place | tuple[int, int], None] = {}
    start: list[Place] = [(i, o) for i, c in enumerate(system.cells) for o, n in c.objects if n]
    start += [(len(system.cells), o) for o, n in system.environment if n]
    queue: list[Place | tuple[int, int]] = [*start, *inputs, *((i, c.charge) for i, c in enumerate(system.cells))]
    missing: list[int] = []
    waiting: dict[Place | tuple[int, int], list[int]] = defaultdict(list)
    for number, instance in enumerate(instances):
        wants: set[Place | tuple[int, int]] = {p for p, _ in instance.consume} | set(instance.condition.charges)
        wants |= {(instance.condition.holder, o) for o, _ in instance.condition.promoters}
        missing.append(len(wants))
        for want in wants:
            waiting[want].append(number)
    ready = [number for number, count in enumerate(missing) if count == 0]
    possible = set(ready)
    while queue or ready:
        while ready:
            instance = instances[ready.pop()]
            queue.extend(p for p, _ in instance.produce)
            queue.extend(instance.charges)
        while queue:
            fact = queue.pop()
            if fact in known:
                continue
            known[fact] = None
            for number in waiting.get(fact, ()):
                missing[number] -= 1
                if missing[number] == 0:
                    ready.append(number)
                    possible.add(number)
    out.extend(instances[number] for number in sorted(possible))
    reached: list[Place] = []
    for cell, what in known:
        if isinstance(what, str):
            reached.append((cell, what))
        else:
            charges[cell].add(what)
    return reached, charges


def _simplify(instance: Instance, charges: Sequence[set[int]]) -> Instance:
    """Without the charges that their cells always have."""
    old = instance.condition
    needs = tuple((c, v) for c, v in old.charges if len(charges[c]) > 1)
    sets = tuple((c, v) for c, v in instance.charges if len(charges[c]) > 1)
    return instance._replace(condition=old._replace(charges=needs), charges=sets)


def render_condition(condition: Condition, places: Mapping[Place, int]) -> str:
    """C++ over `x` (counts) and `charge`; `true` where there is nothing to ask."""

    def count(name: str) -> str:
        place = places.get((condition.holder, name))
        return "INT64_C(0)" if place is None else f"x[{place}]"

    parts = [f"charge[{cell}] == {value}" for cell, value in condition.charges]
    parts += [f"{count(o)} >= INT64_C({n})" for o, n in condition.promoters]
    parts += [f"{count(o)} < INT64_C({n})" for o, n in condition.inhibitors]
    if condition.guard is not None:
        parts.append(_render_guard(condition.guard, count))
    return " && ".join(parts) or "true"


def _render_guard(guard: Guard, count: Callable[[str], str]) -> str:
    compare = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "eq": "==", "ne": "!="}
    if guard.op in compare:
        return f"{count(guard.object)} {compare[guard.op]} {_literal(guard.count)}"
    if guard.op == "not":
        return f"!({_render_guard(guard.parts[0], count)})"
    if guard.op in ("all", "any"):
        joined = (" && " if guard.op == "all" else " || ").join(f"({_render_guard(p, count)})" for p in guard.parts)
        return f"({joined})" if joined else ("true" if guard.op == "all" else "false")
    if guard.op == "in":
        x, t = count(guard.object), _literal(guard.threshold)
        early = " || ".join(f"{x} == {_literal(s)}" for s in guard.starts if s < guard.threshold) or "false"
        rest = f"({x} - {t}) % {_literal(guard.period)}"
        late = " || ".join(f"{rest} == {_literal(r)}" for r in guard.residues) or "false"
        return f"({x} < {t} ? ({early}) : ({late}))"
    raise CompileError(f"unknown guard {guard.op!r}")


def _literal(value: int) -> str:
    if not 0 <= value <= MAX_COUNT:
        raise CompileError(f"a guard compares with {value}; wanted 0 to 2^63 - 1")
    return f"INT64_C({value})"
