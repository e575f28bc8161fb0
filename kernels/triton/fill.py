"""Random weights, drawn where they will lie: the values that the CPU's packing draws (kernels/cpu/pack.h).

The value at [n, k] is the sum of the four bytes of a hash of (key of row n, k), which is nearly normal, centred and
scaled. A row's key comes from the seed, the stream and the source's number through splitmix64 (Steele et al. 2014).
"""

import triton
import triton.language as tl

ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and taking it away rounds to the nearest integer, ties to even
DEVIATION = tl.constexpr(147.801)  # sqrt(4 * (256^2 - 1) / 12)


@triton.jit
def mix(value):
    """One step of splitmix64."""
    value = value + 0x9E3779B97F4A7C15
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB
    return value ^ (value >> 31)


@triton.jit
def wide(low, high):
    """Two 32-bit words as one of 64."""
    low = low.to(tl.uint32, bitcast=True).to(tl.uint64)
    return (high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | low


@triton.jit
def keys(seed_low, seed_high, stream, source, n):
    """The keys of rows `n`, u32."""
    seed = wide(seed_low, seed_high)
    first = mix(mix(mix(seed) + stream.to(tl.uint32, bitcast=True).to(tl.uint64)) + source.to(tl.uint64))
    return (mix(first + n.to(tl.uint64)) >> 32).to(tl.uint32)


@triton.jit
def draw(key, k, std, count):
    """The values at columns `k` (0 from `count` on) of the rows with these keys."""
    word = (k.to(tl.uint32) * 0x9E3779B9) ^ key
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = (word ^ (word >> 15)) * 0x846CA68B
    word = word ^ (word >> 16)
    pairs = (word & 0x00FF00FF) + ((word >> 8) & 0x00FF00FF)
    total = ((pairs & 0xFFFF) + (pairs >> 16)).to(tl.int32) - 510
    scale = tl.div_rn(std.to(tl.float32, bitcast=True), tl.full([], DEVIATION, tl.float32))
    return tl.where(k < count, total.to(tl.float32) * scale, 0.0)


@triton.jit
def ratio(a, b):
    """a / b, 0 where b is 0."""
    return tl.where(b == 0.0, 0.0, tl.div_rn(a, tl.where(b == 0.0, 1.0, b)))


@triton.jit
def largest(key, std, count, BLOCK: tl.constexpr):
    """The largest size in the row with this key."""
    most = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        most = tl.maximum(most, tl.abs(draw(key, start + tl.arange(0, BLOCK), std, count)))
    return tl.max(most, 0)


@triton.jit
def eight(value):
    """The nearest f8 (e4m3fn), ties to even; the largest beyond it."""
    size = tl.minimum(tl.abs(value), 448.0)
    wide = size.to(tl.uint32, bitcast=True)
    normal = ((wide + 0x7FFFF + ((wide >> 20) & 1)) >> 20) - 960
    small = (size + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    sign = (value.to(tl.uint32, bitcast=True) >> 24) & 0x80
    return (tl.where(size < 0.015625, small, normal) | sign).to(tl.uint8)


@triton.jit
def half(scale):
    """A scale as f16 holds it."""
    return scale.to(tl.float16).to(tl.float32)


@triton.jit
def nearest(value, inverse, LOW: tl.constexpr, HIGH: tl.constexpr):
    """value * inverse as the nearest integer within LOW .. HIGH, as a float."""
    return (tl.minimum(tl.maximum(value * inverse, LOW), HIGH) + ROUND) - ROUND
