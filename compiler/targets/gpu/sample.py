"""Kernels that choose the next tokens on the device, for language models with f32 logits.

The manifest names them at kernels.sample, with `parts`, the blocks that a row is searched in for its highest logit.
`peaks` takes logits f32 [R, V], peaks f32 [R, parts] and places i32 [R, parts], in a grid of R by parts blocks: the
highest logit of a part, NaN where one is NaN, and where it stands first. `sample` takes logits, peaks, places, params
i32 [D, RECORD], tokens i32 [D], positions i32 [D], sampled i32 [D] and the number `feed`, in a grid of D blocks: it
chooses D tokens, each from the row that its record names, as runtime/native/sampler.cpp does, -1 where a logit is NaN
or +infinity and -2 where all are -infinity. With feed = 1 the tokens (0 for a failure) and the next positions are left
where the next step reads them, and records count draws from the position.
"""

from __future__ import annotations

from typing import Any

from echoc.compiler.ir import DType, Program
from echoc.compiler.ir.types import symbol
from echoc.compiler.passes.pack import Packing
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.printer import Arguments
from echoc.compiler.targets.gpu.render import Device, Renderer

# Of a record: the row, 1 / temperature (f32 bits; 0: greedy), top_k (0: off), top_p and log(min_p) (f32 bits), the
# seed's halves, the output's stream, and the number of the draw (less the position, where positions are fed).
FIELDS = ("row", "scale", "top_k", "top_p", "floor", "seed_low", "seed_high", "stream", "draw")
RECORD = 16
PART = 4096
BLOCK = 8192


def vocabulary(program: Program) -> int:
    """The logits of a row, where the program is a language model whose tokens can be chosen here, else 0."""
    ports = {port.name: port for port in program.skin.ports}
    logits = ports.get("logits")
    if logits is None or logits.direction != "out" or not {"tokens", "positions", "block_table"} <= set(ports):
        return 0
    size = logits.type.shape[-1]
    return size if logits.type.dtype is DType.F32 and logits.type.rank == 2 and isinstance(size, int) else 0


def parts(count: int) -> int:
    """The parts of a row of `count` logits."""
    return -(-count // PART)


def peaks(count: int, device: Device) -> Kernel:
    """The highest logit of every part of every row."""
    renderer, arguments = _renderer(device)
    names: dict[str, Any] = {
        name: arguments.get(name, element, written=name != "logits")
        for name, element in (("logits", "f32"), ("peaks", "f32"), ("places", "i32"))
    }
    return renderer.finish(
        "sample_peaks", [f"the highest of {count} logits"], arguments, ((symbol("num_rows"), 1), (parts(count), 1)),
        dependent=True, schedule={"block": PART}, count=count, parts=parts(count), block=_block(count, PART), **names,
    )  # fmt: skip


def sample(count: int, device: Device) -> Kernel:
    """One token a record."""
    renderer, arguments = _renderer(device)
    elements = {
        "logits": "f32", "peaks": "f32", "places": "i32", "params": "i32", "tokens": "i32", "positions": "i32",
        "sampled": "i32",
    }  # fmt: skip
    written = ("tokens", "positions", "sampled")
    names: dict[str, Any] = {
        name: arguments.get(name, element, written=name in written) for name, element in elements.items()
    }
    return renderer.finish(
        "sample", [f"a token of {count}"], arguments, ((symbol("num_draws"), 1),), num_warps=16, dependent=True,
        schedule={"block": BLOCK}, count=count, parts=parts(count), parts_block=_block(parts(count), 1 << 20),
        block=_block(count, BLOCK), record=RECORD, fields={name: i for i, name in enumerate(FIELDS)}, **names,
    )  # fmt: skip


def _renderer(device: Device) -> tuple[Renderer, Arguments]:
    symbols = dict.fromkeys(("num_rows", "num_draws", "feed"), 2**31 - 1)
    renderer = Renderer(symbols, Packing("f32", 32), set(), frozenset(), device)
    return renderer, renderer.arguments()


def _block(size: int, most: int) -> int:
    return min(max(1 << (size - 1).bit_length(), 16), most)
