"""Frames of what the interpreter makes: configurations, applications, and the values of numerical P systems."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from echoc.compiler.ir.algebra import Mode, System
from echoc.compiler.ir.oracle import Application, Configuration, trace

from .notation import rule_texts
from .trace import Fired, Frame, Header, Membrane


def header_of(system: System, *, seed: int = 0, run: int = 0, source: str = "") -> Header:
    """The header of a trace of a system."""
    rules = rule_texts(system)
    return Header(system.name, system.model, seed, run, system.labels, system.objects, rules, source)


def frame_of(system: System, configuration: Configuration, applied: Iterable[Application] = ()) -> Frame:
    """A configuration and the applications that led to it. Cells keep their ids, start cells their names."""
    names = [cell.name for cell in system.cells]
    membranes = tuple(
        Membrane(c.id, c.label, c.charge, c.parent, c.objects, names[c.id] if c.id < len(names) else "", c.closed)
        for c in configuration.cells.values()
    )
    fired = tuple(Fired(a.rule, a.membranes, a.times) for a in applied if a.times)
    time = configuration.time if system.mode is Mode.GILLESPIE else None
    links = tuple(sorted(configuration.links))
    return Frame(configuration.step, membranes, configuration.environment, links, fired, time)


def interpreted(system: System, steps: int | None, seed: int = 0) -> Iterator[Frame]:
    """The frames of a run of the interpreter; `steps` None: until it halts."""
    applied: list[Application] = []
    for configuration, chosen in trace(system, steps, seed):
        yield frame_of(system, configuration, applied)
        applied = chosen
