"""Where the bytes of packed weights lie on a GPU, and how they get there.

A packed weight is a row of slabs, one for every source and expert: slab s * experts + e holds expert e of source s. A
slab is rows [N, K] with K contiguous (padded to 16 bytes, or to whole groups), then its scales, [N, groups] in f16 or,
for f8, [N] in f32, and ends on a 64-byte border; kernels/triton/weights.py says what a row is. Quantised values and
scales are those that the CPU's packing finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoc import _native
from echoc.compiler.passes.pack import Packed
from echoc.compiler.weights import Weights, as_float
from echoc.errors import CompileError

Array = NDArray[Any]
ELEMENTS = {"f32": "f32", "bf16": "bf16", "f8": "u8", "i8": "i8", "i4": "u8"}
UNITS = {"f32": 4, "bf16": 8, "f8": 16, "i8": 16, "i4": 16}  # elements of a 16-byte vector
SPANS = {"f32": 4, "bf16": 8, "f8": 16, "i8": 16, "i4": 32}  # values in it
BITS = {"f32": 32, "bf16": 16, "f8": 8, "i8": 8, "i4": 4}
BORDER = 64
CHUNK = 1 << 22  # values quantised at a time
PANEL = 16  # rows of a panel of the CPU's layout


@dataclass(frozen=True)
class Layout:
    """The sizes of one slab of a packed weight: `row` and `slab` in elements, `scales` its scales' offset in them."""

    format: str
    group: int
    n: int
    k: int

    @property
    def padded_k(self) -> int:
        unit = max(SPANS[self.format], self.group)
        return -(-self.k // unit) * unit

    @property
    def row(self) -> int:
        return self.padded_k // (SPANS[self.format] // UNITS[self.format])

    @property
    def groups(self) -> int:
        return self.padded_k // self.group if self.group else 0

    @property
    def row_scaled(self) -> bool:
        """Whether a row has one scale."""
        return self.format == "f8"

    @property
    def scale_element(self) -> str | None:
        """The element type of the scales, if there are any."""
        return "f32" if self.row_scaled else "f16" if self.group else None

    @property
    def element_bytes(self) -> int:
        return 16 // UNITS[self.format]

    @property
    def scales(self) -> int:
        return self.n * self.row

    @property
    def nbytes(self) -> int:
        used = self.scales * self.element_bytes + self.n * (4 if self.row_scaled else self.groups * 2)
        return -(-used // BORDER) * BORDER

    @property
    def joined(self) -> bool:
        """Whether the rows of all slabs are one matrix."""
        return self.scales == self.slab

    @property
    def slab(self) -> int:
        return self.nbytes // self.element_bytes


def layout(packed: Packed) -> Layout:
    return Layout(packed.format, packed.group, packed.n, packed.k)


def element(packed: Packed) -> str:
    """The element type of pointers to the weight."""
    return ELEMENTS[packed.format]


def nbytes(packed: Packed) -> int:
    return layout(packed).nbytes * packed.interleave * packed.experts


def parts(packed: Packed, values: Weights, threads: int) -> Iterator[Array]:
    """The bytes of a packed weight, in order, one source in memory at a time.

    Raises:
        CompileError: a source whose shape is not the graph's.
    """
    for weight in packed.sources:
        source = values.stored(weight["name"])
        if source.shape != weight.shape:
            found = list(source.shape)
            raise CompileError(f"weight {weight['name']} has shape {found}; the graph says {weight.type}")
        for matrix in source.reshape(-1, *source.shape[-2:]):
            yield from slab(layout(packed), matrix.T if packed.transposed else matrix, threads)


def slab(form: Layout, matrix: Array, threads: int) -> Iterator[Array]:
    """One slab of a matrix [N, K] in any float dtype (u16 arrays are bf16 bits)."""
    scales, written = [], 0
    step = max(CHUNK // form.padded_k // PANEL, 1) * PANEL
    for start in range(0, form.n, step):
        rows = matrix[start : start + step]
        if form.scale_element:
            data, scale = quantise(form, rows, threads)
            scales.append(scale)
        else:
            data = _floats(form, rows)
        written += data.nbytes
        yield data
    for scale in scales:
        written += scale.nbytes
        yield scale
    yield np.zeros(form.nbytes - written, np.uint8)


def _floats(form: Layout, rows: Array) -> Array:
    wide = np.zeros((len(rows), form.padded_k), np.float32)
    wide[:, : form.k] = as_float(rows)
    return wide if form.format == "f32" else to_bf16(wide)


def to_bf16(values: Array) -> Array:
    """f32 values as bf16 bits, to the nearest, ties to even. The values are finite."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def quantise(form: Layout, rows: Array, threads: int) -> tuple[Array, Array]:
    """Stored rows [n, row] and scales ([n, groups] f16, or [n] f32), out of the panels that the CPU packs."""
    if rows.dtype not in (np.float32, np.float16, np.uint16):
        rows = rows.astype(np.float32)
    n, group, bits = len(rows), form.group, BITS[form.format]
    data = np.asarray(_native.pack(form.format, group, [np.ascontiguousarray(rows)], False, threads))
    panels = -(-n // PANEL)
    if form.row_scaled:
        pairs = data.reshape(panels, -1)[:, : -4 * PANEL].reshape(panels, -1, PANEL, 2).transpose(0, 2, 1, 3)
        row_scales = np.ascontiguousarray(data.reshape(panels, -1)[:, -4 * PANEL :]).view(np.float32).reshape(-1)[:n]
        return np.ascontiguousarray(pairs.reshape(panels * PANEL, -1)[:n, : form.row]), row_scales
    held = 2 * group * PANEL * bits // 8
    blocks = data.reshape(panels, -1, held + 2 * PANEL * 2)
    scales = np.ascontiguousarray(blocks[..., held:]).view(np.float16).reshape(panels, -1, PANEL).transpose(0, 2, 1)
    stored = blocks[..., :held].reshape(panels, -1, PANEL, 4).transpose(0, 2, 1, 3).reshape(panels * PANEL, -1, 4)
    if bits == 8:
        out = (stored ^ 0x80).reshape(panels * PANEL, -1)[:n, : form.row].view(np.int8)
    else:  # byte j of four holds values j and j + 4 of eight
        nibbles = np.stack([stored & 15, stored >> 4], 2).reshape(panels * PANEL, -1)[:n, : form.padded_k]
        halves = nibbles.reshape(n, -1, 2, 16)
        out = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(n, form.row)
    return np.ascontiguousarray(out), np.ascontiguousarray(scales.reshape(panels * PANEL, -1)[:n, : form.groups])


def unpack(form: Layout, data: Array) -> Array:
    """The values [N, K] of one slab's bytes as f32."""
    used = form.scales * form.element_bytes
    stored = data[:used]
    if form.format == "f32":
        return stored.view(np.float32).reshape(form.n, -1)[:, : form.k]
    if form.format == "bf16":
        return as_float(stored.view(np.uint16)).reshape(form.n, -1)[:, : form.k]
    if form.row_scaled:
        code = stored.reshape(form.n, -1)[:, : form.k].astype(np.uint16)
        below = ((code & 0x80) << 8 | (code & 0x7F) << 7).view(np.float16).astype(np.float32)  # 2^8 times smaller
        row_scales = data[used : used + form.n * 4].view(np.float32)
        return below * np.float32(256) * row_scales[:, None]
    scales = data[used : used + form.n * form.groups * 2].view(np.float16).astype(np.float32)
    if form.format == "i8":
        integers = stored.view(np.int8).reshape(form.n, -1).astype(np.float32)
    else:
        halves = stored.reshape(form.n, -1, 1, 16)
        integers = np.concatenate([halves & 15, halves >> 4], 2).reshape(form.n, -1).astype(np.float32) - 8
    values: Array = integers.reshape(form.n, form.groups, -1) * scales.reshape(form.n, form.groups, 1)
    return values.reshape(form.n, -1)[:, : form.k]
