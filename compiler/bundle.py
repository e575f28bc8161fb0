"""Everything of a compiled program in one artifact: weights packed as they are written, kernels, manifest."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

import echoc
from echoc import _native
from echoc.compiler.artifact import SCHEMA, ArtifactWriter, Blob
from echoc.compiler.ir import Node, Program
from echoc.compiler.ir.text import show
from echoc.compiler.passes.pack import Packed, Packing
from echoc.compiler.targets.cpu.build import find_compiler, target_features
from echoc.compiler.targets.interface import PAGE_SIZE, shape_json, states_of
from echoc.compiler.weights import Weights

Progress = Callable[[str, int, int], None]
LIBRARY = "kernels/cpu.so"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Provenance:
    """Where an artifact comes from: entries of its manifest, extra members, the spread and seed of random weights."""

    source: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    members: Mapping[str, bytes] = field(default_factory=dict)
    std: float = 0.02
    seed: int | None = None


class Lowered(Protocol):
    """What every device's lowering says of a program."""

    program: Program
    packing: Packing
    plain: list[Node]
    variants: list[dict[str, Any]]


@dataclass(frozen=True)
class Code:
    """What the build step of a device made: entries of the manifest, members, and how packed weights lie in memory.

    `parts` gives the bytes of a packed weight, array after array; `layout` is added to the manifest's entry of each.
    """

    target: Mapping[str, Any]
    kernels: Mapping[str, Any]
    members: Mapping[str, bytes]
    tools: Mapping[str, str]
    nbytes: Callable[[Packed], int]
    parts: Callable[[Packed, Weights, int], Iterable[NDArray[Any]]]
    layout: Mapping[str, Any] = field(default_factory=dict)


def cpu_code(sources: Mapping[str, str], library: bytes, level: str) -> Code:
    """The code of a CPU artifact. `library` holds (at least) the kernels of `sources`."""
    return Code(
        target={
            "device": "cpu", "level": level, "machine": platform.machine(), "features": list(target_features(level)),
        },
        kernels={"library": LIBRARY, "sources": {n: f"kernels/{n}.cpp" for n in sorted(sources)}},
        members={LIBRARY: library} | {f"kernels/{n}.cpp": text.encode() for n, text in sorted(sources.items())},
        tools={"compiler": find_compiler().version},
        nbytes=lambda p: p.experts * _native.packed_nbytes(p.format, p.group, p.interleave, p.n, p.k),
        parts=lambda p, values, threads: values.pack(p, threads),
    )  # fmt: skip


def write_artifact(
    path: Path, lowered: Lowered, values: Weights, code: Code, origin: Provenance, report: Progress
) -> None:
    """Write `path`, whole or not at all."""
    specs, blobs = _weights(lowered, values, code, origin)
    with ArtifactWriter(path) as writer:
        writer.weights(WEIGHTS, blobs, lambda done, total: report("pack weights", done, total))
        for name, data in code.members.items():
            writer.member(name, [data])
        writer.member("program.eir", [show(lowered.program).encode()])
        for name, data in origin.members.items():
            writer.member(name, [data])
        writer.finish(_manifest(lowered, specs, code, origin))


def _weights(
    lowered: Lowered, values: Weights, code: Code, origin: Provenance
) -> tuple[list[dict[str, Any]], list[Blob]]:
    """The manifest's entries of all weights, and the bytes of those that are not drawn when loading."""
    threads = max(1, os.cpu_count() or 1)
    blobs = []
    specs = []
    for packed in lowered.packing.entries:
        nbytes = code.nbytes(packed)
        spec = {
            "name": packed.name, "member": WEIGHTS, "format": packed.format, "group": packed.group,
            "interleave": packed.interleave, "shape": [packed.n, packed.k], "experts": packed.experts,
            "nbytes": nbytes, "std": origin.std, "sources": [w["name"] for w in packed.sources], **code.layout,
        }  # fmt: skip
        specs.append(spec)
        if origin.seed is None or any(w["name"] in values.constants for w in packed.sources):
            blobs.append(Blob(packed.name, nbytes, lambda p=packed: code.parts(p, values, threads)))  # type: ignore[misc]
    for node in lowered.plain:
        array = values.plain(node)
        specs.append(
            {
                "name": node["name"], "member": WEIGHTS, "format": "plain", "group": 0, "interleave": 1,
                "shape": list(node.shape), "dtype": str(node.tensor.dtype), "experts": 1, "nbytes": array.nbytes,
                "std": origin.std, "sources": [node["name"]],
            }
        )  # fmt: skip
        blobs.append(Blob(node["name"], array.nbytes, lambda n=node: [values.plain(n)]))  # type: ignore[misc]
    return specs, blobs


def _manifest(lowered: Lowered, specs: list[dict[str, Any]], code: Code, origin: Provenance) -> dict[str, Any]:
    skin = lowered.program.skin
    return {
        "schema": SCHEMA,
        "echoc": echoc.__version__,
        "source": dict(origin.source),
        "tools": {n: v for n in ("torch", "transformers", "numpy") if (v := _version(n))}
        | dict(code.tools),
        "target": dict(code.target),
        "membrane": {
            "name": skin.name, "states": [s.name for s in skin.states],
            "rules": [r.name for r in skin.rules if r.name != "weights"], "ports": [p.name for p in skin.ports],
            "children": [c.name for c in skin.children],
        },
        "symbols": [{"name": n, "low": a, "high": z} for n, (a, z) in lowered.program.symbols.items()],
        "states": states_of(skin),
        "ports": [
            {"name": p.name, "direction": p.direction, "dtype": str(p.type.dtype), "shape": shape_json(p.type.shape)}
            for p in skin.ports
        ],
        "weights": specs,
        "random_weights": None if origin.seed is None else {"seed": origin.seed},
        "kernels": dict(code.kernels),
        "variants": lowered.variants,
        "model": dict(origin.model),
        "page_size": PAGE_SIZE,
    }  # fmt: skip


def _version(package: str) -> str:
    """The installed version, or an empty text."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
