"""Chemical systems (mode GILLESPIE): straight-line code for few reactions, tables with a sum tree for many."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from echoc.compiler.ir.algebra import PENDING, guard_objects
from echoc.compiler.ir.expression import TIME, Expression, names, render
from echoc.compiler.ir.moments import solve
from echoc.compiler.targets.cpu.rewriting.ground import (
    Condition,
    Ground,
    Instance,
    refuse,
    render_condition,
)
from echoc.errors import CompileError

STRAIGHT = 16
"""Up to so many reactions and places, all propensities are computed anew for every event, in registers."""
FAN = 8


def tables(ground: Ground) -> dict[str, object]:
    """What `gillespie.cpp.j2` prints. Raises CompileError for bad rates and unknown names in rate laws."""
    for instance in ground.instances:
        _check(ground, instance)
    triggers = _triggers(ground)
    charged = any(i.charges or i.condition.charges for i in ground.instances)
    small = 0 < len(ground.instances) <= STRAIGHT and len(ground.places) <= STRAIGHT and not charged
    small = small and not ground.events
    holes = _straight(ground) if small else _tabled(ground)
    kept = 8 * (len(ground.places) + len(triggers["hidden"])) + len(ground.charges)
    return {"straight": small, "scratch_bytes": _scratch_bytes(len(ground.instances)) + kept, **holes, **triggers}


def _check(ground: Ground, instance: Instance) -> None:
    rule = ground.system.rules[instance.rule]
    if isinstance(rule.rate, Expression):
        objects = set(ground.system.objects)
        unknown = next((n for n in names(rule.rate) if n not in objects), None)
        if unknown is not None:
            raise refuse(rule, f"has a rate law with {unknown!r}, which is no object of the system", "gillespie")
    elif rule.rate is None:
        raise refuse(rule, "has no rate", "gillespie")
    elif not (math.isfinite(rule.rate) and rule.rate >= 0):
        raise refuse(rule, f"has the rate {rule.rate!r}, wanted a finite number from 0 on", "gillespie")


def change(instance: Instance, ground: Ground) -> list[tuple[int, int]]:
    """(place, difference) for every place whose count the instance changes, ascending."""
    total: dict[int, int] = defaultdict(int)
    for place, count in instance.produce:
        total[ground.places[place]] += count
    for place, count in instance.consume:
        total[ground.places[place]] -= count
    return sorted((p, n) for p, n in total.items() if n)


def _triggers(ground: Ground) -> dict[str, list[Any]]:
    """Events in their membranes: truth, values and the moments at which triggers turn, as C++ over x and time."""
    rows: list[dict[str, str]] = []
    values: list[str] = []
    targets: list[int] = []
    turns: list[tuple[str, str, str]] = []
    hidden = [int(ground.system.events[e].holds) for e, _ in ground.events]
    for number, cell in ground.events:
        event = ground.system.events[number]

        def spell(name: str, cell: int = cell) -> str:
            place = ground.places.get((cell, name))
            return "time" if name == TIME else "0.0" if place is None else f"static_cast<double>(x[{place}])"

        solved, moments = solve(event.trigger)
        turns += [(render(m.moment, spell), _truth(m.at), _truth(m.after)) for m in moments]
        begin, queue = len(values), -1
        values += [render(value, spell) for _, value in event.assignments]
        targets += [ground.places[cell, name] for name, _ in event.assignments]
        if event.delay is not None:
            queue = len(ground.places) + len(hidden)
            hidden += [0] * (PENDING * (1 + len(event.assignments)))
        row = f"{{{{{begin}, {len(values)}}}, {_truth(event.persistent)}, {_truth(event.early)}, {queue}}}"
        delay = "0.0" if event.delay is None else render(event.delay, spell)
        rows.append({"row": row, "holds": render(solved, spell), "delay": delay})
    return {"triggers": rows, "values": values, "targets": targets, "turns": turns, "hidden": hidden}


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _law(ground: Ground, instance: Instance) -> str:
    """C++ over x and charge: the propensity, zero where the condition fails or reactants are missing."""
    rule = ground.system.rules[instance.rule]
    places = ground.places
    asks = [] if instance.condition == Condition() else [render_condition(instance.condition, places)]
    if isinstance(rule.rate, Expression):

        def spell(name: str) -> str:
            place = places.get((instance.holder, name))
            return "0.0" if place is None else f"static_cast<double>(x[{place}])"

        text = render(rule.rate, spell)
        asks += [f"x[{places[p]}] >= INT64_C({n})" for p, n in instance.consume]
        text = f"{instance.share!r} * {text}" if instance.share != 1 else text
    else:
        factors = [repr(float(rule.rate or 0.0) * instance.share)]
        factors += [_ways(f"x[{places[p]}]", n) for p, n in instance.consume]
        text = " * ".join(factors)
    return f"{' && '.join(f'({a})' for a in asks)} ? {text} : 0.0" if asks else text


def _ways(x: str, count: int) -> str:
    real = f"static_cast<double>({x})"
    if count == 1:
        return real
    if count == 2:
        return f"({real} * ({real} - 1.0) * 0.5)"
    return f"echoc::gillespie::ways({x}, INT64_C({count}))"


def _straight(ground: Ground) -> dict[str, object]:
    """Propensities as expressions, and per place the change that each reaction makes."""
    changes: dict[int, list[int]] = defaultdict(lambda: [0] * len(ground.instances))
    for number, instance in enumerate(ground.instances):
        for place, difference in change(instance, ground):
            changes[place][number] = difference
    rules = ground.system.rules
    checked = [n for n, i in enumerate(ground.instances) if isinstance(rules[i.rule].rate, Expression)]
    return {
        "laws": [_law(ground, i) for i in ground.instances],
        "checked": checked,
        "changes": sorted(changes.items()),
        "grows": {p for p, row in changes.items() if max(row) > 0},
    }


def reads(ground: Ground, instance: Instance) -> tuple[set[int], set[int]]:
    """The places and the cells' charges that a propensity depends on."""
    rule = ground.system.rules[instance.rule]
    condition = instance.condition
    keys = {p for p, _ in instance.consume}
    keys |= {(condition.holder, o) for o, _ in (*condition.promoters, *condition.inhibitors)}
    if condition.guard is not None:
        keys |= {(condition.holder, o) for o in guard_objects(condition.guard)}
    if isinstance(rule.rate, Expression):
        keys |= {(instance.holder, o) for o in names(rule.rate)}
    return {ground.places[k] for k in keys if k in ground.places}, {c for c, _ in condition.charges}


def dependents(ground: Ground, changes: Sequence[list[tuple[int, int]]]) -> list[list[int]]:
    """Per reaction, the reactions whose propensity it may change (the dependency graph of Gibson and Bruck 2000)."""
    by_place: dict[int, list[int]] = defaultdict(list)
    by_cell: dict[int, list[int]] = defaultdict(list)
    for number, instance in enumerate(ground.instances):
        places, cells = reads(ground, instance)
        for place in places:
            by_place[place].append(number)
        for cell in cells:
            by_cell[cell].append(number)
    result = []
    for instance, changed in zip(ground.instances, changes, strict=True):
        affected = {r for place, _ in changed for r in by_place[place]}
        affected |= {r for cell, _ in instance.charges for r in by_cell[cell]}
        result.append(sorted(affected))
    return result


MAX_DEPENDENTS = 1 << 24


def _tabled(ground: Ground) -> dict[str, object]:
    amounts: list[str] = []
    charges: list[str] = []
    rows: list[str] = []
    special: list[str] = []
    changes = [change(i, ground) for i in ground.instances]
    affected = dependents(ground, changes)
    if sum(map(len, affected)) > MAX_DEPENDENTS:
        raise CompileError(f"the reactions change each other's rates in more than {MAX_DEPENDENTS} ways; wanted fewer")

    def add(entries: Sequence[tuple[int, int]]) -> str:
        begin = len(amounts)
        amounts.extend(f"{{{p}, 0, INT64_C({n})}}" for p, n in entries)
        return f"{{{begin}, {len(amounts)}}}"

    begin = 0
    for instance, changed, reached in zip(ground.instances, changes, affected, strict=True):
        rule = ground.system.rules[instance.rule]
        code, constant = -1, "0.0"
        if isinstance(rule.rate, Expression) or instance.condition != Condition():
            code = len(special)
            special.append(_law(ground, instance))
        else:
            constant = repr(float(rule.rate or 0.0) * instance.share)
        reactants = add([(ground.places[p], n) for p, n in instance.consume])
        first = len(charges)
        charges.extend(f"{{{cell}, {charge}}}" for cell, charge in instance.charges)
        rows.append(
            f"{{{constant}, {reactants}, {add(changed)}, {{{first}, {len(charges)}}}, "
            f"{{{begin}, {begin + len(reached)}}}, {code}, 0}}"
        )
        begin += len(reached)
    return {
        "reactions": rows, "amounts": amounts, "charges": charges, "special": special,
        "dependents": [", ".join(map(str, row)) + "," for row in affected if row],
    }  # fmt: skip


def _scratch_bytes(reactions: int) -> int:
    """Room for the levels of the sum tree of gillespie.h."""
    total, size = 0, max(1, reactions)
    while True:
        size = -(-size // FAN) * FAN
        total += size
        size //= FAN
        if size <= 1:
            return total * 8
