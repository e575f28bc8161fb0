"""Softmax attention over pages: where entries lie, one tile of keys, the merging of partial results.

A page of a state holds [heads][16][dim] entries of the state's element type, for K and V alike. Scores are in units of
log 2, so that weights are exp2 of them.
"""

import triton
import triton.language as tl

from echoc.kernels.triton.dots import dot

PAGE = tl.constexpr(16)


@triton.jit
def tanh(x):
    """1 - 2 / (e^2x + 1): absolute error below 2e-7, exact at the infinities."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def entries(state, pages, slots, head, HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Pointers [N, WIDTH] to the entries of one head in `slots` [N] of `pages` [N], and which columns exist [1, WIDTH].

    WIDTH is the power of two that holds DIM."""
    column = tl.arange(0, WIDTH)[None, :]
    place = pages.to(tl.int64) * (HEADS * PAGE * DIM) + head * (PAGE * DIM) + slots * DIM
    return state + place[:, None] + column, column < DIM


@triton.jit
def tile(state, table_row, kpos, end, head, HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """The entries [N, WIDTH] of one head at positions `kpos` [N] of a sequence; 0 from position `end` on."""
    there = kpos < end
    pages = tl.load(table_row + kpos // PAGE, mask=there, other=0)
    pointers, exists = entries(state, pages, kpos % PAGE, head, HEADS, DIM, WIDTH)
    if WIDTH == DIM:
        return tl.load(pointers, mask=there[:, None], other=0.0)
    return tl.load(pointers, mask=there[:, None] & exists, other=0.0)


@triton.jit
def absorb(score, v, top, total, acc, SCALE: tl.constexpr):
    """One tile of masked scores [M, N] and its values [N, D] added to a running softmax; SCALE, above 0, takes the
    scores to units of log 2."""
    new = tl.maximum(top, tl.max(score, 1) * SCALE)
    base = tl.where(new == float("-inf"), 0.0, new)
    weight = tl.exp2(score * SCALE - base[:, None])
    keep = tl.exp2(top - base)
    total = total * keep + tl.sum(weight, 1)
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
