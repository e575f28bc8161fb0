"""The op table's meanings that Triton has no word for, on blocks and scalars of any shape; CUDA and ROCm alike.

Polynomials are Taylor and atanh series, long enough for f64. Integers wrap, quotients round down.
"""

import triton
import triton.language as tl

LEAST = tl.constexpr(-(2**63))
LOW_WORD = tl.constexpr(0xFFFFFFFF)


@triton.jit
def maximum(a, b):
    """The larger; NaN wins."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def minimum(a, b):
    """The smaller; NaN wins."""
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def reduce_max(x, axis: tl.constexpr):
    """The largest along an axis; NaN wins."""
    if x.dtype.is_floating():
        nan = tl.max((x != x).to(tl.int32), axis)
        return tl.where(nan > 0, float("nan"), tl.max(tl.where(x != x, float("-inf"), x), axis))
    else:
        return tl.max(x, axis)


@triton.jit
def reduce_min(x, axis: tl.constexpr):
    """The smallest along an axis; NaN wins."""
    if x.dtype.is_floating():
        nan = tl.max((x != x).to(tl.int32), axis)
        return tl.where(nan > 0, float("nan"), tl.min(tl.where(x != x, float("inf"), x), axis))
    else:
        return tl.min(x, axis)


@triton.jit
def clamp_index(i, size):
    """An index cut to 0..size-1, as i32."""
    return tl.minimum(tl.maximum(i, 0), size - 1).to(tl.int32)


@triton.jit
def to_i64(x):
    """A float without its fraction; the least i64 where that does not fit, and for NaN."""
    fits = tl.abs(x) < 9.2e18
    return tl.where(fits, tl.where(fits, x, 0.0).to(tl.int64), LEAST)


@triton.jit
def floordiv(a, b):
    """floor(a / b); by integer zero it is 0."""
    if a.dtype.is_floating():
        return tl.floor(a / b)
    else:
        divisor = tl.where(b == 0, 1, b)
        quotient = a // divisor
        uneven = (a - quotient * divisor != 0) & ((a < 0) != (divisor < 0))
        return tl.where(b == 0, 0, tl.where(uneven, quotient - 1, quotient))


@triton.jit
def mod(a, b):
    """a - b * floor(a / b), with the divisor's sign; by integer zero it is 0. Floats are rounded at most once."""
    if a.dtype.is_floating():
        if a.dtype == tl.float64:
            rest = _rest(a, b, tl.int64, 52, 0x7FF)
        else:
            rest = _rest(a.to(tl.float32), b.to(tl.float32), tl.int32, 23, 0xFF)
        signed = tl.where(a < 0.0, -rest, rest)
        turned = tl.where((a < 0.0) != (b < 0.0), signed + b, signed)
        return tl.where(rest == 0.0, tl.where(b < 0.0, -0.0, 0.0), turned).to(a.dtype)
    else:
        return tl.where(b == 0, 0, a - b * floordiv(a, b))


@triton.jit
def _rest(x, y, words: tl.constexpr, bits: tl.constexpr, fields: tl.constexpr):
    """|x| modulo |y|, exact: significands as integers, the quotient taken off in steps of as many bits as an integer
    has room for above them. NaN where it has no value."""
    left, field = _significand(x, words, bits, fields)
    divisor, base = _significand(y, words, bits, fields)
    divisor = tl.where(divisor == 0, 1, divisor)
    ahead = field - base
    left = left % divisor
    while _largest(ahead) > 0:
        step = tl.minimum(tl.maximum(ahead, 0), 63 - bits)
        left = (left << step.to(tl.uint64)) % divisor
        ahead = ahead - step
    power = base - bits - fields // 2
    value = left.to(tl.float64) * _power_of_two(power >> 1) * _power_of_two(power - (power >> 1))
    value = tl.where(field < base, tl.abs(x), value.to(x.dtype))
    return tl.where((field == fields) | (y != y) | (y == 0.0), float("nan"), value)


@triton.jit
def _significand(x, words: tl.constexpr, bits: tl.constexpr, fields: tl.constexpr):
    """The significand of a float as u64 and its exponent's field, which is 1 for subnormal numbers too."""
    word = x.to(words, bitcast=True).to(tl.int64)
    field = (word >> bits) & fields
    fraction = word & ((1 << bits) - 1)
    return tl.where(field > 0, fraction | (1 << bits), fraction).to(tl.uint64), tl.maximum(field, 1)


@triton.jit
def _power_of_two(exponent):
    """2 to the power of an i64, as f64."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _largest(x):
    """The largest value of a block, or the scalar."""
    if x.type.is_block():
        return tl.max(x)
    else:
        return x


@triton.jit
def pow(a, b):
    """a to the power b. Integers wrap; negative powers of them are cut towards 0, of 0 they are 0."""
    if a.dtype.is_floating():
        x, y = a.to(tl.float64), b.to(tl.float64)
        size = tl.exp(y * tl.log(tl.abs(x)))
        whole = tl.floor(y) == y
        odd = whole & (tl.floor(y * 0.5) * 2.0 != y)
        out = tl.where(x < 0.0, tl.where(whole, tl.where(odd, -size, size), float("nan")), size)
        out = tl.where(tl.abs(x) == float("inf"), tl.where(y > 0.0, tl.where((x < 0.0) & odd, x, tl.abs(x)), 0.0), out)
        out = tl.where(tl.abs(y) == float("inf"), _infinite_power(tl.abs(x), y), out)
        out = tl.where((x != x) | (y != y), x + y, out)
        return tl.where((x == 1.0) | (y == 0.0), 1.0, out).to(a.dtype)
    else:
        base, rest = a.to(tl.int64), b.to(tl.int64)
        out = base * 0 + rest * 0 + 1
        power = base + rest * 0
        for _ in range(63):
            out = tl.where((rest & 1) != 0, out * power, out)
            power = power * power
            rest = rest >> 1
        parity = tl.where((b.to(tl.int64) & 1) != 0, -1, 1)
        negative = tl.where(base == 1, 1, tl.where(base == -1, parity, 0))
        return tl.where(b.to(tl.int64) < 0, negative, out).to(a.dtype)


@triton.jit
def _infinite_power(size, y):
    """size ** y for y of either infinity and size >= 0."""
    grows = (size > 1.0) == (y > 0.0)
    return tl.where(size == 1.0, 1.0, tl.where(grows, float("inf"), 0.0))


@triton.jit
def expm1(x):
    """exp(x) - 1, accurate near 0: x (1 + x/2 (1 + x/3 (...)))."""
    near = tl.abs(x) < 0.5
    small = tl.where(near, x, 0.0)
    series = small * 0.0 + 1.0
    for i in tl.static_range(15):
        series = 1.0 + small * series / (16 - i)
    return tl.where(near, small * series, tl.exp(x) - 1.0)


@triton.jit
def log1p(x):
    """log(1 + x), accurate near 0: 2 atanh(x / (2 + x))."""
    near = tl.abs(x) < 0.3
    s = tl.where(near, x, 0.0)
    s = s / (2.0 + s)
    square = s * s
    series = square * 0.0
    for i in tl.static_range(12):
        series = series * square + 1.0 / (25 - 2 * i)
    return tl.where(near, 2.0 * s * (1.0 + square * series), tl.log(1.0 + tl.where(near, 0.0, x)))


@triton.jit
def tanh(x):
    """-e / (e + 2) with e = expm1(-2 |x|), with the sign of x."""
    e = expm1(-2.0 * tl.abs(x))
    size = -e / (e + 2.0)
    return tl.where(x < 0.0, -size, size)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, e, 1.0) / (1.0 + e)


@triton.jit
def atan(x):
    """The angle whose tangent is x: halved twice by atan(a) = 2 atan(a / (1 + sqrt(1 + a^2))), then the series."""
    size = tl.abs(x)
    inverted = size > 1.0
    a = tl.where(inverted, 1.0 / tl.where(inverted, size, 1.0), size)
    a = a / (1.0 + tl.sqrt(1.0 + a * a))
    a = a / (1.0 + tl.sqrt(1.0 + a * a))
    square = a * a
    series = square * 0.0
    for i in tl.static_range(12):
        series = 1.0 / (25 - 2 * i) - square * series
    angle = 4.0 * a * (1.0 - square * series)
    angle = tl.where(inverted, 1.5707963267948966 - angle, angle)
    return tl.where(x < 0.0, -angle, angle)


@triton.jit
def round_even(x):
    """The nearest integer, ties to even: what adding a number without fraction bits leaves."""
    if x.dtype == tl.float64:
        return tl.where(tl.abs(x) < 4503599627370496.0, (x + 6755399441055744.0) - 6755399441055744.0, x)
    else:
        return tl.where(tl.abs(x) < 4194304.0, (x + 12582912.0) - 12582912.0, x)


@triton.jit
def trunc(x):
    """x without its fraction."""
    return tl.where(x < 0.0, tl.ceil(x), tl.floor(x))


@triton.jit
def random_bits(key, first, second):
    """Word 0 of the Philox4x32-10 block that an i64 key and a counter of two i64 words name, as i64."""
    k, lo, hi = key.to(tl.uint64), first.to(tl.uint64), second.to(tl.uint64)
    key0, key1 = k & LOW_WORD, k >> 32
    a, b, c, d = lo & LOW_WORD, lo >> 32, hi & LOW_WORD, hi >> 32
    zero = (k ^ k) + (lo ^ lo) + (hi ^ hi)  # blocks of one shape, as a loop needs
    a, b, c, d, key0, key1 = a + zero, b + zero, c + zero, d + zero, key0 + zero, key1 + zero
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = (right >> 32) ^ b ^ key0, right & LOW_WORD
        c, d = (left >> 32) ^ d ^ key1, left & LOW_WORD
        key0, key1 = (key0 + 0x9E3779B9) & LOW_WORD, (key1 + 0xBB67AE85) & LOW_WORD
    return a.to(tl.int64)


@triton.jit
def before(p, i, q, j, descending: tl.constexpr):
    """Whether p at place i comes before q at place j in an order: by value, then by place; NaN last."""
    if descending:
        first = p > q
    else:
        first = p < q
    ordered = (p == p) & (q != q)
    tied = (p == q) | ((p != p) & (q != q))
    return first | ordered | (tied & (i < j))
