"""Kernels that draw packed weights at random on the device, for artifacts that carry none (`random_weights`).

The manifest names them at kernels.fill: {"bf16": name, "i4/32": name, ...}, a format and its group. A launch fills one
slab (weights.py): it takes the slab's address, then the 32-bit integers SYMBOLS: the seed's two halves, the stream
(the weight's place in the manifest << 16 | the expert), the number of the source, the standard deviation's bits as f32,
and N and K. The grid is that of the kernel, over n and k. The values are those that the CPU draws for the same numbers.
"""

from __future__ import annotations

from echoc.compiler.ir.types import symbol
from echoc.compiler.passes.pack import Packing
from echoc.compiler.targets.gpu import weights
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.render import Device, Renderer

SYMBOLS = ("seed_low", "seed_high", "stream", "source", "std", "n", "k")
BLOCK = 1024


def key(format_: str, group: int) -> str:
    """The name of a format in the manifest."""
    return f"{format_}/{group}" if group else format_


def fill(format_: str, group: int, device: Device) -> Kernel:
    """The kernel that fills slabs of one format; its pointer argument is `fill`."""
    renderer = Renderer(dict.fromkeys(SYMBOLS, 2**31 - 1), Packing("f32", 32), set(), frozenset(), device)
    arguments = renderer.arguments()
    out = arguments.get("fill", weights.ELEMENTS[format_], written=True)
    return renderer.finish(
        "fill", [f"random weights in {key(format_, group)}"], arguments, ((symbol("n"), 1), (symbol("k"), BLOCK)),
        num_warps=4, schedule={"block": BLOCK}, out=out, format=format_, group=group, span=weights.SPANS[format_],
        block=BLOCK,
    )  # fmt: skip


def fills(packing: Packing, device: Device) -> dict[str, Kernel]:
    """The kernels for all formats of a program's packed weights, by their names in the manifest."""
    forms = sorted({(p.format, p.group) for p in packing.entries})
    return {key(*form): fill(*form, device) for form in forms}


def integers(seed: int, stream: int, source: int, std: float, n: int, k: int) -> list[int]:
    """The values of SYMBOLS as signed 32-bit integers."""
    import struct

    (bits,) = struct.unpack("<i", struct.pack("<f", std))
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, stream & 0xFFFFFFFF, source]
    return [*(w - (1 << 32) if w >= 1 << 31 else w for w in words), bits, n, k]
