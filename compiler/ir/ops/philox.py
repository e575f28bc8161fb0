"""Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3;
SC'11): the numbers are a function of a key and a counter, with no state in between. `kernels/cpu/philox.h` is the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]  # of values below 2^32

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))  # table 2 of the paper
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))  # golden ratio, sqrt(3) - 1
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """The four words of a block. Words of 32 bits in uint64 arrays that broadcast."""
    a, b, c, d = counter
    key0, key1 = key
    for _ in range(ROUNDS):
        left, right = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b, c, d = (right >> HALF) ^ b ^ key0, right & LOW, (left >> HALF) ^ d ^ key1, left & LOW
        key0, key1 = (key0 + WEYL[0]) & LOW, (key1 + WEYL[1]) & LOW
    return a, b, c, d


def random_bits(key: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike = 0) -> npt.NDArray[np.int64]:
    """Uniform on 0 .. 2^32 - 1: word 0 of the block that the key and the counter (`second` above `first`) name.

    The arguments are integers modulo 2^64; the result has their common shape.
    """
    low, high = zip(*(_halves(x) for x in (key, first, second)), strict=True)
    shape = np.broadcast_shapes(*(x.shape for x in low))
    word = philox4x32((low[1], high[1], low[2], high[2]), (low[0], high[0]))[0]
    return np.broadcast_to(word, shape).astype(np.int64)


def _halves(x: npt.ArrayLike) -> tuple[Words, Words]:
    words = np.asarray(x).astype(np.int64).view(np.uint64)
    return words & LOW, words >> HALF
