"""Compiled systems through `echoc.load`: runs, seeds, threads, limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import echoc
from echoc.errors import ArtifactError, DeviceError, RequestError
from echoc.runtime.artifact import Artifact
from echoc.runtime.population import PopulationBatch
from echoc.runtime.runs import Runs
from echoc.runtime.systems import PopulationLimit, SystemProgram

Compiled = Callable[[str], Path]
Load = Callable[[bytes, dict[str, Any]], object]
LARGEST = 2**63 - 1


def test_counts_are_exact_up_to_the_last_one_that_fits(compiled: Compiled) -> None:
    run = echoc.load(compiled("doubling.pli")).create()
    run.advance(62)
    assert run.membranes()[0]["objects"] == {"a": 2**62}
    with pytest.raises(PopulationLimit, match=r"step 63: the count of a in membrane 0 passes 2\^63 - 1"):
        run.advance(1)
    assert run.steps == 62
    assert run.membranes()[0]["objects"] == {"a": 2**62}


def test_competing_rules_share_as_single_draws_would(compiled: Compiled) -> None:
    """One of three rules for each of 1000 objects: multinomial(1000; 1/3, 1/3, 1/3)."""
    program = echoc.load(compiled("choosing.pli"))
    seen = {"b": [], "c": [], "d": []}
    for index in range(200):
        run = program.create(seed=5, run=index)
        assert run.advance().steps == 1
        objects = run.membranes()[0]["objects"]
        assert objects["b"] + objects["c"] + objects["d"] // 2 == 1000
        for name, counts in seen.items():
            counts.append(objects[name] // (2 if name == "d" else 1))
    sd = math.sqrt(1000 * (1 / 3) * (2 / 3))
    for counts in seen.values():
        mean = sum(counts) / len(counts)
        variance = sum((c - mean) ** 2 for c in counts) / (len(counts) - 1)
        assert abs(mean - 1000 / 3) < 4 * sd / math.sqrt(len(counts))
        assert 0.7 * sd**2 < variance < 1.4 * sd**2


def test_all_subsets_are_there_and_every_seed_finds_them(compiled: Compiled) -> None:
    program = echoc.load(compiled("subsets.pli"))
    found = []
    for seed in (0, 1):
        run = program.create(seed=seed)
        outcome = run.advance()
        assert outcome.halted
        assert run.environment() == {"o": 16}
        inner = [m for m in run.membranes() if m["label"] == "2"]
        assert all(m["charge"] == 1 and m["parent"] == 0 for m in inner)
        found.append(sorted(tuple(sorted(m["objects"])) for m in inner))
        assert len(set(found[-1])) == 16
    assert found[0] == found[1]


def test_a_system_that_grows_without_end_stops_at_the_memory_it_may_have(compiled: Compiled) -> None:
    run = SystemProgram(compiled("splitting.pli"), max_bytes=4 << 20).create()
    with pytest.raises(PopulationLimit, match=r"needs more .* than fit 4 MiB of memory; the run stands at step"):
        run.advance()
    memory = run.memory()
    assert memory["peak_bytes"] <= memory["max_bytes"]
    assert memory["membranes"] == 1 + 2**run.steps
    assert memory["forks"] == 2**run.steps - 1
    before = run.totals()
    assert before["2"]["objects"] == {"a": 2**run.steps, "y": 3 * 2**run.steps}
    with pytest.raises(PopulationLimit):
        run.advance(1)
    assert run.totals() == before


def test_threads_change_nothing(compiled: Compiled) -> None:
    ends = []
    for threads in (1, 2, 3):
        run = SystemProgram(compiled("splitting.pli"), num_threads=threads, max_bytes=64 << 20).create(seed=3)
        run.advance(11)
        ends.append((run.membranes(), run.environment()))
    assert ends[0] == ends[1] == ends[2]
    assert len(ends[0][0]) == 1 + 2**11


def test_runs_of_a_batch_are_those_made_alone(compiled: Compiled) -> None:
    program = echoc.load(compiled("weather.pli"))
    batch = program.create_many(6, seed=9)
    batch.advance(5)
    for index in (0, 5):
        alone = program.create(seed=9, run=index)
        alone.advance(5)
        assert program.row(batch, index).membranes() == alone.membranes()
    later = program.create_many(2, seed=9, first=4)
    later.advance(5)
    assert program.row(later, 1).membranes() == program.row(batch, 5).membranes()
    total = program.create(seed=9)
    total.advance(3)
    weather = next(m for m in total.membranes() if m["objects"])
    assert sum(weather["objects"].values()) == 400


def test_runs_of_membranes_that_come_and_go_are_a_batch_too(compiled: Compiled) -> None:
    program = SystemProgram(compiled("subsets.pli"), num_threads=2, max_bytes=64 << 20)
    batch = program.create_many(5, seed=7, first=2)
    batch.advance()
    assert batch.halted.all()
    for index in (0, 4):
        alone = program.create(seed=7, run=2 + index)
        assert alone.advance().steps == batch.steps[index]
        assert program.row(batch, index).membranes() == alone.membranes()
    assert batch.memory()["membranes"] == 5 * 17
    assert batch[0].memory()["max_bytes"] == (64 << 20) // 5


@pytest.mark.parametrize("name", ["choosing.pli", "weather.pli"])
def test_every_kind_of_run_forks(compiled: Compiled, name: str) -> None:
    program = echoc.load(compiled(name))
    run = program.create(seed=3, run=2)
    run.advance(2 if name == "weather.pli" else 0)
    fork = run.fork()
    before = fork.membranes()
    run.advance(1)
    assert fork.membranes() == before != run.membranes()
    fork.advance(1)
    assert (fork.membranes(), fork.steps) == (run.membranes(), run.steps)
    fork.release()
    assert run.advance(1).steps >= 1


def test_zero_steps_are_the_start(compiled: Compiled) -> None:
    run = echoc.load(compiled("doubling.pli")).create()
    assert run.advance(0).steps == 0
    assert run.membranes()[0]["objects"] == {"a": 1}
    with pytest.raises(RequestError, match="wanted 0 or more"):
        run.advance(-1)


def test_what_does_not_fit_is_said(compiled: Compiled) -> None:
    program = echoc.load(compiled("doubling.pli"))
    with pytest.raises(RequestError, match="seed"):
        program.create(seed=-1)
    with pytest.raises(RequestError, match="0 runs were asked for"):
        program.create_many(0)
    with pytest.raises(DeviceError, match="too few for a population"):
        SystemProgram(compiled("doubling.pli"), max_bytes=100).create()
    with pytest.raises(DeviceError, match="num_threads is 0"):
        SystemProgram(compiled("doubling.pli"), num_threads=0).create()
    with pytest.raises(ArtifactError, match="no P system"):
        SystemProgram(compiled("control.pep"))


def test_a_numerical_system_steps_as_a_program(compiled: Compiled) -> None:
    program = echoc.load(compiled("control.pep"))
    values = [program.step({})["values"].tolist() for _ in range(2)]
    assert values == [[1.5, 1.5], [2.0, 3.5]]


@pytest.mark.parametrize(("name", "load"), [("doubling.pli", PopulationBatch), ("weather.pli", Runs)])
def test_kernels_of_another_calling_convention_are_refused(compiled: Compiled, name: str, load: Load) -> None:
    """A kernel that reads other structures than the runtime writes would run and be wrong."""
    artifact = Artifact(compiled(name))
    layout = artifact.manifest.raw["system"]["layout"]
    library = bytes(artifact.view("kernels/cpu.so"))
    load(library, layout)
    entry = layout["entry"].encode()
    with pytest.raises(DeviceError, match="compiled for another version"):
        load(library.replace(entry + b"_abi", entry + b"_old"), layout)
