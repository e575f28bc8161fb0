"""A reservoir program in one artifact: the packed plan, the kernel bound to its ports, the manifest.

The program's rule is one instant. A step of the artifact takes T of them, one after another: its ports have the time
as their first axis, and the state stays from step to step.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import echoc
from echoc.compiler.artifact import ArtifactWriter, Blob
from echoc.compiler.ir import Program
from echoc.compiler.ir.text import show
from echoc.compiler.ir.verify import verify
from echoc.compiler.targets.cpu.build import Progress, build_library, find_compiler, target_features
from echoc.compiler.targets.cpu.reservoir import TYPES, PackedNetwork, is_wide, pack, render
from echoc.compiler.targets.cpu.reservoir_rule import Values, network_of
from echoc.compiler.targets.interface import states_of
from echoc.errors import CompileError

if TYPE_CHECKING:
    from echoc.runtime.artifact import Artifact

MAX_STEPS = 1 << 20
LIBRARY, WEIGHTS, PLAN = "kernels/cpu.so", "weights.safetensors", "reservoir.plan"


def compile_reservoir(
    program: Program,
    values: Values,
    *,
    output: str | os.PathLike[str],
    target: str = "cpu",
    progress: Progress | None = None,
) -> Artifact:
    """Compile a program of one membrane whose rule is a reservoir (see `reservoir_rule`).

    Args:
        program: one vector in, one out (the states, or a readout of them); value states; f64 or f32 throughout.
        values: the values of its weights by name.
        output: the artifact's path.
        target: `cpu` or `cpu:LEVEL`.
    Returns: the opened artifact; `echoc.load(path).step({in: [T, channels]})` gives {out: [T, channels]}.
    Raises: CompileError (IRError for a program that the verifier rejects).
    """
    from echoc.runtime.artifact import Artifact

    device, _, level = target.partition(":")
    if device != "cpu":
        raise CompileError(f"unknown target {target!r}; wanted cpu or cpu:LEVEL")
    level = level or "native"
    verify(program)
    skin = program.skin
    if len(skin.rules) != 1 or skin.children:
        raise CompileError(
            f"membrane {skin.name} has {len(skin.rules)} rules and {len(skin.children)} children; wanted one rule"
        )
    dtypes = {str(s.type.dtype) for s in skin.states} | {str(p.type.dtype) for p in skin.ports}
    if len(dtypes) != 1 or not dtypes <= set(TYPES):
        raise CompileError(
            f"the states and ports of membrane {skin.name} are {', '.join(sorted(dtypes))}; wanted f64 or f32 for all"
        )
    dtype = dtypes.pop()
    network = network_of(skin, skin.rules[0], values)
    packed = pack(network, dtype, is_wide(level))
    name, source = render(_holes(dtype, network.readout is not None), show(program).splitlines()[:60])
    library = build_library({name: source}, level, progress, tiles=False)
    path = Path(output)
    with ArtifactWriter(path) as writer:
        writer.weights(WEIGHTS, [Blob(PLAN, packed.data.nbytes, lambda: [packed.data])], lambda done, total: None)
        writer.member(LIBRARY, [library])
        writer.member("program.eir", [show(program).encode()])
        writer.member(f"kernels/{name}.cpp", [source.encode()])
        writer.finish(_manifest(program, name, packed, level))
    return Artifact(path, verify=False)


def _holes(dtype: str, readout: bool) -> dict[str, Any]:
    out = "outputs" if readout else "states"
    return {
        "type": TYPES[dtype][0], "batch": "1", "steps": "call->dims[0]", "closed": "false", "dropped": [],
        "pointers": [("state", 1), ("output", 2), ("inputs", 3), (out, 4)],
    }  # fmt: skip


def _manifest(program: Program, kernel: str, packed: PackedNetwork, level: str) -> dict[str, Any]:
    skin = program.skin
    size = TYPES[str(skin.ports[0].type.dtype)][1]
    header = packed.data[:80].view(np.int64)
    units, outputs = int(header[3]), int(header[4])
    ports = [
        {"name": p.name, "direction": p.direction, "dtype": str(p.type.dtype), "shape": ["T", *p.type.shape]}
        for p in sorted(skin.ports, key=lambda p: p.direction == "out")
    ]
    if len(ports) == 1:  # nothing comes in: the steps are counted by an input without channels
        ports.insert(0, {"name": "u", "direction": "in", "dtype": ports[0]["dtype"], "shape": ["T", 0]})
    arguments = [["weight", 0], ["state", 0], ["state", 1], ["port", 0], ["port", 1]]
    states = [
        {"name": name, "kind": "value", "page_size": 0, "bytes_per_page": count * size,
         "dtype": str(skin.ports[0].type.dtype), "shape": [count]}
        for name, count in (("x", units), ("y", max(outputs, 1)))
    ]  # fmt: skip
    launch = {"kernel": kernel, "barrier": False, "args": arguments, "schedule": {}, "ops": ["contract", "tanh"]}
    return {
        "schema": 1,
        "echoc": echoc.__version__,
        "source": {"model_type": "reservoir"},
        "tools": {"numpy": np.__version__, "compiler": find_compiler().version},
        "target": {
            "device": "cpu", "level": level, "machine": platform.machine(), "features": list(target_features(level)),
        },
        "membrane": {
            "name": skin.name, "states": [s["name"] for s in states_of(skin)], "rules": [skin.rules[0].name],
            "ports": [p.name for p in skin.ports], "children": [],
        },
        "symbols": [{"name": "T", "low": 1, "high": MAX_STEPS}],
        "states": states,
        "ports": ports,
        "weights": [
            {
                "name": PLAN, "member": WEIGHTS, "format": "plain", "group": 0, "interleave": 1, "dtype": "u8",
                "shape": [packed.data.nbytes], "experts": 1, "nbytes": packed.data.nbytes, "std": 0.0, "sources": [],
            }
        ],
        "random_weights": None,
        "kernels": {"library": LIBRARY, "sources": {kernel: f"kernels/{kernel}.cpp"}},
        "variants": [
            {
                "rule": skin.rules[0].name, "max_tokens": None, "max_rows": None, "deterministic": deterministic,
                "arena_bytes": 0, "scratch_bytes": packed.scratch_bytes,
                "launches": [launch],
            }
            for deterministic in (False, True)
        ],
        "model": {},
        "page_size": 16,
    }  # fmt: skip
