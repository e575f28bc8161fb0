"""The interpreter of P systems over multisets: slow, plain, and the meaning that every compiled program is held to.

    configuration = start(system)
    while not halted(system, configuration):
        applications = choose(system, configuration, generator(seed, configuration.step))
        configuration = apply(system, configuration, applications)

A non-deterministic program is compared step by step: `check` its choice, `apply` it here, compare the configurations.
"""

from .advance import apply, communicate, fork, release
from .check import check
from .choose import choose, generator
from .configuration import ENVIRONMENT, Application, Configuration, Membrane, StepError, start
from .run import halted, run, step, trace

__all__ = [
    "ENVIRONMENT",
    "Application",
    "Configuration",
    "Membrane",
    "StepError",
    "apply",
    "check",
    "choose",
    "communicate",
    "fork",
    "generator",
    "halted",
    "release",
    "run",
    "start",
    "step",
    "trace",
]
