"""Kernels that measure a device's limits, for `echoc bench` where no compiler is: they travel with language models.

The manifest names them at kernels.probe. `read` takes data and sums (both i32) and reads BYTES of data a block, so that
it takes as long as reading does. `dot` takes out f32 [blocks, TILE, TILE] and the number `count`: each block multiplies
the same two bf16 tiles, [TILE, DEPTH] by [DEPTH, TILE], count times into one sum, with nothing to fetch meanwhile, so
that it takes as long as the matrix units do: 2 * TILE * TILE * DEPTH operations a block and count.
"""

from __future__ import annotations

from typing import Any

from echoc.compiler.ir.types import symbol
from echoc.compiler.passes.pack import Packing
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.render import Device, Renderer

BYTES = 1 << 18
BLOCK = 4096
TILE, DEPTH = 128, 64


def probes(device: Device) -> dict[str, Kernel]:
    """The kernels by what they measure."""
    return {"read": _read(device), "dot": _dot(device)}


def facts(kernels: dict[str, Kernel]) -> dict[str, Any]:
    """What the manifest says of them."""
    return {name: kernel.name for name, kernel in kernels.items()} | {
        "read_bytes": BYTES, "dot_operations": 2 * TILE * TILE * DEPTH, "dot_bytes": 4 * TILE * TILE,
    }  # fmt: skip


def _read(device: Device) -> Kernel:
    renderer = _renderer(device)
    arguments = renderer.arguments()
    holes: dict[str, Any] = {"data": arguments.get("data", "i32"), "sums": arguments.get("sums", "i32", written=True)}
    return renderer.finish(
        "probe_read", ["reads memory"], arguments, ((symbol("blocks"), 1),), schedule={"block": BLOCK},
        span=BYTES // 4, block=BLOCK, **holes,
    )  # fmt: skip


def _dot(device: Device) -> Kernel:
    renderer = _renderer(device)
    arguments = renderer.arguments()
    out = arguments.get("out", "f32", written=True)
    return renderer.finish(
        "probe_dot", ["multiplies tiles"], arguments, ((symbol("blocks"), 1),), num_warps=4,
        schedule={"tile": TILE, "depth": DEPTH}, out=out, tile=TILE, depth=DEPTH,
    )  # fmt: skip


def _renderer(device: Device) -> Renderer:
    symbols = dict.fromkeys(("blocks", "count"), 2**31 - 1)
    return Renderer(symbols, Packing("f32", 32), set(), frozenset(), device)
