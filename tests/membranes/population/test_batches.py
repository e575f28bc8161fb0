"""Many runs of a population at once: each as if alone, forks among them, and what one that fails does to the others."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from random_systems import random_system
from test_population import FAMILIES, configuration

from echoc.bench.membranes.systems import sat_source
from echoc.compiler.ir import oracle
from echoc.compiler.ir.algebra import System
from echoc.compiler.ir.oracle import Application
from echoc.compiler.targets.cpu.rewriting.population import build, generate
from echoc.errors import RequestError
from echoc.membranes.plingua import read
from echoc.runtime.population import Population, PopulationBatch, PopulationLimit

# A clock that ticks for ever; "s" makes the inner membrane double in each step, "b" doubles itself.
GROWING = """@model<membrane_division>
def main() {
  @mu = [[]'2]'1;
  @ms(1) = t; @ms(2) = x*20;
  [t --> t]'1;
  [s --> a]'2;
  [a]'2 --> [a]'2 [a]'2;
  [b --> b*2]'1;
  [x --> y]'2; [x --> z]'2;
}
"""


def batch_of(system: System, instances: int, *, threads: int = 2, max_bytes: int = 64 << 20) -> PopulationBatch:
    generated = generate(system)
    library = build(generated)
    return PopulationBatch(
        library, generated.layout, instances=instances, num_threads=threads, max_bytes=max_bytes
    )  # fmt: skip


def standing(run: Population) -> tuple[Any, ...]:
    return run.steps, run.halted, run.membranes(), run.environment(), sorted(run.links())


@pytest.fixture(scope="module")
def growing() -> System:
    return read("growing.pli", text=GROWING)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_run_is_the_one_made_alone(family: str) -> None:
    system = random_system(1, family)
    batch = batch_of(system, 7)
    batch.start(seed=4, first=2)
    for piece in (1, 2, 5):
        batch.advance(piece)
    alone = batch_of(system, 1, threads=1)
    for i in range(7):
        alone.start(seed=4, first=2 + i)
        alone.advance(8)
        assert standing(batch[i]) == standing(alone[0])
        assert (batch[i].seed, batch[i].run) == (4, 2 + i)
    assert batch.steps.tolist() == [batch[i].steps for i in range(7)]
    assert batch.halted.tolist() == [batch[i].halted for i in range(7)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_of_every_run_and_fork_is_one_of_the_interpreter(family: str) -> None:
    """Runs take turns, step by step; in the middle of it two of them fork."""
    system = random_system(2, family)
    batch = batch_of(system, 3)
    batch.start(seed=8)
    current = [oracle.start(system) for _ in range(3)]
    for step in range(8):
        if step == 3:
            current += [current[1], current[2]]
            batch.fork(1), batch.fork(2)
        for i in range(len(batch)):
            run = batch[i]
            if run.advance(1, record=True).halted:
                assert oracle.halted(system, current[i])
                continue
            applied = [Application(a.rule, a.members, a.times) for a in run.applied()]
            oracle.check(system, current[i], applied)
            current[i] = oracle.apply(system, current[i], applied)
        for i in range(len(batch)):
            assert configuration(batch[i], current[i]).canonical() == current[i].canonical()


def test_a_fork_goes_the_same_way_until_something_comes_in(growing: System) -> None:
    batch = batch_of(growing, 3)
    batch.start(seed=1)
    batch[1].put(1, {"s": 1})
    batch.advance(3)
    same, other = batch[1].fork(), batch[1].fork()
    before = batch[1].membranes()
    inner = next(m["id"] for m in other.membranes() if m["label"] == "2")
    other.put(inner, {"x": 1000})
    assert standing(batch[1]) == standing(same)
    assert batch[1].membranes() == before
    batch.advance(4)
    assert len(batch) == 5
    assert standing(batch[1]) == standing(same)
    assert same.num_membranes == other.num_membranes == 1 + 2**6
    assert other.totals()["2"]["objects"]["y"] > 300
    third = batch_of(growing, 1)
    third.start(seed=1, first=2)
    third.advance(7)
    assert standing(third[0]) == standing(batch[2])


def test_pages_come_back_when_runs_and_forks_are_released(growing: System) -> None:
    batch = batch_of(growing, 3)
    empty = batch.memory()["pages"]
    for round_ in range(3):
        batch.start(seed=round_)
        batch[2].put(1, {"s": 1})
        batch.advance(6)
        forks = [batch.fork(2), batch.fork(0)]
        batch.advance(2)
        assert batch.memory()["pages"] > empty
        batch[2].release()
        assert standing(forks[0])[0] == 8
        batch.advance(1)
        assert batch.steps.tolist() == [9, 9, -1, 9, 9]
        for row in (0, 1, 3, 4):
            batch[row].release()
        assert batch.memory()["pages"] == empty
    for refused in (batch[2].release, batch[2].membranes, lambda: batch[2].advance(1), lambda: batch.fork(2)):
        with pytest.raises(RequestError, match="the run was released"):
            refused()
    batch[2].start(seed=5)
    assert batch[2].advance(1).steps == 1
    fork = batch[2].fork()
    with pytest.raises(RequestError, match="a fork has no start"):
        fork.start()


@pytest.mark.parametrize(("threads", "where"), [(1, "s"), (2, "s"), (2, "b")])
def test_a_run_that_cannot_go_on_stands_and_the_others_go_on(growing: System, threads: int, where: str) -> None:
    batch = batch_of(growing, 6, threads=threads, max_bytes=12 << 20)
    batch.start(seed=3)
    batch[2].put(*((1, {"s": 1}) if where == "s" else (0, {"b": 1})))
    with pytest.raises(PopulationLimit, match="1 of 6 runs could not go on; run 2: step") as raised:
        batch.advance(500)
    assert list(batch.errors) == [2]
    assert raised.value.out_of_memory == batch.errors[2].out_of_memory == (where == "s")
    assert [s for i, s in enumerate(batch.steps.tolist()) if i != 2] == [500] * 5
    memory = batch[2].memory()
    assert memory["peak_bytes"] <= memory["max_bytes"] == 2 << 20
    assert batch.memory()["peak_bytes"] <= 12 << 20
    stands = standing(batch[2])
    assert 9 < stands[0] < 100
    alone = batch_of(growing, 1, threads=threads, max_bytes=2 << 20)
    for i in (0, 5):
        alone.start(seed=3, first=i)
        alone.advance(500)
        assert standing(alone[0]) == standing(batch[i])
    with pytest.raises(PopulationLimit):
        batch.advance(10)  # tried again, and the others take ten more
    assert standing(batch[2]) == stands
    assert batch.steps.tolist() == [510, 510, stands[0], 510, 510, 510]
    batch[2].release()
    batch.advance(10)
    assert batch.errors == {}
    assert batch[0].steps == 520


def test_forks_share_the_memory_of_their_run_and_nobody_elses(growing: System) -> None:
    batch = batch_of(growing, 2, max_bytes=4 << 20)
    batch.start(seed=3)
    batch[0].put(1, {"s": 1})
    batch.advance(9)
    batch.fork(0), batch.fork(0)
    with pytest.raises(PopulationLimit):
        batch.advance(20)
    assert set(batch.errors) <= {0, 2, 3}
    assert all(error.out_of_memory for error in batch.errors.values())
    assert batch[0].memory()["pages"] == batch[2].memory()["pages"] <= (3 << 20) // 2 // 256
    batch[1].put(1, {"s": 1})
    batch[1].advance(10)
    assert batch[1].num_membranes == 1 + 2**9


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_and_small_runs_side_by_side(growing: System, threads: int) -> None:
    """Some runs have enough membranes for all threads, others not; what comes out tells nothing of it."""
    batch = batch_of(growing, 5, threads=threads, max_bytes=256 << 20)
    batch.start(seed=6)
    for row in (1, 3):
        batch[row].put(1, {"s": 1})
    batch.advance(11)
    batch.advance(1)
    assert [row.num_membranes for row in (batch[i] for i in range(5))] == [2, 2049, 2, 2049, 2]
    alone = batch_of(growing, 1, threads=2, max_bytes=64 << 20)
    alone.start(seed=6, first=3)
    alone[0].put(1, {"s": 1})
    alone.advance(12)
    assert standing(alone[0]) == standing(batch[3])


def test_memory_goes_with_the_last_run(growing: System) -> None:
    """At once, not when somebody looks for cycles: a run may hold half of the machine."""
    batch = batch_of(growing, 2)
    run, gone = batch[1], weakref.ref(batch)
    del batch
    assert run.advance(1).steps == 1
    del run
    assert gone() is None


def test_what_a_batch_does_not_take(growing: System) -> None:
    with pytest.raises(RequestError, match="1048576 bytes are enough for 1 to 16 at once"):
        batch_of(growing, 17, max_bytes=1 << 20)
    batch = batch_of(growing, 16, max_bytes=1 << 20)
    batch.advance(20)
    assert np.all(batch.steps == 20)
    with pytest.raises(RequestError, match="wanted 0 or more"):
        batch.advance(-1)
    with pytest.raises(RequestError, match="seed"):
        batch.start(seed=-1)


def test_any_number_of_threads_makes_the_same_steps() -> None:
    """512 membranes divide out of one; they send to the one around and take from it."""
    system = read("sat.pli", text=sat_source(9, 8, seed=3))
    alone = batch_of(system, 1, threads=1)
    alone.start(seed=6)
    many = [batch_of(system, 1, threads=threads) for threads in (3, 40)]
    for batch in many:
        batch.start(seed=6)
    for _ in range(12):
        alone.advance(4)
        for batch in many:
            batch.advance(4)
            assert standing(batch[0]) == standing(alone[0])
    assert alone[0].num_membranes > 256
