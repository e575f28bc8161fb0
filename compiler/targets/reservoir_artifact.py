"""A reservoir program in one artifact: the packed plan, the kernel bound to its ports, the manifest.

The program's rule is one instant. A step of the artifact takes T of them, one after another: its ports have the time
as their first axis, and the state stays from step to step.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import echoc
from echoc.compiler.artifact import SCHEMA, ArtifactWriter, Blob
from echoc.compiler.ir import Membrane, Program
from echoc.compiler.ir.text import show
from echoc.compiler.ir.verify import verify
from echoc.compiler.targets.cpu.build import Progress, build_library, find_compiler, target_features
from echoc.compiler.targets.cpu.reservoir import TYPES, NetworkPlan, is_wide, pack, render
from echoc.compiler.targets.cpu.reservoir_rule import Values, network_of
from echoc.compiler.targets.gpu.cpp import versions
from echoc.compiler.targets.gpu.levels import LEVELS, level_of
from echoc.compiler.targets.gpu.reservoir import reservoir_kernel
from echoc.compiler.targets.interface import states_of
from echoc.errors import CompileError

if TYPE_CHECKING:
    from echoc.runtime.artifact import Artifact

MAX_STEPS = 1 << 20
LIBRARY, WEIGHTS, PLAN = "kernels/cpu.so", "weights.safetensors", "reservoir.plan"


@dataclass(frozen=True)
class _Code:
    """What a target gives to the artifact: the plan of the weights, the manifest's entries, further members."""

    plan: NDArray[np.uint8]
    target: dict[str, Any]
    tools: dict[str, str]
    kernels: dict[str, Any]
    variant: dict[str, Any]
    launch: dict[str, Any]
    members: dict[str, bytes]


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
        target: `cpu`, `cpu:LEVEL`, `cuda:LEVEL` or `rocm:LEVEL`.
    Returns: the opened artifact; `echoc.load(path).step({in: [T, channels]})` gives {out: [T, channels]}.
    Raises: CompileError (IRError for a program that the verifier rejects).
    """
    from echoc.runtime.artifact import Artifact

    device, _, level = target.partition(":")
    if device != "cpu" and device not in LEVELS:
        raise CompileError(f"unknown target {target!r}; wanted cpu, cpu:LEVEL, cuda:LEVEL or rocm:LEVEL")
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
    comment = show(program).splitlines()[:60]
    if device == "cpu":
        code = _for_cpu(network, dtype, level or "native", comment, progress)
    else:
        code = _for_gpu(network, dtype, target, comment, progress)
    path = Path(output)
    with ArtifactWriter(path) as writer:
        writer.weights(WEIGHTS, [Blob(PLAN, code.plan.nbytes, lambda: [code.plan])], lambda done, total: None)
        for name, data in code.members.items():
            writer.member(name, [data])
        writer.member("program.eir", [show(program).encode()])
        writer.finish(_manifest(skin, network, dtype, code))
    return Artifact(path, verify=False)


def _for_cpu(
    network: NetworkPlan, dtype: str, level: str, comment: Sequence[str], progress: Progress | None
) -> _Code:  # fmt: skip
    out = "states" if network.readout is None else "outputs"
    packed = pack(network, dtype, is_wide(level))
    holes: dict[str, Any] = {
        "type": TYPES[dtype][0], "batch": "1", "steps": "call->dims[0]", "closed": "false", "dropped": [],
        "pointers": [("state", 1), ("output", 2), ("inputs", 3), (out, 4)],
    }  # fmt: skip
    name, source = render(holes, comment)
    library = build_library({name: source}, level, progress, tiles=False)
    arguments = [["weight", 0], ["state", 0], ["state", 1], ["port", 0], ["port", 1]]
    return _Code(
        plan=packed.data,
        target={
            "device": "cpu", "level": level, "machine": platform.machine(), "features": list(target_features(level)),
        },
        tools={"compiler": find_compiler().version},
        kernels={"library": LIBRARY, "sources": {name: f"kernels/{name}.cpp"}},
        variant={"arena_bytes": 0, "scratch_bytes": packed.scratch_bytes},
        launch={"kernel": name, "barrier": False, "args": arguments, "schedule": {}},
        members={LIBRARY: library, f"kernels/{name}.cpp": source.encode()},
    )  # fmt: skip


def _for_gpu(
    network: NetworkPlan, dtype: str, target: str, comment: Sequence[str], progress: Progress | None
) -> _Code:  # fmt: skip
    level = level_of(target)
    out = "states" if network.readout is None else "outputs"
    loop = "feedback" if network.feedback and network.readout is not None else "none"
    pointers = ("state", "output", "inputs", out)
    kernel = reservoir_kernel(network, dtype, level, loop=loop, pointers=pointers, batch="1", comment=comment)
    image, needs = kernel.build(level)
    if progress:
        progress("compile kernels", 1, 1)
    name, member = kernel.name, f"kernels/{kernel.name}.{level.suffix}"
    arguments = [["weight", 0], ["arena", 0], ["state", 0], ["state", 1], ["port", 0], ["port", 1]]
    binary = {
        "member": member, "entry": name, "threads": kernel.shape.threads, "shared_bytes": kernel.shared_bytes,
        "extra_pointers": 0, "registers": needs.registers, "spills": needs.spills, "num_stages": 1,
        "together": kernel.shape.blocks > 1,
    }  # fmt: skip
    return _Code(
        plan=kernel.plan,
        target={"device": level.device.vendor, "level": level.runs_on or level.name},
        tools={"clang": versions(level.device.vendor)},
        kernels={"binaries": {name: binary}, "sources": {name: f"kernels/{name}.cpp"}},
        variant={"arena_bytes": kernel.mail_bytes},
        launch={
            "kernel": name, "args": arguments, "symbols": [0], "grid": [[[[kernel.shape.blocks, []]], 1]],
            "dependent": False, "schedule": kernel.schedule,
        },
        members={member: image, f"kernels/{name}.cpp": kernel.source.encode()},
    )  # fmt: skip


def _manifest(skin: Membrane, network: NetworkPlan, dtype: str, code: _Code) -> dict[str, Any]:
    size = TYPES[dtype][1]
    units = sum(layer.units for layer in network.layers)
    outputs = 0 if network.readout is None else len(network.readout)
    ports = [
        {"name": p.name, "direction": p.direction, "dtype": str(p.type.dtype), "shape": ["T", *p.type.shape]}
        for p in sorted(skin.ports, key=lambda p: p.direction == "out")
    ]
    if len(ports) == 1:  # nothing comes in: the steps are counted by an input without channels
        ports.insert(0, {"name": "u", "direction": "in", "dtype": ports[0]["dtype"], "shape": ["T", 0]})
    states = [
        {"name": name, "kind": "value", "page_size": 0, "bytes_per_page": count * size,
         "dtype": dtype, "shape": [count]}
        for name, count in (("x", units), ("y", max(outputs, 1)))
    ]  # fmt: skip
    return {
        "schema": SCHEMA,
        "echoc": echoc.__version__,
        "source": {"model_type": "reservoir"},
        "tools": {"numpy": np.__version__, **code.tools},
        "target": code.target,
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
                "shape": [code.plan.nbytes], "experts": 1, "nbytes": code.plan.nbytes, "std": 0.0, "sources": [],
            }
        ],
        "random_weights": None,
        "kernels": code.kernels,
        "variants": [
            {
                "rule": skin.rules[0].name, "max_tokens": None, "max_rows": None, "deterministic": deterministic,
                **code.variant, "launches": [code.launch | {"ops": ["contract", "tanh"]}],
            }
            for deterministic in (False, True)
        ],
        "model": {},
        "page_size": 16,
    }  # fmt: skip
