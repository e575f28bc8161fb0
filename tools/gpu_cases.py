"""Every op of the table, states and random programs on a GPU: made where the compiler is, run where the GPU is.

    python tools/gpu_cases.py make FOLDER --target cuda:sm_90a      needs the compiler and this repository's tests
    python tools/gpu_cases.py run FOLDER                            needs numpy and the runtime alone

`make` writes an artifact per case with the inputs of its steps and what the numpy meanings give in float64 (with states
in the program's own types). `run` compares, the deterministic variant too where there are states, prints
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
STATES = 2e-2  # attention multiplies in bf16, and some states hold it
WEIGHTS = {"f32": 1e-4, "bf16": 3e-2, "int8": 5e-2, "int4": 5e-2}
TESTS = Path(__file__).resolve().parents[1] / "tests"


def make(folder: Path, target: str, seeds: int) -> int:
    """Compile all cases into the folder; the number of those that fail."""
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path[:0] = [str(TESTS / name) for name in ("", "ops", "fuzz", "gpu")]
    import test_attention
    import test_states
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
    stateful = [*test_attention.CASES.values(), *test_states.CASES.values()]
    cases = [*all_cases(), *(random_case(seed) for seed in range(seeds)), *stateful]
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
        narrow, held = case.weights_dtype != "f32", bool(case.program.skin.states)
        if held:
            steps = stateful_steps(case)
        elif narrow:
            steps = [(case.inputs, interpret(case.program, case.inputs, dequantised(case)))]
        else:
            steps = [(case.inputs, interpret(widened(case.program), widened_arrays(case.inputs), case.weights))]
        types = {p.name: p.type.dtype for p in case.program.skin.ports}
        arrays = {}
        for i, (given, wanted) in enumerate(steps):
            arrays |= {f"in {i} {n}": to_device(a, types[n]) for n, a in given.items()}
            arrays |= {f"out {i} {n}": a for n, a in wanted.items() if n in types}
        np.savez(folder / f"{name}.npz", **arrays)
        least = WEIGHTS[case.weights_dtype] if narrow else STATES if held else 0
        tolerances[name] = {
            n: 0.0 if not types[n].is_float else max(TOLERANCE[types[n]], least) for n in steps[0][1] if n in types
        }
    (folder / "cases.json").write_text(json.dumps(tolerances))
    print(f"{len(cases)} cases in {folder}")
    return 0


def stateful_steps(case: Any) -> list[tuple[Any, Any]]:
    """Inputs and outputs of steps that find what those before them have left."""
    import test_attention
    from device import interpret

    from echoc.compiler.ir import DType
    from echoc.compiler.ir.ops.pointwise import cast_array

    generator = np.random.default_rng(3)
    skin = case.program.skin
    types = {s.name: s.type for s in skin.states}
    paged = any(t.kind == "pages" for t in types.values())
    shapes = {n: (test_attention.PAGES, test_attention.PAGE, *t.shape) if paged else t.shape for n, t in types.items()}
    states = {n: np.zeros(shapes[n], np.float32 if paged else types[n].dtype.numpy) for n in types}
    lengths = dict.fromkeys(range(3), 0)
    steps = []
    for step in test_attention.steps():
        if paged:
            sizes = {c: types[f"layer.{c}"].shape[1] for c in "kv"}
            given = test_attention.inputs(generator, lengths, step, sizes)
        else:
            given = {"u": generator.standard_normal(6).astype(np.float32)}
        wanted = interpret(case.program, given, case.weights, states)
        states = {n: cast_array(wanted[f"next {n}"], DType.F32) if paged else wanted[f"next {n}"] for n in states}
        steps.append((given, wanted))
    return steps


def run(folder: Path) -> int:
    """Run all cases of the folder; the number of those that are wrong."""
    from echoc.errors import EchoError
    from echoc.runtime.program import load

    tolerances: dict[str, dict[str, float]] = json.loads((folder / "cases.json").read_text())
    wrong = 0
    for name, allowed in tolerances.items():
        arrays = np.load(folder / f"{name}.npz")
        count = 1 + max(int(key.split()[1]) for key in arrays.files)
        bad = []
        try:
            for deterministic in (False, True) if count > 1 else (False,):
                program = load(folder / f"{name}.echo", num_pages=64, deterministic=deterministic)
                for i in range(count):
                    begin = f"in {i} "
                    found = program.step({k[len(begin) :]: arrays[k] for k in arrays.files if k.startswith(begin)})
                    checked = ((n, compare(found[n], arrays[f"out {i} {n}"], limit)) for n, limit in allowed.items())
                    bad += [f"step {i}, {n}: {line}" for n, line in checked if line]
                del program
        except EchoError as error:
            bad.append(str(error))
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
