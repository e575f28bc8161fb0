"""Finds the quickest schedule of every matmul of a model on this machine, by running whole steps with each candidate.

A candidate is a complete set of kernels: each is compiled with random weights, run in a process of its own, in turns,
and its launches are timed where they stand in the step, with the caches as the launches before leave them. Results do
not depend on a schedule, so none has to be checked.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echoc.compiler import schedules
from echoc.compiler.api import compile as compile_model
from echoc.compiler.bundle import Progress
from echoc.compiler.schedules import Schedule, matmul_key
from echoc.errors import CompileError

# What differs from the default: blocks matter to many rows, the prefetch distance to few, so both are tried at once.
CANDIDATES: tuple[Schedule, ...] = (
    {},
    {"rows": 192, "panels": 8, "ahead": 1024},
    {"rows": 96, "panels": 8, "ahead": 4096},
    {"rows": 48, "panels": 16, "ahead": 512},
    {"rows": 192, "panels": 16, "ahead": 8192},
    {"rows": 96, "panels": 4, "ahead": 3072},
)
FIELDS_OF = {"batch": ("ahead",), "prefill": ("rows", "panels")}  # what a phase chooses
LEAST_GAIN = 1.02


@dataclass(frozen=True)
class Choice:
    """What was found for a kernel: `gain` is the time of the default over the time of the choice, by phase."""

    kernel: str
    schedule: Schedule
    gain: Mapping[str, float]


class _Everywhere(Mapping[str, Schedule]):
    """The same schedule for every kernel."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __getitem__(self, kernel: str) -> Schedule:
        return self.schedule

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def get(self, kernel: str, default: Any = None) -> Any:
        return self.schedule


def tune(
    model: str | os.PathLike[str],
    *,
    level: str = "native",
    weights_dtype: str = "bf16",
    kv_dtype: str | None = None,
    group: int = 32,
    rows: int = 8,
    prompt: int = 512,
    rounds: int = 3,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Choice], Path]:
    """Measures the candidates and keeps the best ones in the tuning database, which `compile` reads.

    Args:
        model: a model folder or a config.json; its weights are not read.
        level, weights_dtype, kv_dtype, group: as for `compile`.
        rows: rows of the batched decode that is timed (2 to 12).
        prompt: tokens of the prefill that is timed.
        rounds: measurements of each candidate, in turns; their medians decide.
        threads: default: the cores at hand.
    Returns: a choice for each matmul, and the file they were put in.
    Raises: CompileError where the model does not compile or a measurement fails.
    """
    report = progress or (lambda stage, done, total: None)
    source = Path(model)
    config = source if source.is_file() else source / "config.json"
    with tempfile.TemporaryDirectory(prefix="echoc-tune-") as folder:
        paths = []
        for i, schedule in enumerate(CANDIDATES):
            report("compile candidates", i, len(CANDIDATES))
            path = Path(folder) / f"{i}.echo"
            compile_model(
                config, target=f"cpu:{level}", weights_dtype=weights_dtype, kv_dtype=kv_dtype, group=group,
                weights="random:0", output=path, context_length=None, schedules=_Everywhere(schedule),
            )  # fmt: skip
            paths.append(path)
        samples: list[list[dict[str, Any]]] = [[] for _ in paths]
        for done in range(rounds * len(paths)):
            report("time candidates", done, rounds * len(paths))
            which = done % len(paths)
            samples[which].append(_measured(paths[which], rows, prompt, threads))
        report("time candidates", rounds * len(paths), rounds * len(paths))
    choices = choose(CANDIDATES, samples)
    found = {c.kernel: {"schedule": dict(c.schedule), "gain": max(c.gain.values())} for c in choices if c.schedule}
    return choices, schedules.save(level, found)


def _measured(path: Path, rows: int, prompt: int, threads: int | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "echoc.runtime.profile", str(path), "--rows", str(rows), "--prompt", str(prompt)]
    command += ["--threads", str(threads)] if threads is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"timing a candidate failed: {(done.stderr.strip() or 'no message')[-500:]}")
    phases: dict[str, Any] = json.loads(done.stdout)["phases"]
    return phases


def choose(candidates: Sequence[Schedule], samples: Sequence[Sequence[Mapping[str, Any]]]) -> list[Choice]:
    """The best schedule of each matmul.

    Args:
        candidates: the first is the default.
        samples: of each candidate, the phases of `echoc.runtime.profile`, several times.
    """
    times: dict[str, dict[str, list[float]]] = defaultdict(dict)  # kernel, phase -> seconds of each candidate
    for which, rounds in enumerate(samples):
        totals: dict[tuple[str, str], list[float]] = defaultdict(list)
        for phases in rounds:
            for phase in FIELDS_OF:
                for kernel, seconds in _by_kernel(phases[phase]).items():
                    totals[kernel, phase].append(seconds)
        for (kernel, phase), taken in totals.items():
            times[kernel].setdefault(phase, [float("inf")] * len(candidates))[which] = statistics.median(taken)
    return [_choice(kernel, candidates, phases) for kernel, phases in sorted(times.items())]


def _choice(kernel: str, candidates: Sequence[Schedule], phases: Mapping[str, Sequence[float]]) -> Choice:
    schedule: dict[str, int] = {}
    gain: dict[str, float] = {}
    for phase, seconds in phases.items():
        best = min(range(len(seconds)), key=lambda i: seconds[i])
        gain[phase] = seconds[0] / seconds[best]
        if gain[phase] < LEAST_GAIN:
            gain[phase] = 1.0
            continue
        schedule |= {name: candidates[best][name] for name in FIELDS_OF[phase]}
    return Choice(kernel, schedule, gain)


def _by_kernel(launches: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for launch in launches:
        record = launch["schedule"]
        if "interleave" in record:
            key = matmul_key(record["format"], record["group"], record["interleave"], record["n"], record["k"])
            totals[key] += launch["seconds"]
    return totals
