"""The interpreter of numerical P systems (Paun and Paun, Romanian J. Inf. Sci. Tech. 9, 2006), enzymatic ones included
(Pavel, Arsene, Buiu, BIC-TA 2010)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from echoc.compiler.ir.expression import evaluate
from echoc.compiler.ir.oracle import StepError
from echoc.membranes.numerical import NumericalSystem, Production, draw, variables


@dataclass(frozen=True, slots=True)
class Values:
    """The values of all variables, by name in source order, after `step` steps."""

    values: Mapping[str, float]
    step: int = 0


def start(system: NumericalSystem) -> Values:
    """The initial values."""
    return Values({v.name: float(v.value) for v in system.variables})


def active(system: NumericalSystem, configuration: Values) -> list[int]:
    """Indices of the programs that may run: those without an enzyme, and those whose enzyme e is large enough.

    That is e > min(|x| of the variables of the production function); of a constant function the minimum is 0. In a
    signed system it is e > min(x), and a constant function may always run.
    """
    values, signed = configuration.values, system.signed
    return [i for i, program in enumerate(system.programs) if _enzyme_allows(program, values, signed)]


def _enzyme_allows(program: Production, values: Mapping[str, float], signed: bool) -> bool:
    read = [values[name] for name in variables(program.function)]
    if program.enzyme is None or (signed and not read):
        return True
    return values[program.enzyme] > min(read if signed else map(abs, read), default=0.0)


def choose(system: NumericalSystem, configuration: Values, seed: int = 0, run: int = 0) -> list[int]:
    """The programs that run in the next step: all active ones; with `one_program`, one of those without an enzyme in
    each membrane, drawn uniformly, and all active ones with an enzyme."""
    idle: set[int] = set()
    for membrane, programs in system.choices().items():
        idle |= {*programs} - {programs[draw(len(programs), membrane, configuration.step, seed, run)]}
    return [i for i in active(system, configuration) if i not in idle]


def apply(system: NumericalSystem, configuration: Values, programs: list[int]) -> Values:
    """The values after the programs have run, all on the values at the start of the step.

    Variables of the production functions that run become 0, then the shares are added in program order.
    Raises StepError where the shares of a program add up to 0. Values may become infinite or NaN, as in float64.
    """
    values = dict(configuration.values)
    produced = [evaluate(system.programs[i].function, configuration.values) for i in programs]
    for i in programs:
        values.update(dict.fromkeys(variables(system.programs[i].function), 0.0))
    for i, amount in zip(programs, produced, strict=True):
        program = system.programs[i]
        total = math.fsum(share for share, _ in program.shares)
        if total == 0:
            raise StepError(f"{program.where}: the shares of program {i} add up to 0; there is nothing to deal out by")
        for share, name in program.shares:
            values[name] += amount * share / total
    return Values(values, configuration.step + 1)


def trace(system: NumericalSystem, steps: int, seed: int = 0, run: int = 0) -> Iterator[Values]:
    """The configurations of `steps` steps, the initial one first: steps + 1 in all. Seed and run number the draws."""
    configuration = start(system)
    yield configuration
    for _ in range(steps):
        configuration = apply(system, configuration, choose(system, configuration, seed, run))
        yield configuration


def run(system: NumericalSystem, steps: int, seed: int = 0, run: int = 0) -> Values:
    """The values after `steps` steps."""
    for configuration in trace(system, steps, seed, run):
        last = configuration
    return last
