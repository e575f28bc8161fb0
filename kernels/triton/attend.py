"""Softmax attention over pages: where entries lie, one tile of keys, the merging of partial results.

A page of a state holds [heads][16][dim] entries of the state's element type, for K and V alike. Scores are in units of
log 2, so that weights are exp2 of them. Entries of 8 bits have scales, which go to scores and weights.
"""

import triton
import triton.language as tl

from echoc.kernels.triton.dots import INTERPRETED, dot
from echoc.kernels.triton.fill import eight, nearest
from echoc.kernels.triton.weights import eight_bf16

PAGE = tl.constexpr(16)


@triton.jit
def tanh(x):
    """1 - 2 / (e^2x + 1): absolute error below 2e-7, exact at the infinities."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def piece(state, pages, head, HEADS: tl.constexpr, DIM: tl.constexpr):
    """Where the entries of one head begin in `pages`; behind the codes of 8 bits lie the 16 scales, f32."""
    SIZE: tl.constexpr = PAGE * (DIM + 4) if state.dtype.element_ty.primitive_bitwidth == 8 else PAGE * DIM
    return pages.to(tl.int64) * (HEADS * SIZE) + head * SIZE


@triton.jit
def tile(state, pages, kpos, end, head, HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
         CODE: tl.constexpr):  # fmt: skip
    """The entries [N, WIDTH] of one head at positions `kpos` [N], which lie in `pages` [N], without scales and, of 8
    bits, in bf16; 0 from position `end` on. WIDTH is the power of two that holds DIM."""
    there = kpos < end
    column = tl.arange(0, WIDTH)[None, :]
    pointers = state + (piece(state, pages, head, HEADS, DIM) + kpos % PAGE * DIM)[:, None] + column
    if WIDTH == DIM:
        out = tl.load(pointers, mask=there[:, None], other=0)
    else:
        out = tl.load(pointers, mask=there[:, None] & (column < DIM), other=0)
    if state.dtype.element_ty.primitive_bitwidth == 8:
        out = widened(out, CODE)
    return out


@triton.jit
def widened(codes, CODE: tl.constexpr):
    """Codes in bf16, those of e4m3 2^8 times smaller; `CODE`, where there is one, are instructions that turn four."""
    if codes.dtype == tl.uint8:
        out = eight_bf16(codes, CODE)
    elif CODE == "" or INTERPRETED:
        out = codes.to(tl.float32).to(tl.bfloat16)
    else:
        out = tl.inline_asm_elementwise(CODE, "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4)
    return out


@triton.jit
def scales(state, pages, kpos, end, head, HEADS: tl.constexpr, DIM: tl.constexpr):
    """What products with a tile's entries are multiplied by: [N] f32, 0 from position `end` on."""
    there = kpos < end
    place = state + piece(state, pages, head, HEADS, DIM) + PAGE * DIM + kpos % PAGE * 4
    out = tl.load(place.to(tl.pointer_type(tl.float32)), mask=there, other=0.0)
    if state.dtype.element_ty == tl.uint8:
        out = out * 256.0
    return out


@triton.jit
def put_scaled(state, page, slot, h, values, exists, HEADS: tl.constexpr, DIM: tl.constexpr, HIGH: tl.constexpr,
               WIDTH: tl.constexpr):  # fmt: skip
    """Puts heads `h` [HIGH] of one entry, [HIGH * WIDTH] values of which those that `exist` count, into a page in 8
    bits (compiler/ir/ops/entries.py)."""
    values = tl.reshape(tl.where(exists, values, 0.0), [HIGH, WIDTH])
    most = tl.max(tl.abs(values).to(tl.int32, bitcast=True), 1)  # the order of sizes is that of their bits, NaN last
    small = most < 0x0D800000
    size = most.to(tl.float32, bitcast=True)
    if state.dtype.element_ty == tl.int8:
        scale = tl.where(small, 0.0, size * 0.007874015718698502)
    else:
        scale = tl.where(small, 0.0, size * 0.0022321429569274187)
    usable = (most < 0x7F800000) & (most >= 0x0D800000)
    inverse = tl.div_rn(tl.full([HIGH], 1.0, tl.float32), tl.where(usable, scale, 1.0))
    scaled = tl.where(usable[:, None], values * inverse[:, None], 0.0)
    if state.dtype.element_ty == tl.int8:
        codes = nearest(scaled, 1.0, -127.0, 127.0).to(tl.int8)
    else:
        codes = eight(scaled)
    begin = state + piece(state, page, h, HEADS, DIM)
    column = tl.arange(0, WIDTH)[None, :]
    tl.store(begin[:, None] + slot * DIM + column, codes, mask=(h < HEADS)[:, None] & (column < DIM))
    tl.store((begin + PAGE * DIM + slot * 4).to(tl.pointer_type(tl.float32)), scale, mask=h < HEADS)


@triton.jit
def absorb(score, v, top, total, acc, SCALE: tl.constexpr, v_scale=None):
    """One tile of masked scores [M, N] and its values [N, D], times `v_scale` [N], added to a running softmax; SCALE,
    above 0, takes the scores to units of log 2."""
    new = tl.maximum(top, tl.max(score, 1) * SCALE)
    base = tl.where(new == float("-inf"), 0.0, new)
    weight = tl.exp2(score * SCALE - base[:, None])
    keep = tl.exp2(top - base)
    total = total * keep + tl.sum(weight, 1)
    if v_scale is not None:
        weight = weight * v_scale[None, :]
    acc = dot(weight.to(v.dtype), v, acc * keep[:, None])
    return new, total, acc


@triton.jit
def finish(top, total, acc, sink):
    """The softmax's result: a sink is one more logit (natural units) that takes weight and gives nothing."""
    sink = sink * 1.4426950408889634
    new = tl.maximum(top, sink)
    base = tl.where(new == float("-inf"), 0.0, new)
    keep = tl.exp2(top - base)
    total = total * keep + tl.exp2(sink - base)
    return tl.where(total[:, None] == 0.0, 0.0, acc * (keep / tl.where(total == 0.0, 1.0, total))[:, None])
