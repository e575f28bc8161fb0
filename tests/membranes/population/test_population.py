"""Compiled populations against the interpreter, step by step: their choice is checked, applied there, and compared."""

from __future__ import annotations

import pytest
from random_systems import random_system

from echoc.compiler.ir import oracle
from echoc.compiler.ir.algebra import System
from echoc.compiler.ir.oracle import Application, Configuration, Membrane
from echoc.compiler.targets.cpu.rewriting.population import build, generate
from echoc.runtime.population import Population

FAMILIES = ("transition", "active", "tissue", "spiking", "kernel")


def compiled(system: System, threads: int = 2) -> Population:
    generated = generate(system)
    return Population(build(generated), generated.layout, num_threads=threads, max_bytes=64 << 20)


def configuration(population: Population, before: Configuration) -> dict[str, object]:
    """What the population holds, in the interpreter's terms but for ids."""
    cells = {}
    for m in population.membranes():
        cells[m["id"]] = Membrane(m["id"], m["label"], m["charge"], m["parent"], m["objects"], m.get("closed", 0))
    links = frozenset(population.links())
    return Configuration(cells, links, population.environment(), before.step, 0.0, 0)


def follow(system: System, seed: int, steps: int) -> int:
    """Steps both; returns how many steps were taken."""
    population = compiled(system)
    population.start(seed=seed)
    current = oracle.start(system)
    for done in range(steps):
        outcome = population.advance(1, record=True)
        if outcome.halted:
            assert oracle.halted(system, current), f"it halts after {done} steps, and rules apply:\n{current}"
            return done
        applied = [Application(a.rule, a.members, a.times) for a in population.applied()]
        oracle.check(system, current, applied)
        current = oracle.apply(system, current, applied)
        found = configuration(population, current)
        assert found.canonical() == current.canonical(), f"after {applied}:\n{found}\nwanted\n{current}"
        assert len(found.links) == len(current.links)
    return steps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_every_step_is_a_step_of_the_interpreter(family: str, seed: int) -> None:
    follow(random_system(seed, family), seed, 8)
