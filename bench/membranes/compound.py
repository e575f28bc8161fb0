"""What a step of a compound system costs: idle membranes, one that works beside them, one that is woken for nothing.

    python bench/membranes/compound.py [--membranes 1000] [--steps 2000] [--json]

The topology is a ring of P systems that hold nothing to do, and one P system whose rule is applied in every step for
ever. A membrane is idle when nothing reached it and its content has halted. Times are the median of five runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from echoc.membranes.compound import Membrane, compile
from echoc.runtime.compound import CompoundProgram, CompoundRun

RELAY = "@model<transition>\ndef main() { @mu = []'1; [a]'1 --> a []'1; }\n"
ENDLESS = "@model<transition>\ndef main() { @mu = []'1; @ms(1) = a; [a --> a]'1; }\n"
WOKEN = "@model<transition>\ndef main() { @mu = []'1; [a, b --> c]'1; }\n"
PASS = {"inputs": {"x": "objects a"}, "outputs": {"y": "objects a"}}
REPEATS = 5


def ring(membranes: int, clock: bool = False, knock: bool = False) -> Membrane:
    """Relays in a ring that pass on what `knock` gives to the first; a clock that never halts."""
    top = Membrane("ring", {"knock": "objects a"} if knock else {})
    for i in range(membranes):
        top.add(f"relay{i}", **PASS, pli=RELAY)
    for i in range(membranes):
        top.wire(f"relay{i}.y", f"relay{(i + 1) % membranes}.x")
    if clock:
        top.add("clock", pli=ENDLESS)
    if knock:
        top.wire("knock", "relay0.x")
    return top


def sleeper() -> Membrane:
    """One that gets objects to which no rule applies."""
    top = Membrane("sleeper", {"knock": "objects a"})
    top.add("woken", inputs={"x": "objects a"}, pli=WOKEN)
    top.wire("knock", "woken.x")
    return top


def timed(steps: int, once: Callable[[], object]) -> float:
    """Seconds a call, the median of several runs."""
    found = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        for _ in range(steps):
            once()
        found.append((time.perf_counter() - begin) / steps)
    return statistics.median(found)


def start(topology: Membrane, folder: Path) -> CompoundRun:
    """A run in which everything that halts has halted."""
    path = folder / f"{topology.name}-{len(topology.children)}-{len(topology.ports)}.echo"
    run = CompoundProgram(compile(topology, output=path)).create(seed=1)
    for _ in range(3):
        run.step()
    return run


def measure(membranes: int, steps: int) -> dict[str, float]:
    """Microseconds, by what was measured."""
    out: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        idle = start(ring(membranes), folder)
        assert idle.idle
        out["step, all idle"] = 1e6 * timed(steps, idle.step)
        out["an idle membrane in a step, all idle"] = out["step, all idle"] / membranes
        beside = start(ring(membranes, clock=True), folder)
        out["step, one active beside the idle ones"] = 1e6 * timed(steps, beside.step)
        assert beside.activity()["clock"] == beside.steps
        assert beside.activity()["relay0"] <= 2
        alone = start(ring(1, clock=True), folder)
        out["step, one active and one idle"] = 1e6 * timed(steps, alone.step)
        more = out["step, one active beside the idle ones"] - out["step, one active and one idle"]
        out["an idle membrane beside an active one"] = more / (membranes - 1)
        woken = start(sleeper(), folder)
        given = {"knock": {"a": 1}}
        out["step that wakes a membrane whose rules do not apply"] = 1e6 * timed(steps, lambda: woken.step(given))
        passing = start(ring(membranes, knock=True), folder)
        passing.step(given)
        out["step, an object goes from membrane to membrane"] = 1e6 * timed(steps, passing.step)
        assert not passing.idle
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--membranes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.membranes, given.steps)
    if given.json:
        print(json.dumps({"membranes": given.membranes, "steps": given.steps, "microseconds": found}))
        return
    print(f"{given.membranes} membranes, {given.steps} steps, microseconds:")
    for name, value in found.items():
        print(f"  {value:10.4f}  {name}")


if __name__ == "__main__":
    main()
