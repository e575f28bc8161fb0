"""The direct method of Gillespie (J. Phys. Chem. 81(25), 1977): one reaction at a time in continuous time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from numpy.random import Generator

from echoc.compiler.ir.algebra import System
from echoc.compiler.ir.expression import Expression, evaluate

from .aim import aim
from .binding import Binding, Bindings
from .configuration import Application, Configuration, StepError, consumed, describe
from .events import WAIT, next_moment, settle


def propensities(system: System, configuration: Configuration) -> dict[Binding, float]:
    """The propensity of every binding that can be applied, in events per unit of time.

    A number c gives c * h, h the number of distinct combinations of what the rule consumes (products of binomial
    coefficients). A rate law is evaluated on the counts of the holder, objects that are not there being 0; where the
    objects do not suffice for the rule its propensity is 0.

    Raises StepError for a rule without a rate and for a propensity that is negative or not finite.
    """
    bindings = Bindings(system, configuration)
    names = dict.fromkeys(system.objects, 0.0)
    found: dict[Binding, float] = {}
    for index, membranes in bindings.all():
        rate = system.rules[index].rate
        if rate is None:
            raise StepError(f"{describe(system, index)} has no rate; mode gillespie needs one for every rule")
        if isinstance(rate, Expression):
            value = evaluate(rate, {**names, **bindings.counts[membranes[0]]})
        else:
            value = float(rate) * combinations(consumed(system.rules[index], membranes), bindings.counts)
        if not math.isfinite(value) or value < 0:
            raise StepError(f"{describe(system, index)} has the propensity {value}; it must be finite and not negative")
        if value > 0:
            found[index, membranes] = value
    return found


def combinations(taken: Counter[tuple[int, str]], counts: Mapping[int, Mapping[str, float]]) -> float:
    """The number h of distinct reactant combinations; an unlimited reactant counts as 1."""
    result = 1
    for (cell, name), count in taken.items():
        there = counts[cell].get(name, 0)
        if there != math.inf:
            result *= math.comb(int(there), count)
    return float(result)


def over(system: System, configuration: Configuration) -> bool:
    """Whether nothing happens any more: no reaction, and no trigger that turns by itself."""
    configuration = settle(system, configuration)
    return not propensities(system, configuration) and next_moment(system, configuration) == math.inf


def choose(system: System, configuration: Configuration, random: Generator) -> list[Application]:
    """The next event: after an exponential time of the rate a_0 = sum a_i, binding i with the chance a_i / a_0.

    Where a trigger may turn before, only that moment: what remains of an exponential time is exponential.
    """
    configuration = settle(system, configuration)
    rates = propensities(system, configuration)
    total = sum(rates.values())
    moment = next_moment(system, configuration) - configuration.time
    after = float(random.exponential(1 / total)) if total else math.inf
    if moment <= after:
        return [Application(WAIT, (), 0, moment)] if math.isfinite(moment) else []
    chosen = list(rates)[int(random.choice(len(rates), p=[rate / total for rate in rates.values()]))]
    (application,) = aim(system, Bindings(system, configuration), chosen, 1, random, {})
    return [Application(application.rule, application.membranes, 1, after)]
