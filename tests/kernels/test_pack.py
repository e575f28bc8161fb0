"""The packer of the native extension: round trips, layouts, source types, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from echoc import _native

FORMATS = [("f32", 0), ("bf16", 0), ("bf16c", 0), ("f8", 0)] + [
    (name, group) for name in ("i8", "i4") for group in (32, 64, 128)
]
# The relative root-mean-square error of normal values, a little above what was seen.
ERRORS = {"f32": 0.0, "bf16": 0.004, "bf16c": 0.004, "f8": 0.04, "i8": 0.008, "i4": 0.11}


def weights_of(N: int, K: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((N, K), np.float32) * np.float32(0.02)


@pytest.mark.parametrize(("name", "group"), FORMATS)
@pytest.mark.parametrize(("N", "K"), [(1, 1), (17, 33), (40, 700)])
def test_round_trip(name: str, group: int, N: int, K: int) -> None:
    sources = [weights_of(N, K, seed) for seed in range(3)]
    packed = _native.pack(name, group, sources)
    assert packed.size == _native.packed_nbytes(name, group, 3, N, K)
    assert packed.ctypes.data % 64 == 0
    for stored, source in zip(_native.unpack(name, group, packed, 3, N, K), sources, strict=True):
        missed = np.sqrt(((stored - source) ** 2).mean() / (source**2).mean())
        assert missed <= ERRORS[name]


@pytest.mark.parametrize(("name", "group"), FORMATS)
def test_every_way_packs_the_same_bytes(name: str, group: int) -> None:
    sources = [weights_of(50, 130, seed) for seed in range(2)]
    packed = _native.pack(name, group, sources)
    turned = [np.ascontiguousarray(source.T) for source in sources]
    np.testing.assert_array_equal(_native.pack(name, group, turned, transposed=True, threads=3), packed)
    out = np.full(packed.size, 0xA5, np.uint8)
    _native.pack_into(name, group, sources, False, out)
    np.testing.assert_array_equal(out, packed)


def test_interleaved_panels_alternate() -> None:
    first, second = weights_of(32, 64, 0), weights_of(32, 64, 1)
    panels = _native.pack("bf16", 0, [first, second]).reshape(4, -1)
    np.testing.assert_array_equal(panels[0::2].ravel(), _native.pack("bf16", 0, [first]))
    np.testing.assert_array_equal(panels[1::2].ravel(), _native.pack("bf16", 0, [second]))


def bits_of(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values).view(np.uint32)


def test_bf16_in_12_bits_loses_nothing() -> None:
    """Any sixteen exponents and a few more: zeros of both signs, denormals, the largest and the smallest values."""
    rng = np.random.default_rng(3)
    for N, K in [(1, 1), (16, 96), (37, 501)]:
        source = weights_of(N, K)
        source.flat[rng.integers(0, source.size, 5)] = [0.0, -0.0, 3e38, -1.2e-38, 1e-40]
        wanted = _native.unpack("bf16", 0, _native.pack("bf16", 0, [source]), 1, N, K)
        assert _native.codable([source])
        packed = _native.pack("bf16c", 0, [source])
        np.testing.assert_array_equal(bits_of(_native.unpack("bf16c", 0, packed, 1, N, K)), bits_of(wanted))
    assert packed.size < 0.8 * _native.packed_nbytes("bf16", 0, 1, N, K)


def test_too_many_exponents_for_12_bits() -> None:
    source = np.exp2(np.random.default_rng(4).uniform(-100, 100, (20, 256))).astype(np.float32)
    assert not _native.codable([weights_of(20, 256), source])
    assert not _native.codable([np.ascontiguousarray(source.T)], transposed=True)
    with pytest.raises(ValueError, match="too many exponents"):
        _native.pack("bf16c", 0, [source])


def test_source_types() -> None:
    source = weights_of(20, 40)
    half = source.astype(np.float16)
    stored = _native.unpack("f32", 0, _native.pack("f32", 0, [half]), 1, 20, 40)
    np.testing.assert_array_equal(stored[0], half.astype(np.float32))
    bf16 = (source.view(np.uint32) >> 16).astype(np.uint16)
    stored = _native.unpack("f32", 0, _native.pack("f32", 0, [bf16]), 1, 20, 40)
    np.testing.assert_array_equal(stored[0], (bf16.astype(np.uint32) << 16).view(np.float32))


@pytest.mark.parametrize(("name", "group"), FORMATS)
def test_random_weights(name: str, group: int) -> None:
    """Reproducible, near normal, and in every format the rounding of the same values."""
    how = (2, 70, 500, 7, 3, 0.02)
    packed = _native.fill_random(name, group, *how)
    np.testing.assert_array_equal(_native.fill_random(name, group, *how, threads=3), packed)
    exact = _native.unpack("f32", 0, _native.fill_random("f32", 0, *how), 2, 70, 500)
    np.testing.assert_array_equal(_native.pack(name, group, list(exact)), packed)
    assert abs(exact.mean()) < 1e-3
    assert abs(exact.std() / 0.02 - 1) < 0.02
    assert not np.array_equal(exact[0], exact[1])
    other = _native.fill_random("f32", 0, 2, 70, 500, 7, 4, 0.02)
    assert abs(np.corrcoef(_native.unpack("f32", 0, other, 2, 70, 500).ravel(), exact.ravel())[0, 1]) < 0.02


def test_eight_bit_floats_are_the_nearest() -> None:
    """To the nearest e4m3, ties to even, of rows scaled so that the largest is 448; rows too small become zero."""
    generator = np.random.default_rng(0)
    source = weights_of(30, 500) * generator.choice(np.float32([1, 1e-3, 1e-6]), (30, 500))
    source[3] = 0
    source[5] *= np.float32(1e-38)
    source[6, :48] = np.float32([448, 1.0625, 1.1875, 2**-10, 3 * 2**-10, -(2**-10)] * 8)  # five ties
    code = np.arange(127)
    sizes = np.where(code >> 3, (8 + code % 8) * 2.0 ** ((code >> 3) - 10.0), code * 2.0**-9)
    scale = np.abs(source).max(1, keepdims=True) / np.float32(448)
    scale[scale < np.finfo(np.float32).tiny] = 0
    scaled = source * np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    above = np.searchsorted(sizes, np.abs(scaled)).clip(0, 126)
    below = (above - 1).clip(0)
    up, down = sizes[above] - np.abs(scaled), np.abs(scaled) - sizes[below]
    chosen = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    wanted = (np.sign(scaled) * sizes[chosen]).astype(np.float32) * scale
    assert not wanted[5].any() and wanted[6, 1:6].tolist() == [1.0, 1.25, 0.0, 2**-8, 0.0]
    np.testing.assert_array_equal(_native.unpack("f8", 0, _native.pack("f8", 0, [source]), 1, 30, 500)[0], wanted)


def test_zero_groups_stay_zero() -> None:
    for name, group in FORMATS:
        packed = _native.pack(name, group, [np.zeros((3, 90), np.float32)])
        assert (_native.unpack(name, group, packed, 1, 3, 90) == 0).all()


def test_refusals_name_the_cause() -> None:
    source = weights_of(4, 4)
    for name, group in [("i4", 48), ("f8", 32), ("i8", 0)]:
        with pytest.raises(ValueError, match=f"{name} with group {group}"):
            _native.pack(name, group, [source])
    with pytest.raises(ValueError, match=r"\[4, 4\] and \[5, 4\]"):
        _native.pack("f32", 0, [source, weights_of(5, 4)])
    with pytest.raises(ValueError, match="unknown dtype"):
        _native.pack("f32", 0, [source.astype(np.float64)])
    with pytest.raises(ValueError, match="no weight sources"):
        _native.pack("f32", 0, [])
    with pytest.raises(ValueError, match=r"10 bytes; wanted 256"):
        _native.pack_into("f32", 0, [source], False, np.zeros(10, np.uint8))
