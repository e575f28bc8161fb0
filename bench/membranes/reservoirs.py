"""Reservoirs beside ReservoirPy: steps a second, and what they reach on Mackey-Glass, Lorenz and NARMA-10.

python -m echoc.bench.membranes.reservoirs speed      # wants reservoirpy
python -m echoc.bench.membranes.reservoirs accuracy [FIRST SEED]
python -m echoc.bench.membranes.reservoirs search mackey-glass 60
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoc.bench.membranes.signals import LORENZ_EXPONENT, lorenz, mackey_glass, narma10
from echoc.bench.stats import summarise
from echoc.membranes.reservoirs import ESN, ReadoutWarning

Array = NDArray[np.float64]
# found by `search`: the best medians of their tasks
MACKEY_GLASS: Mapping[str, Any] = {
    "spectral_radius": 1.08, "leak": 0.64, "input_scaling": 1.7, "bias": 0.39, "ridge": 1e-13, "squares": "all",
}  # fmt: skip
LORENZ: Mapping[str, Any] = {
    "spectral_radius": 0.66, "leak": 1.0, "input_scaling": 0.26, "bias": 0.43, "ridge": 5e-14, "squares": "half",
}  # fmt: skip
NARMA: Mapping[str, Any] = {
    "spectral_radius": 0.95, "leak": 0.9, "input_scaling": 0.025, "bias": 0.2, "ridge": 3e-15, "squares": "all",
    "connectivity": 0.2, "input_connectivity": 0.2,
}  # fmt: skip


def mackey_glass_error(options: Mapping[str, Any], seed: int, units: int = 1000, starts: int = 50) -> float:
    """log10 NRMSE of the closed loop 84 steps ahead, over `starts` starts behind 4000 steps of training."""
    series = mackey_glass(4001 + 40 * starts + 1100, seed=seed) - 1.0
    washout, length = 1000, 4000
    model = ESN(units, 1, seed=seed, **options)
    model.fit(series[: washout + length], series[1 : washout + length + 1], washout=washout)
    states = model.states(series[:-1])
    errors = []
    for k in range(starts):
        at = washout + length + 20 * k
        model.state, model.output = states[at], series[at + 1]
        errors.append(float(model.free_run(84)[-1, 0] - series[at + 85, 0]))  # series[at + 1] is still known
    return float(np.log10(np.sqrt(np.mean(np.square(errors)) / series.var())))


def lorenz_times(options: Mapping[str, Any], seed: int, units: int = 1000, starts: int = 10) -> list[float]:
    """Valid prediction times in Lyapunov times: until the error, in units of the spread, passes 0.4."""
    steps, washout, length = 1100, 500, 10000
    raw = lorenz(washout + length + steps + 150 * starts, seed=seed)
    mean, spread = raw.mean(0), raw.std(0)
    series = (raw - mean) / spread
    model = ESN(units, 3, seed=seed, **options)
    model.fit(series[: washout + length], series[1 : washout + length + 1], washout=washout)
    states = model.states(series[:-1])
    scale = np.sqrt(np.mean(np.sum(series**2, 1)))
    times = []
    for k in range(starts):
        at = washout + length + 150 * k
        model.state, model.output = states[at], series[at + 1]
        found = model.free_run(steps - 10)
        missed = np.linalg.norm(found - series[at + 2 : at + 2 + len(found)], axis=1) / scale > 0.4
        times.append((int(missed.argmax()) if missed.any() else len(found)) * 0.02 * LORENZ_EXPONENT)
    return times


def narma_error(options: Mapping[str, Any], seed: int, units: int = 200) -> float:
    """NRMSE of NARMA-10, 4000 steps of training and 2000 of test."""
    u, y = narma10(6201, seed)
    model = ESN(units, 1, seed=seed, **options).fit(u[:4200], y[1:4201], washout=200)
    found, wanted = model.predict(u[:-1])[4200:], y[4201:]
    return float(np.sqrt(np.mean((found - wanted) ** 2) / wanted.var()))


def draw_options(task: str, rng: np.random.Generator) -> dict[str, Any]:
    """Hyper-parameters of one trial: log-uniform scalings, uniform radius and leak."""
    leak = 1.0 if task == "lorenz" else float(rng.uniform(0.3 if task == "mackey-glass" else 0.8, 1.0))
    return {
        "spectral_radius": float(rng.uniform(0.2, 1.1)),
        "leak": leak,
        "input_scaling": float(10 ** (rng.uniform(-2, -0.8) if task == "narma" else rng.uniform(-1.5, 0.3))),
        "bias": float(10 ** rng.uniform(-1.5, 0.0)),
        "ridge": float(10 ** rng.uniform(-15, -9)),
        "squares": str(rng.choice(["none", "half", "all"])),
        "input_connectivity": float(rng.choice([0.2, 0.5, 1.0])) if task == "narma" else 1.0,
    }


def score(task: str, options: Mapping[str, Any], seed: int) -> float:
    """Smaller is better."""
    if task == "mackey-glass":
        return mackey_glass_error(options, seed, starts=30)
    if task == "lorenz":
        return -float(np.median(lorenz_times(options, seed)))
    return narma_error(options, seed)


def search(task: str, trials: int, seed: int = 0) -> list[tuple[float, dict[str, Any]]]:
    """Random search, one seed a trial; the best five are tried on two more seeds. Prints as it goes."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(trials):
        options = draw_options(task, rng)
        found.append((score(task, options, 100), options))
        if found[-1][0] <= min(f[0] for f in found):
            print(f"{found[-1][0]:.4f}  {options}", flush=True)
    found.sort(key=lambda f: f[0])
    again = [(float(np.median([s, *(score(task, o, 101 + i) for i in range(2))])), o) for s, o in found[:5]]
    again.sort(key=lambda f: f[0])
    for value, options in again:
        print(f"median of 3: {value:.4f}  {options}", flush=True)
    return again


def accuracy(first: int = 0) -> None:
    """Medians over seeds from `first` on; `search` sees 100 to 102."""
    seeds = range(first, first + 5)
    errors = summarise([mackey_glass_error(MACKEY_GLASS, seed) for seed in seeds])
    print(f"mackey-glass 17, N=1000, T=4000: log10 NRMSE84 {errors.median:.2f} ({errors.low:.2f} to {errors.high:.2f})")
    times = summarise([t for seed in seeds for t in lorenz_times(LORENZ, seed)])
    print(f"lorenz, N=1000, T=10000: valid for {times.median:.1f} Lyapunov times ({times.low:.1f} to {times.high:.1f})")
    for units, draws in ((200, 24), (1000, 5)):  # they spread more
        narma = summarise([narma_error(NARMA, seed, units) for seed in range(first, first + draws)])
        print(f"narma-10, N={units}: NRMSE {narma.median:.4f} ({narma.low:.4f} to {narma.high:.4f})")


def speed(units: int = 1000, connectivity: float = 0.1, steps: int = 200, rounds: int = 60) -> None:
    """Steps a CPU second of one series on one thread, in turn with ReservoirPy's in the same process."""
    from reservoirpy.nodes import Reservoir as Peer

    u = np.random.default_rng(0).uniform(-1, 1, (steps, 1))
    peer = Peer(units, lr=0.7, sr=0.9, rc_connectivity=connectivity, seed=1)
    models = {
        f"{dtype} {pattern}": ESN(units, 1, leak=0.7, connectivity=connectivity, dtype=dtype, pattern=pattern)
        for dtype, pattern in (("f64", "balanced"), ("f32", "balanced"), ("f64", "uniform"))
    }
    runs: dict[str, Callable[[], object]] = {"reservoirpy f64": lambda: peer.run(u)}
    runs |= {f"echoc {d}": (lambda m=m: m.states(u)) for d, m in models.items()}  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            times[name].append((time.process_time() - begin) / steps)
    for name, values in times.items():
        rate = summarise([1 / v for v in values])
        print(f"{name}: {rate.median:.0f} steps/s (best {rate.high:.0f}, worst {rate.low:.0f})")
    peer_times = times["reservoirpy f64"]
    for d, model in models.items():
        packed = model.engine._packed
        assert packed is not None
        own = times[f"echoc {d}"]
        print(
            f"echoc {d}: {summarise(peer_times).median / summarise(own).median:.1f} times ReservoirPy by the medians, "
            f"{min(peer_times) / min(own):.1f} by the best; a step reads {packed.stream_bytes / 1024:.0f} KiB, of its "
            f"slots {packed.weights / packed.slots:.0%} are weights; at best it takes {min(own) * 1e6:.1f} us, "
            f"{min(own) * 1e9 / packed.weights:.3f} ns a weight, {packed.stream_bytes / min(own) / 1e9:.0f} GB/s"
        )
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def main(arguments: list[str]) -> None:
    """Runs what the command line asks for."""
    warnings.simplefilter("ignore", ReadoutWarning)
    what = arguments[0] if arguments else "speed"
    if what == "speed":
        speed()
    elif what == "accuracy" and len(arguments) < 3:
        accuracy(int(arguments[1]) if len(arguments) == 2 else 0)
    elif what == "search" and len(arguments) in (3, 4):
        search(arguments[1], int(arguments[2]), int(arguments[3]) if len(arguments) == 4 else 0)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
