"""Every step of a compiled run is one that the interpreter allows, and leads where the interpreter goes."""

from __future__ import annotations

from collections import Counter

import pytest
from static_systems import compile_all, random_system

from echoc.compiler.ir.algebra import Mode, System
from echoc.compiler.ir.oracle import Application, Configuration, apply, check, halted, start
from echoc.compiler.ir.oracle.events import WAIT
from echoc.runtime.runs import Batch, Runs

SEEDS = range(48)
STEPS = 14
RUNS = 2


def same(runs: Runs, batch: Batch, row: int, expected: Configuration) -> None:
    """The vector holds exactly what the configuration does."""
    found: Counter[tuple[int, str]] = Counter()
    for cell, entry in enumerate(runs.cells):
        for obj, place in entry["objects"].items():
            if batch.counts[row, place]:
                found[cell, obj] = int(batch.counts[row, place])
    outside = len(runs.cells) - 1
    wanted = Counter({(c.id, o): n for c in expected.cells.values() for o, n in c.objects.items() if n})
    wanted.update({(outside, o): n for o, n in expected.environment.items() if n})
    assert found == wanted
    assert list(batch.charges[row, :outside]) == [expected.cells[i].charge for i in range(outside)]


def follow(system: System, runs: Runs) -> int:
    """Steps runs and interpreter side by side; returns how many steps were compared."""
    batch = runs.start(RUNS, seed=11)
    configurations = [start(system)] * RUNS
    compared = 0
    for _ in range(STEPS):
        before, times = batch.steps.copy(), batch.time.copy()
        batch.advance(1, applications=True)
        assert batch.applications is not None
        for row in range(RUNS):
            configuration = configurations[row]
            if batch.steps[row] == before[row]:
                assert batch.halted[row] and halted(system, configuration)
                continue
            after = float(batch.time[row] - times[row]) if system.mode is Mode.GILLESPIE else 0.0
            applications = [
                Application(instance[0], instance[1:], int(times), after)
                for instance, times in zip(runs.instances, batch.applications[row], strict=True)
                if times
            ]
            check(system, configuration, applications or [Application(WAIT, (), 0, after)])
            configurations[row] = apply(system, configuration, applications or [Application(WAIT, (), 0, after)])
            same(runs, batch, row, configurations[row])
            compared += 1
    whole = runs.start(RUNS, seed=11)
    whole.advance(STEPS)
    assert (whole.counts == batch.counts).all() and (whole.charges == batch.charges).all()
    return compared


@pytest.mark.parametrize("mode", [Mode.DCBA, Mode.GILLESPIE])
def test_steps_are_legal_and_exact(mode: Mode) -> None:
    systems = [random_system(seed, mode) for seed in SEEDS]
    compared = 0
    for seed, system, runs in zip(SEEDS, systems, compile_all(systems), strict=True):
        try:
            compared += follow(system, runs)
        except Exception as error:
            error.add_note(f"seed {seed}: " + "; ".join(runs.rules))
            raise
    assert compared > 4 * len(SEEDS)
