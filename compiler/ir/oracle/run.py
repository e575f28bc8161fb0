"""Stepping a P system."""

from __future__ import annotations

from collections.abc import Iterator

from echoc.compiler.ir.algebra import Mode, System

from . import gillespie
from .advance import apply
from .binding import Bindings
from .choose import choose, generator
from .configuration import Application, Configuration, start
from .draft import Draft


def halted(system: System, configuration: Configuration) -> bool:
    """Whether no rule can be applied any more and no closed cell is still to open."""
    if any(cell.closed for cell in configuration.cells.values()):
        return False
    if system.mode is Mode.GILLESPIE:
        return gillespie.over(system, configuration)
    bindings = Bindings(system, configuration)
    draft = Draft(system, configuration, bindings)
    bounded = system.mode is not Mode.DCBA
    return not any(
        draft.limit(binding, bounded=bounded) > 0
        and not (system.mode is Mode.ORDERED and draft.closed_to(draft.group_of[binding[0]], binding[1][0]))
        for binding in bindings.all()
    )


def step(system: System, configuration: Configuration, seed: int, *, exact: bool = False) -> Configuration:
    """One step; its random numbers are those of (seed, configuration.step). A halted system only counts the step."""
    applications = choose(system, configuration, generator(seed, configuration.step))
    return apply(system, configuration, applications, exact=exact)


def trace(
    system: System, steps: int | None, seed: int, *, exact: bool = False
) -> Iterator[tuple[Configuration, list[Application]]]:
    """Yields every configuration with the applications chosen on it; the last one with an empty list.

    It ends after `steps` steps or in a halted configuration, whatever comes first; `steps` None: only there.
    """
    configuration = start(system)
    while steps is None or configuration.step < steps:
        applications = choose(system, configuration, generator(seed, configuration.step))
        if not applications and halted(system, configuration):
            break
        yield configuration, applications
        configuration = apply(system, configuration, applications, exact=exact)
    yield configuration, []


def run(system: System, steps: int | None, seed: int, *, exact: bool = False) -> Configuration:
    """The configuration after `steps` steps, or where the system halts before; None: run until it halts.

    Raises StepError as `choose` and `apply` do.
    """
    for configuration, _ in trace(system, steps, seed, exact=exact):
        last = configuration
    return last
