"""Every op of the table, and random programs, on a GPU: made where the compiler is, run where the GPU is.

    python tools/gpu_cases.py make FOLDER --target cuda:sm_90a      needs the compiler and this repository's tests
    python tools/gpu_cases.py run FOLDER                            needs numpy and the runtime alone

`make` writes an artifact per case with its inputs and what the numpy meanings give in float64. `run` compares, prints
what is not within its tolerance (relative, in units of the largest value of each output), and exits with 1 if there is
something. Tolerances allow for the approximate division, exponential and roots of GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = {"f64": 1e-12, "f32": 2e-5, "f16": 2e-3, "bf16": 2e-2}
WEIGHTS = {"f32": 1e-4, "bf16": 3e-2, "int8": 5e-2, "int4": 5e-2}
TESTS = Path(__file__).resolve().parents[1] / "tests"


def make(folder: Path, target: str, seeds: int) -> int:
    """Compile all cases into the folder; the number of those that fail."""
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path[:0] = [str(TESTS / name) for name in ("", "ops", "fuzz", "gpu")]
    from device import dequantised, interpret, to_device, widened, widened_arrays
    from op_cases import all_cases
    from random_programs import random_case

    from echoc.compiler.api import lookup
    from echoc.compiler.bundle import Provenance, write_artifact
    from echoc.compiler.targets.backends import Gpu
    from echoc.compiler.targets.gpu import lower
    from echoc.compiler.targets.gpu.build import build_kernels
    from echoc.compiler.targets.gpu.levels import level_of
    from echoc.compiler.weights import Weights

    lower.TOKENS = (64,)
    level = level_of(target)
    backend = Gpu(level)
    folder.mkdir(parents=True, exist_ok=True)
    cases = [*all_cases(), *(random_case(seed) for seed in range(seeds))]
    kernels: dict[str, Any] = {}
    for case in cases:
        case.low = backend.lower(case.program, case.weights_dtype, case.group)
        kernels |= case.low.kernels
    build_kernels(kernels, level, lambda stage, done, total: print(f"\r{stage} {done} of {total}", end="", flush=True))
    print()
    tolerances = {}
    for case in cases:
        name = case.name.replace("/", "_").replace(" ", "_")
        values = Weights(case.program.skin, lookup(case.weights), {})
        code = backend.build(case.low, lambda stage, done, total: None)
        write_artifact(folder / f"{name}.echo", case.low, values, code, Provenance(), lambda stage, done, total: None)
        narrow = case.weights_dtype != "f32"
        wanted = (
            interpret(case.program, case.inputs, dequantised(case))
            if narrow
            else interpret(widened(case.program), widened_arrays(case.inputs), case.weights)
        )
        types = {p.name: p.type.dtype for p in case.program.skin.ports}
        np.savez(
            folder / f"{name}.npz",
            **{f"in {n}": to_device(a, types[n]) for n, a in case.inputs.items()},
            **{f"out {n}": a for n, a in wanted.items()},
        )
        tolerances[name] = {
            n: 0.0 if not types[n].is_float else max(TOLERANCE[types[n]], WEIGHTS[case.weights_dtype] if narrow else 0)
            for n in wanted
        }
    (folder / "cases.json").write_text(json.dumps(tolerances))
    print(f"{len(cases)} cases in {folder}")
    return 0


def run(folder: Path) -> int:
    """Run all cases of the folder; the number of those that are wrong."""
    from echoc.errors import EchoError
    from echoc.runtime.program import load

    tolerances: dict[str, dict[str, float]] = json.loads((folder / "cases.json").read_text())
    wrong = 0
    for name, allowed in tolerances.items():
        arrays = np.load(folder / f"{name}.npz")
        given = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in ")}
        try:
            program = load(folder / f"{name}.echo", num_pages=1)
            found = program.step(given)
        except EchoError as error:
            print(f"{name}: {error}")
            wrong += 1
            continue
        bad = [line for port, limit in allowed.items() if (line := compare(found[port], arrays[f"out {port}"], limit))]
        wrong += bool(bad)
        for line in bad:
            print(f"{name}: {line}")
    print(f"{len(tolerances) - wrong} of {len(tolerances)} cases agree")
    return wrong


def compare(found: Any, wanted: Any, tolerance: float) -> str:
    """What is wrong with an output; empty where nothing is. bf16 comes as its bits."""
    if tolerance and found.dtype == np.uint16:
        found = (found.astype(np.uint32) << 16).view(np.float32)
    if not tolerance:
        differ = int((found != wanted).sum())
        return f"{differ} of {found.size} values differ" if differ else ""
    with np.errstate(all="ignore"):
        largest = float(np.finfo(found.dtype).max) if found.dtype.kind == "f" else np.inf
        wanted = np.where(np.abs(wanted) > largest, np.sign(wanted) * np.inf, wanted)
        finite = np.isfinite(wanted)
        if not np.array_equal(np.isfinite(found), finite) or not np.array_equal(np.isnan(found), np.isnan(wanted)):
            return f"not finite at {np.argwhere(np.isfinite(found) != finite)[:3].tolist()}"
        scale = np.abs(wanted[finite]).max(initial=0) if wanted.size else 0
        error = np.abs(found - wanted)[finite].max(initial=0)
    return f"error {error:.3g} of {scale:.3g}" if error > tolerance * max(scale, 1e-30) else ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("make", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="cuda:sm_90a", help="what `make` compiles for")
    parser.add_argument("--seeds", type=int, default=8, help="random programs")
    options = parser.parse_args(arguments)
    wrong = make(options.folder, options.target, options.seeds) if options.action == "make" else run(options.folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
