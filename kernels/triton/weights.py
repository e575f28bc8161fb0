"""Packed weights: rows of K values, K contiguous, in vectors of 16 bytes; then f16 scales [rows, groups] if quantised,
or f32 scales [rows] for f8.

    f32, bf16   the values
    f8          e4m3fn: sign, 4 bits of exponent, 3 of mantissa
    i8          two's complement
    i4          a vector holds 32 values plus 8: byte j has value j in its low nibble and value j + 16 in its high one

K is padded to whole vectors, or whole groups, with zeros. The value of a quantised weight is stored * scale.
UNIT is the elements of a vector, SPAN the values in it, ROW the elements of a row, GROUPS the scales of a row.
"""

import triton
import triton.language as tl

from echoc.kernels.triton.dots import INTERPRETED


@triton.jit
def eight(stored):
    """f8 as the f32 2^8 times smaller: its bits are those of such an f16, subnormals included."""
    wide = stored.to(tl.uint16)
    return (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def eight_bf16(stored, CODE: tl.constexpr):
    """The same in bf16; `CODE`, where there is one, are instructions that turn four at once."""
    if CODE == "" or INTERPRETED:
        return eight(stored).to(tl.bfloat16)
    else:
        return tl.inline_asm_elementwise(CODE, "=r,=r,r", [stored], dtype=tl.bfloat16, is_pure=True, pack=4)


@triton.jit
def row_scales(base, n):
    """What sums of products with f8 (as `eight` gives them) of rows `n` [N] are multiplied by: [N] f32."""
    return tl.load(base + n) * 256.0


@triton.jit
def pick(values, scales, row, k, mask, FORMAT: tl.constexpr, GROUP: tl.constexpr, ROW: tl.constexpr,
         GROUPS: tl.constexpr):  # fmt: skip
    """The weights at [row, k] as f32; 0 where masked off."""
    row = row.to(tl.int64)
    if FORMAT == "i4":
        byte = tl.load(values + row * ROW + (k // 32 * 16 + k % 16), mask=mask, other=0)
        stored = ((byte >> (k % 32 // 16 * 4).to(tl.uint8)) & 15).to(tl.int32) - 8
        out = stored.to(tl.float32) * tl.load(scales + row * GROUPS + k // GROUP, mask=mask, other=0.0).to(tl.float32)
    elif FORMAT == "i8":
        stored = tl.load(values + row * ROW + k, mask=mask, other=0)
        out = stored.to(tl.float32) * tl.load(scales + row * GROUPS + k // GROUP, mask=mask, other=0.0).to(tl.float32)
    elif FORMAT == "f8":
        out = eight(tl.load(values + row * ROW + k, mask=mask, other=0)) * 256.0 * tl.load(scales + row)
    else:
        out = tl.load(values + row * ROW + k, mask=mask, other=0.0).to(tl.float32)
    return out


@triton.jit
def vectors(values, n, start, UNIT: tl.constexpr, ROW: tl.constexpr, COUNT: tl.constexpr, CUT: tl.constexpr):
    """The vectors start .. start + COUNT of rows `n` [N] as stored: [N, COUNT, UNIT]; 0 beyond the row where CUT."""
    c = start + tl.arange(0, COUNT)
    place = n.to(tl.int64)[:, None, None] * ROW + (c[:, None] * UNIT + tl.arange(0, UNIT)[None, :])[None, :, :]
    if CUT:
        return tl.load(values + place, mask=(c * UNIT < ROW)[None, :, None], other=0)
    return tl.load(values + place)


@triton.jit
def dot_vectors(w, scales, n, x, start, FORMAT: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr,
                GROUPS: tl.constexpr, K: tl.constexpr, COUNT: tl.constexpr, CUT: tl.constexpr,
                WIDEN: tl.constexpr):  # fmt: skip
    """Vectors `w` [N, COUNT, UNIT] times their part of the row `x`, summed within each: [N, COUNT] f32.
    Scales of whole rows are left to `row_scales`."""
    c = start + tl.arange(0, COUNT)
    if FORMAT == "i4":
        k = c[:, None] * 32 + tl.arange(0, 16)[None, :]
        if CUT:
            low = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
            high = tl.load(x + k + 16, mask=k + 16 < K, other=0.0).to(tl.float32)
        else:
            low = tl.load(x + k).to(tl.float32)
            high = tl.load(x + k + 16).to(tl.float32)
        w_low = (w & 15).to(tl.int32) - 8
        w_high = (w >> 4).to(tl.int32) - 8
        out = tl.sum(w_low.to(tl.float32) * low[None] + w_high.to(tl.float32) * high[None], 2)
    else:
        k = c[:, None] * SPAN + tl.arange(0, SPAN)[None, :]
        if CUT:
            part = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        else:
            part = tl.load(x + k).to(tl.float32)
        if FORMAT == "f8":
            out = tl.sum(eight_bf16(w, WIDEN).to(tl.float32) * part[None], 2)
        else:
            out = tl.sum(w.to(tl.float32) * part[None], 2)
    if GROUP > 0:
        g = c * SPAN // GROUP
        place = scales + n.to(tl.int64)[:, None] * GROUPS + g[None, :]
        if CUT:
            scale = tl.load(place, mask=(g < GROUPS)[None, :], other=0.0)
        else:
            scale = tl.load(place)
        out = out * scale.to(tl.float32)
    return out


@triton.jit
def columns(values, n, start, ROW: tl.constexpr, DEPTH: tl.constexpr, CUT: tl.constexpr):
    """Stored elements start .. start + DEPTH of rows `n` [N]: [N, DEPTH]; 0 beyond the row where CUT."""
    c = start + tl.arange(0, DEPTH)
    place = n.to(tl.int64)[:, None] * ROW + c[None, :]
    if CUT:
        return tl.load(values + place, mask=(c < ROW)[None, :], other=0)
    return tl.load(values + place)


@triton.jit
def prefetch(values, n, start, ROW: tl.constexpr, CODE: tl.constexpr):
    """Has rows `n` [N] from `start` on brought to the L2 cache by an instruction that takes an address and gives 0."""
    place = values + n.to(tl.int64) * ROW + start
    tl.inline_asm_elementwise(CODE, "=r,l", [place.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def scales(base, n, start, GROUPS: tl.constexpr, COUNT: tl.constexpr, CUT: tl.constexpr):
    """The scales start .. start + COUNT of rows `n` [N]: [N, COUNT] f32; 0 beyond the row where CUT."""
    g = start + tl.arange(0, COUNT)
    place = n.to(tl.int64)[:, None] * GROUPS + g[None, :]
    if CUT:
        return tl.load(base + place, mask=(g < GROUPS)[None, :], other=0.0).to(tl.float32)
    return tl.load(base + place).to(tl.float32)


@triton.jit
def scaled(stored, scale):
    """Stored integers [N, DEPTH] times scales [N, COUNT], each for DEPTH / COUNT of a row, in bf16."""
    N: tl.constexpr = stored.shape[0]
    COUNT: tl.constexpr = scale.shape[1]
    wide = tl.reshape(stored.to(tl.float32), [N, COUNT, stored.shape[1] // COUNT]) * scale[:, :, None]
    return tl.reshape(wide, stored.shape).to(tl.bfloat16)
