"""Kernels that draw packed weights at random on the device, for artifacts that carry none (`random_weights`).

The manifest lists them at kernels.fill, one for each format and group. A launch fills one slab (weights.py): it takes
the slab's address, then the 32-bit integers SYMBOLS: the seed's two halves, the stream (the weight's place in the
manifest << 16 | the expert), the number of the source, the standard deviation's bits as f32, and N and K. A block draws
BLOCK values of a row. The values are those that the CPU draws for the same numbers.
"""

from __future__ import annotations

from echoc.compiler.ir.types import symbol
from echoc.compiler.passes.pack import Packing
from echoc.compiler.targets.gpu import weights
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.render import Device, Renderer

SYMBOLS = ("seed_low", "seed_high", "stream", "source", "std", "n", "k")
BLOCK = 1024


def fill(format_: str, group: int, device: Device) -> Kernel:
    """The kernel that fills slabs of one format; its pointer argument is `fill`."""
    renderer = Renderer(dict.fromkeys(SYMBOLS, 2**31 - 1), Packing("f32", 32), set(), frozenset(), device)
    arguments = renderer.arguments()
    out = arguments.get("fill", weights.ELEMENTS[format_], written=True)
    ir = [f"random weights in {format_}" + (f" in groups of {group}" if group else "")]
    return renderer.finish(
        "fill", ir, arguments, ((symbol("n"), 1), (symbol("k"), BLOCK)), num_warps=4, schedule={"block": BLOCK},
        out=out, format=format_, group=group, span=weights.SPANS[format_], block=BLOCK,
    )  # fmt: skip
