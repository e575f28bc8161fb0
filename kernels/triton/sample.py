"""Drawing a token from a row of logits, as runtime/native/sampler.cpp does: thresholds are found by bisection, no sort.

A row has COUNT logits and is read BLOCK at a time; the passes behind the first find it in the cache. Weights are
exp((logit - highest) * scale), 0 where that exponent is below `floor`; their sums are f64.
"""

import triton
import triton.language as tl

LOW_WORD = tl.constexpr(0xFFFFFFFF)
USUAL_NUCLEUS = tl.constexpr(256)  # larger ones are drawn from in the order of ids, not of weights


@triton.jit
def uniform(seed_low, seed_high, stream, position):
    """A number in [0, 1), f64, of 53 bits: words 0 and 1 of the Philox4x32-10 block of key `seed` and counter
    (position, 0, stream, 0)."""
    key0, key1 = word(seed_low), word(seed_high)
    a, b, c, d = word(position), key0 ^ key0, word(stream), key0 ^ key0
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = (right >> 32) ^ b ^ key0, right & LOW_WORD
        c, d = (left >> 32) ^ d ^ key1, left & LOW_WORD
        key0, key1 = (key0 + 0x9E3779B9) & LOW_WORD, (key1 + 0xBB67AE85) & LOW_WORD
    return ((a << 21) | (b >> 11)).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def word(x):
    """The bits of an i32 as the low word of a u64."""
    return x.to(tl.uint32, bitcast=True).to(tl.uint64)


@triton.jit
def weigh(x, highest, scale, floor):
    """Weights of logits, f32."""
    z = (x - highest) * scale
    return tl.where(z >= floor, tl.exp(z), 0.0)


@triton.jit
def measure(x, highest, scale, floor, BY_COUNT: tl.constexpr):
    """What a logit adds to a mass, f64: its weight, or 1."""
    if BY_COUNT:
        return tl.where(x > float("-inf"), 1.0, 0.0).to(tl.float64)
    else:
        return weigh(x, highest, scale, floor).to(tl.float64)


@triton.jit
def whole(row, highest, scale, floor, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The mass of all weights, and the lowest logit above -infinity."""
    total = tl.zeros([BLOCK], tl.float64)
    lowest = tl.full([BLOCK], float("inf"), tl.float32)
    for start in range(0, COUNT, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(row + column, mask=column < COUNT, other=float("-inf"))
        total += weigh(x, highest, scale, floor).to(tl.float64)
        lowest = tl.minimum(lowest, tl.where(x > float("-inf"), x, float("inf")))
    return tl.sum(total, 0), tl.min(lowest, 0)


@triton.jit
def split(row, bound, highest, scale, floor, BY_COUNT: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The mass above `bound`, the highest logit not above it, the lowest above it, and how many equal it."""
    mass = tl.zeros([BLOCK], tl.float64)
    under = tl.full([BLOCK], float("-inf"), tl.float32)
    over = tl.full([BLOCK], float("inf"), tl.float32)
    equal = tl.zeros([BLOCK], tl.int32)
    for start in range(0, COUNT, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(row + column, mask=column < COUNT, other=float("-inf"))
        above = x > bound
        mass += tl.where(above, measure(x, highest, scale, floor, BY_COUNT), 0.0)
        under = tl.maximum(under, tl.where(above, float("-inf"), x))
        over = tl.minimum(over, tl.where(above, x, float("inf")))
        equal += (x == bound).to(tl.int32)
    return tl.sum(mass, 0), tl.max(under, 0), tl.min(over, 0), tl.sum(equal, 0)


@triton.jit
def select(row, low, high, wanted, STRICT: tl.constexpr, highest, scale, floor, BY_COUNT: tl.constexpr,
           COUNT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The least of the logits from `low` to `high` above which the mass is at most `wanted` (below it where STRICT)."""
    while low < high:
        middle = low + (high - low) * 0.5
        middle = tl.where(middle < high, middle, low)
        mass, under, over, _ = split(row, middle, highest, scale, floor, BY_COUNT, COUNT, BLOCK)
        if STRICT:
            enough = mass < wanted
        else:
            enough = mass <= wanted
        high = tl.where(enough, under, high)
        low = tl.where(enough, low, over)
    return high


@triton.jit
def nth_equal(row, value, n, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Where the logit `value` stands for the nth time, from 0."""
    found = tl.full([], COUNT, tl.int32)
    seen = tl.full([], 0, tl.int32)
    start = tl.full([], 0, tl.int32)
    while (found == COUNT) & (start < COUNT):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(row + column, mask=column < COUNT, other=float("-inf"))
        equal = ((x == value) & (column < COUNT)).to(tl.int32)
        number = seen + tl.cumsum(equal, 0)
        found = tl.min(tl.where((equal > 0) & (number == n + 1), column, COUNT), 0)
        seen += tl.sum(equal, 0)
        start += BLOCK
    return found


@triton.jit
def draw_plain(row, u, highest, scale, floor, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """One draw among all tokens."""
    total, _ = whole(row, highest, scale, floor, COUNT, BLOCK)
    return draw_by_id(row, u * total, highest * 0.0 - float("inf"), 0, highest, scale, floor, COUNT, BLOCK)


@triton.jit
def draw_by_id(row, wanted, end, ties, highest, scale, floor, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Among the logits above `end` and the first `ties` that equal it, the first whose weight, with those before it,
    exceeds `wanted`."""
    before = wanted * 0.0
    found = tl.full([], COUNT, tl.int32)
    last = tl.full([], 0, tl.int32)
    seen = tl.full([], 0, tl.int32)
    start = tl.full([], 0, tl.int32)
    while (found == COUNT) & (start < COUNT):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(row + column, mask=column < COUNT, other=float("-inf"))
        equal = (x == end).to(tl.int32)
        kept = (x > end) | ((equal > 0) & (seen + tl.cumsum(equal, 0) <= ties))
        seen += tl.sum(equal, 0)
        weight = tl.where(kept, weigh(x, highest, scale, floor), 0.0).to(tl.float64)
        mass = tl.sum(weight, 0)
        last = tl.maximum(last, tl.max(tl.where(weight > 0.0, column, 0), 0))
        if before + mass > wanted:
            sums = before + tl.cumsum(weight, 0)
            found = tl.min(tl.where((weight > 0.0) & (sums > wanted), column, COUNT), 0)
        before += mass
        start += BLOCK
    return tl.minimum(found, tl.where(found == COUNT, last, COUNT))


@triton.jit
def draw_ranked(row, u, top_k, top_p, highest, scale, floor, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """One draw among the top_k heaviest tokens (0: all) and the fewest of them that reach top_p."""
    mass, low = whole(row, highest, scale, floor, COUNT, BLOCK)
    end, ties = low, tl.full([], COUNT, tl.int32)  # the last logit that is kept, and how many that equal it
    limited, by_id = top_k * 0, top_k * 0
    if (top_k > 0) & (top_k < COUNT):
        end = select(row, low, highest, (top_k - 1).to(tl.float64), False, highest, scale, floor, True, COUNT, BLOCK)
        above, _under, _over, _same = split(row, end, highest, scale, floor, True, COUNT, BLOCK)
        mass, _under, _over, equal = split(row, end, highest, scale, floor, False, COUNT, BLOCK)
        ties = tl.minimum(top_k - above.to(tl.int32), equal)
        mass += ties.to(tl.float64) * weigh(end, highest, scale, floor).to(tl.float64)
        limited = (top_k > 0).to(tl.int32)
    if top_p < 1.0:
        wanted = top_p.to(tl.float64) * mass
        last = select(row, end, highest, wanted, True, highest, scale, floor, False, COUNT, BLOCK)
        mass, _under, _over, equal = split(row, last, highest, scale, floor, False, COUNT, BLOCK)
        each = weigh(last, highest, scale, floor).to(tl.float64)
        some = tl.ceil((wanted - mass) / tl.where(each > 0.0, each, 1.0))
        limit = tl.where(last == end, tl.minimum(ties, equal), equal)
        ties = tl.minimum(tl.maximum(some, 1.0).to(tl.int32), limit)
        end = last
        mass += ties.to(tl.float64) * each
        if limited == 0:
            above, _under, _over, _same = split(row, end, highest, scale, floor, True, COUNT, BLOCK)
            by_id = (above + ties.to(tl.float64) > USUAL_NUCLEUS).to(tl.int32)
    wanted = u * mass
    found = tl.full([], COUNT, tl.int32)
    if by_id > 0:
        found = draw_by_id(row, wanted, end, ties, highest, scale, floor, COUNT, BLOCK)
    else:
        found = draw_by_weight(row, wanted, end, ties, highest, scale, floor, COUNT, BLOCK)
    return found


@triton.jit
def draw_by_weight(row, wanted, end, ties, highest, scale, floor, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Among the same, heaviest first; of equal logits the lower tokens come first."""
    value = select(row, end, highest, wanted, False, highest, scale, floor, False, COUNT, BLOCK)
    mass, _under, _over, equal = split(row, value, highest, scale, floor, False, COUNT, BLOCK)
    each = weigh(value, highest, scale, floor).to(tl.float64)
    place = ((wanted - mass) / tl.where(each > 0.0, each, 1.0)).to(tl.int32)
    place = tl.minimum(place, tl.where(value == end, tl.minimum(ties, equal), equal) - 1)
    return nth_equal(row, value, tl.maximum(place, 0), COUNT, BLOCK)
