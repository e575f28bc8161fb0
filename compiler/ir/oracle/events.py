"""Events of mode GILLESPIE: triggers that turn true, and what happens then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from echoc.compiler.ir.algebra import PENDING, Event, System
from echoc.compiler.ir.expression import TIME, Expression, evaluate
from echoc.compiler.ir.moments import Turn, solve

from .configuration import LARGEST, Configuration, StepError

WAIT = -1
"""The rule of the application that stands for a moment at which a trigger may turn by itself."""
CASCADE = 1000  # events at one moment, until they are taken for endless

Place = tuple[int, int]


def places(system: System, configuration: Configuration) -> list[Place]:
    """(event, cell) for every membrane that an event is of, in the order in which those due together happen."""
    return [(i, cell) for i, event in enumerate(system.events) for cell in configuration.of(event.label)]


def settle(system: System, configuration: Configuration) -> Configuration:
    """The configuration after all that triggers bring about at its time; one that is settled stays as it is.

    Raises StepError for a value that is no count, and for events that set each other off without end.
    """
    if not system.events:
        return configuration
    everywhere = places(system, configuration)
    objects = {cell: dict(configuration.cells[cell].objects) for _, cell in everywhere}
    time = configuration.time
    initial = {p for p in everywhere if system.events[p[0]].holds}
    held = initial if configuration.triggered is None else set(configuration.triggered)
    pending = list(configuration.pending)
    for _ in range(CASCADE):
        for place in everywhere:
            event, counts = system.events[place[0]], _values(system, objects[place[1]], time)
            now = holds(event, counts)
            if now and place not in held:
                values = tuple(evaluate(value, counts) for _, value in event.assignments) if event.early else ()
                pending.append((time + _delay(event, counts), place, values))
                if sum(p == place for _, p, _ in pending) > PENDING:
                    raise StepError(f"{describe(event)} waits for its delay more than {PENDING} times")
            if not now and not event.persistent:
                pending = [p for p in pending if p[1] != place]
            (held.add if now else held.discard)(place)
        due = [p for p in pending if p[0] <= time]
        if not due:
            cells = {
                i: replace(cell, objects={o: n for o, n in sorted(objects[i].items()) if n}) if i in objects else cell
                for i, cell in configuration.cells.items()
            }
            return replace(configuration, cells=cells, triggered=frozenset(held), pending=tuple(pending))
        first = min(due, key=lambda p: (p[1], p[0]))
        pending.remove(first)
        _, place, values = first
        event = system.events[place[0]]
        if not event.early:
            counts = _values(system, objects[place[1]], time)
            values = tuple(evaluate(value, counts) for _, value in event.assignments)
        for (name, _), value in zip(event.assignments, values, strict=True):
            objects[place[1]][name] = as_count(event, name, value)
    raise StepError(f"{describe(system.events[place[0]])} and others set each other off {CASCADE} times at one moment")


def _delay(event: Event, counts: Mapping[str, float]) -> float:
    delay = 0.0 if event.delay is None else evaluate(event.delay, counts)
    if not 0 <= delay < math.inf:
        raise StepError(f"the delay of {describe(event)} is {delay}; wanted a number from 0 on")
    return delay


def as_count(event: Event, name: str, value: float) -> int:
    """A value as a count: it may miss a whole number by rounding. Raises StepError."""
    if not -0.5 < value < 2.0**63 or abs(value - round(value)) > 1e-9 * max(1.0, value):
        raise StepError(f"{describe(event)} sets {name} to {value:.17g}; wanted a whole number from 0 to {LARGEST}")
    return round(value)


def holds(event: Event, values: Mapping[str, float]) -> bool:
    """Whether its trigger is true; what is not a number is not."""
    value = evaluate(_solved(event.trigger)[0], values)
    return bool(value) and not math.isnan(value)


def next_moment(system: System, configuration: Configuration) -> float:
    """The first time from now on at which a trigger may turn though no reaction takes place, or a delay ends; infinity:
    none."""
    first = min((due for due, _, _ in configuration.pending), default=math.inf)
    for index, cell in places(system, configuration):
        values = _values(system, configuration.cells[cell].objects, configuration.time)
        for turn in _solved(system.events[index].trigger)[1]:
            moment = evaluate(turn.moment, values)
            for time in [moment] * turn.at + [math.nextafter(moment, math.inf)] * turn.after:
                if configuration.time < time < first:
                    first = time
    return first


def describe(event: Event) -> str:
    """An event for a message."""
    where = f" ({event.where})" if str(event.where) else ""
    return f"the event {event.name or event.label}{where}"


@cache
def _solved(trigger: Expression) -> tuple[Expression, tuple[Turn, ...]]:
    return solve(trigger)


def _values(system: System, objects: Mapping[str, int], time: float) -> dict[str, float]:
    return {**dict.fromkeys(system.objects, 0.0), **{o: float(n) for o, n in objects.items()}, TIME: time}
