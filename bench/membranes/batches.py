"""Many runs of a population: one after another, and as a batch that is stepped together.

    python -m echoc.bench.membranes.batches [--json] [--runs 64] [--rounds 11] [--threads N]

SAT by active membranes (systems.py) with few variables, and a random walk: objects that go in and out of two membranes.
The two ways take turns. Wall and CPU seconds for all runs, from loaded kernels to the last configuration, medians with
their range.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import echoc
from echoc.bench.membranes.systems import sat_source, shown
from echoc.bench.stats import summarise
from echoc.runtime.devices.cpu import default_num_threads
from echoc.runtime.systems import SystemProgram

WALK = """@model<transition>
@include "transition_model.pli"
def main() {
  @mu = [[]'2 []'3]'1;
  @ms(2) = w*20; @ms(3) = w*20;
  [w]'2 --> w []'2; [w --> w]'2; [w]'3 --> w []'3; [w --> w]'3;
  [w []'2 --> [w]'2]'1; [w []'3 --> [w]'3]'1; [w --> w]'1;
}
"""
SYSTEMS = {
    "sat n=4 m=10": (sat_source(4, 10), None), "sat n=5 m=20": (sat_source(5, 20), None),
    "sat n=6 m=33": (sat_source(6, 33), None), "walk": (WALK, 1000),
}  # fmt: skip


def one_by_one(program: SystemProgram, runs: int, steps: int | None, seed: int) -> int:
    return sum(program.create(seed=seed, run=i).advance(steps).steps for i in range(runs))


def together(program: SystemProgram, runs: int, steps: int | None, seed: int) -> int:
    batch = program.create_many(runs, seed=seed)
    batch.advance(steps)
    return int(batch.steps.sum())


WAYS: dict[str, Callable[[SystemProgram, int, int | None, int], int]] = {
    "one after another": one_by_one, "together": together,
}  # fmt: skip


def measured(name: str, program: SystemProgram, runs: int, steps: int | None, rounds: int) -> dict[str, Any]:
    """Seconds of each way; the first round warms up. Raises RuntimeError where the two ways differ."""
    wall: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    taken = set()
    for seed in range(rounds + 1):
        for way, work in WAYS.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            taken.add((seed, work(program, runs, steps, seed)))
            if seed:
                wall[way].append(time.perf_counter() - begin)
                cpu[way].append(time.process_time() - begin_cpu)
    if len(taken) != rounds + 1:
        raise RuntimeError(f"{name}: the ways took other numbers of steps: {sorted(taken)}")
    row: dict[str, Any] = {"name": name, "runs": runs, "threads": program.num_threads, "steps": max(taken)[1]}
    for way in WAYS:
        row[f"{way}, wall s"], row[f"{way}, CPU s"] = summarise(wall[way]), summarise(cpu[way])
    first, second = (row[f"{way}, CPU s"].median for way in WAYS)
    return row | {"CPU ratio": first / second}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=default_num_threads())
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="echoc-") as folder:
        for name, (source, steps) in SYSTEMS.items():
            path = Path(folder) / f"{name.replace(' ', '_').replace('=', '')}.pli"
            path.write_text(source, encoding="utf-8")
            artifact = echoc.compile(path, output=path.with_suffix(".echo"))
            program = SystemProgram(artifact, num_threads=options.threads)
            rows.append(measured(name, program, options.runs, steps, options.rounds))
    if options.json:
        print(json.dumps({"schema": "echoc-bench-batches/1", "rows": rows}, indent=2, default=lambda v: v.as_dict()))
        return
    for row in rows:
        print(row["name"])
        for key, value in row.items():
            if key != "name":
                print(f"  {key}: {shown(value)}")


if __name__ == "__main__":
    main()
