"""The counter-based generator of the op table: known answers, and what its type rule refuses."""

from __future__ import annotations

import numpy as np
import pytest
from device import interpret, port, program_of

from echoc.compiler.ir import make
from echoc.compiler.ir.ops.philox import philox4x32, random_bits
from echoc.errors import IRError

# Random123's kat_vectors (github.com/DEShawResearch/random123), philox4x32 with 10 rounds: counter, key, block
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]  # fmt: skip


def joined(low: int, high: int) -> np.ndarray:
    return np.array(high << 32 | low, np.uint64).view(np.int64)


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], block: tuple[int, ...]) -> None:
    a, b, c, d = (np.array(x, np.uint64) for x in counter)
    low, high = (np.array(x, np.uint64) for x in key)
    assert tuple(int(x) for x in philox4x32((a, b, c, d), (low, high))) == block
    first, second = joined(counter[0], counter[1]), joined(counter[2], counter[3])
    program = program_of({"y": make("random_bits", *(port(n, dtype="i64") for n in "kab"))})
    found = interpret(program, {"k": joined(key[0], key[1]), "a": first, "b": second})["y"]
    assert found == block[0] and found.dtype == np.int64


def test_operands_broadcast() -> None:
    bits = random_bits(np.arange(3)[:, None], np.arange(4))
    assert bits.shape == (3, 4)
    assert all(bits[k, c] == random_bits(k, c, 0) for k in range(3) for c in range(4))
    assert len({int(b) for b in random_bits(7, np.arange(1000), np.arange(1000)[:, None] - 500).ravel()}) > 999_800


def test_bits_are_uniform_and_neighbours_independent() -> None:
    bits = random_bits(12, np.arange(1 << 16))
    seen = np.bincount(bits >> 28, minlength=16)
    pairs = np.bincount((bits[1:] >> 30 << 2) | (bits[:-1] >> 30), minlength=16)
    for counts in (seen, pairs):
        expected = counts.sum() / 16
        assert ((counts - expected) ** 2 / expected).sum() < 37.7  # 0.999 quantile of chi-square with 15 degrees


def test_what_is_no_key_or_counter() -> None:
    key, counter = port("k", dtype="i64"), port("c", 4, dtype="i64")
    assert str(make("random_bits", key, counter, port("d", 3, 1, dtype="i64")).type) == "i64[3, 4]"
    with pytest.raises(IRError, match="found i32, i64; wanted an i64 key"):
        make("random_bits", port("k", dtype="i32"), counter)
    with pytest.raises(IRError, match="do not broadcast"):
        make("random_bits", port("k", 3, dtype="i64"), counter)
    with pytest.raises(IRError, match="found 4 inputs; wanted 2 to 3"):
        make("random_bits", key, counter, counter, counter)
