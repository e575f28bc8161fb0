"""Speed of compiled systems whose membranes stay, on one thread, in CPU time.

    python -m echoc.bench.membranes.runs [--json] [--model FILE.pli --runs 1000 --steps 42]

Chemical systems: Lotka-Volterra beside a loop written by hand (lotka_volterra.cpp, built with the same flags), and a
ring of diffusing compartments, whose reactions go by tables. Population dynamics: the file that is named.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from echoc.compiler.ir.algebra import Cell, Group, Mode, Rule, System, bag
from echoc.compiler.targets.cpu.build import FLAGS, find_compiler, level_flags
from echoc.compiler.targets.cpu.rewriting.runs import build, generate
from echoc.membranes.plingua import read
from echoc.runtime.runs import Runs

CONSTANTS = (10.0, 0.01, 10.0)
START = 1000
REPEATS = 5


def compile_runs(system: System) -> tuple[Runs, float]:
    """The loaded kernel and the seconds that generating and building took."""
    begin = time.perf_counter()
    generated = generate(system)
    runs = Runs(build(generated), generated.layout)
    return runs, time.perf_counter() - begin


def timed(work: Callable[[], int]) -> tuple[int, float]:
    """What the work returns and the CPU seconds that it took: it runs on one thread."""
    begin = time.process_time()
    done = work()
    return done, time.process_time() - begin


def chemical(rules: list[Rule], start: dict[str, int]) -> System:
    return System("chemical", (Cell("1", None, bag(start)),), tuple(rules), (Group(tuple(range(len(rules)))),),
                  Mode.GILLESPIE)  # fmt: skip


def lotka_volterra(events: int) -> dict[str, Any]:
    """Million events a second of the compiled system and of the loop by hand, in turns."""
    first, both, last = CONSTANTS
    rules = [
        Rule("1", bag("X"), bag({"X": 2}), rate=first),
        Rule("1", bag(["X", "Y"]), bag({"Y": 2}), rate=both),
        Rule("1", bag("Y"), rate=last),
    ]
    runs, _ = compile_runs(chemical(rules, {"X": START, "Y": START}))
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "lotka_volterra.so"
        source = Path(__file__).parent / "lotka_volterra.cpp"
        flags = [f for f in FLAGS if f != "-fvisibility=hidden"]
        command = [*find_compiler().command, *flags, *level_flags("native"), "-shared", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        function = ctypes.CDLL(str(library)).lotka_volterra
    function.restype = ctypes.c_int64
    constants = (ctypes.c_double * 3)(*CONSTANTS)

    def by_hand(seed: int) -> int:
        x, y, at = ctypes.c_int64(START), ctypes.c_int64(START), ctypes.c_double(0)
        out = ctypes.byref(x), ctypes.byref(y), ctypes.byref(at)
        return int(function(ctypes.c_uint64(seed), ctypes.c_int64(events), constants, *out))

    def compiled(seed: int) -> int:
        batch = runs.start(seed=seed, threads=1)
        batch.advance(events)
        return int(batch.steps[0])

    speeds: dict[str, list[float]] = {"compiled": [], "by hand": []}
    for seed in range(REPEATS + 1):
        for name, work in (("compiled", compiled), ("by hand", by_hand)):
            done, seconds = timed(lambda work=work, seed=seed: work(seed))  # type: ignore[misc]
            if seed:  # the first round warms up
                speeds[name].append(done / seconds / 1e6)
    fast, limit = (statistics.median(s) for s in speeds.values())
    return {"name": "Lotka-Volterra", "Mevents/s": fast, "by hand Mevents/s": limit, "ratio": fast / limit}


def ring(compartments: int, events: int) -> dict[str, Any]:
    """Diffusion around a ring: two reactions a compartment."""
    rules = []
    for i in range(compartments):
        for j in ((i + 1) % compartments, (i - 1) % compartments):
            rules.append(Rule("1", bag([f"x{i}"]), bag([f"x{j}"]), rate=1.0))
    runs, _ = compile_runs(chemical(rules, {f"x{i}": 100 for i in range(compartments)}))
    speeds = []
    for seed in range(REPEATS):
        batch = runs.start(seed=seed, threads=1)
        _, seconds = timed(lambda batch=batch: len(batch.advance(events)))  # type: ignore[misc]
        speeds.append(events / seconds / 1e6)
    return {"name": f"ring of {compartments}", "reactions": len(rules), "Mevents/s": statistics.median(speeds)}


def population(path: Path, count: int, steps: int) -> dict[str, Any]:
    """CPU seconds for `count` runs of `steps` steps of a population dynamics file."""
    system = read(path)
    runs, build_seconds = compile_runs(system)
    seconds = []
    for seed in range(REPEATS):
        batch = runs.start(count, seed=seed, threads=1)
        seconds.append(timed(lambda batch=batch: len(batch.advance(steps)))[1])  # type: ignore[misc]
    return {
        "name": path.name, "rules": len(system.rules), "runs": count, "steps": steps,
        "CPU seconds": statistics.median(seconds), "us/step": statistics.median(seconds) / count / steps * 1e6,
        "compile seconds": build_seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--model", type=Path, action="append", default=[], help="a population dynamics file")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=42)
    parser.add_argument("--events", type=int, default=2_000_000)
    options = parser.parse_args()
    rows = [lotka_volterra(options.events), ring(1000, options.events // 4)]
    rows += [population(path, options.runs, options.steps) for path in options.model]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        figures = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "name")
        print(f"{row['name']}: {', '.join(figures)}")


if __name__ == "__main__":
    main()
