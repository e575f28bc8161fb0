"""Weight formats and matmul tiles against float64, at every feature level this CPU has."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiles import FORMATS, LEVELS, Format, Level, Tiles, build, runnable_levels

SHAPES = [(1, 1, 1), (1, 50, 257), (2, 33, 64), (5, 17, 100), (13, 40, 130), (17, 31, 65), (33, 272, 320)]
SHAPES += [(130, 272, 1100)]


def weights_of(interleave: int, N: int, K: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((interleave, N, K), np.float32) * 0.05


def rows_of(T: int, K: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((T, K), np.float32)


def error(found: np.ndarray, wanted: np.ndarray, x: np.ndarray, stored: np.ndarray) -> float:
    """The largest error, relative to the size |x| |w| of a dot product's vectors."""
    size = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(stored, axis=2)[:, None, :]
    return float((np.abs(found - wanted) / np.maximum(size, 1e-20)).max())


@pytest.fixture(params=runnable_levels(), ids=lambda level: level.name)
def tiles(request: pytest.FixtureRequest) -> Tiles:
    level: Level = request.param
    built = build(level)
    assert built.path == level.path, "the compiler flags selected another path than the level names"
    return built


@pytest.fixture(params=FORMATS, ids=str)
def fmt(request: pytest.FixtureRequest) -> Format:
    chosen: Format = request.param
    return chosen


def test_some_level_runs() -> None:
    assert LEVELS[0] in runnable_levels()


@pytest.mark.parametrize(("T", "N", "K"), SHAPES)
def test_gemm_matches_float64(tiles: Tiles, fmt: Format, T: int, N: int, K: int) -> None:
    weights = weights_of(1, N, K)
    packed = tiles.pack(fmt, weights)
    stored = tiles.unpack(fmt, packed, (1, N, K))
    x = rows_of(T, K)
    for nthreads in (1, 3):
        out, writes = tiles.gemm(fmt, x, packed, N, nthreads=nthreads)
        assert (writes == 1).all()
        wanted = x.astype(np.float64) @ stored.astype(np.float64).transpose(0, 2, 1)
        assert error(out, wanted, x, stored) < fmt.tolerance


@pytest.mark.parametrize(("interleave", "T"), [(2, 1), (3, 7), (4, 40)])
def test_interleaved_weights(tiles: Tiles, fmt: Format, interleave: int, T: int) -> None:
    N, K = 53, 160
    weights = weights_of(interleave, N, K)
    packed = tiles.pack(fmt, weights)
    x = rows_of(T, K)
    out, writes = tiles.gemm(fmt, x, packed, N, interleave=interleave, nthreads=2, deterministic=True)
    assert (writes == 1).all()
    for i in range(interleave):
        alone, _ = tiles.gemm(fmt, x, tiles.pack(fmt, weights[i : i + 1]), N, deterministic=True)
        np.testing.assert_array_equal(out[i], alone[0])


@pytest.mark.parametrize("K", [33, 1184])
def test_deterministic_rows(tiles: Tiles, fmt: Format, K: int) -> None:
    """A row's result has the same bits whatever T, its place among the rows, and the number of threads."""
    N = 100
    packed = tiles.pack(fmt, weights_of(1, N, K))
    x = rows_of(150, K)
    whole, _ = tiles.gemm(fmt, x, packed, N, deterministic=True)
    assert np.isfinite(whole).all()
    for first, count, nthreads in [(0, 1, 1), (149, 1, 2), (3, 2, 1), (20, 5, 3), (7, 12, 1), (1, 13, 20), (5, 33, 4)]:
        part, _ = tiles.gemm(fmt, x[first : first + count], packed, N, nthreads=nthreads, deterministic=True)
        np.testing.assert_array_equal(part[0], whole[0, first : first + count])


@pytest.mark.parametrize("nthreads", [2, 5, 7, 64])
@pytest.mark.parametrize("T", [1, 100])
def test_any_number_of_threads(tiles: Tiles, nthreads: int, T: int) -> None:
    fmt, N, K = FORMATS[1], 70, 64
    packed = tiles.pack(fmt, weights_of(1, N, K))
    x = rows_of(T, K)
    alone, _ = tiles.gemm(fmt, x, packed, N, deterministic=True)
    shared, writes = tiles.gemm(fmt, x, packed, N, nthreads=nthreads, deterministic=True)
    assert (writes == 1).all()
    np.testing.assert_array_equal(shared, alone)


@pytest.mark.parametrize(("rows", "rows_per_x"), [(4, 4), (12, 3), (300, 2)])
def test_experts(tiles: Tiles, fmt: Format, rows: int, rows_per_x: int) -> None:
    N, K, experts, interleave = 37, 96, 5, 2
    weights = [weights_of(interleave, N, K, seed=e) for e in range(experts)]
    packed = [tiles.pack(fmt, w) for w in weights]
    joined = build_aligned(packed)
    ids = np.sort(np.random.default_rng(2).integers(0, experts, rows)).astype(np.int32)
    np.random.default_rng(3).shuffle(ids[: rows // 2])
    ids[1] = -1
    x = rows_of(rows // rows_per_x, K)
    how = {"interleave": interleave, "deterministic": True}
    out, writes = tiles.gemm(fmt, x, joined, N, nthreads=2, ids=ids, rows_per_x=rows_per_x, experts=experts, **how)
    assert (writes[ids >= 0] == 1).all()
    assert (writes[ids < 0] == 0).all()
    for i, e in enumerate(ids):
        if e >= 0:
            row = x[i // rows_per_x : i // rows_per_x + 1]
            alone, _ = tiles.gemm(fmt, row, packed[e], N, **how)
            np.testing.assert_array_equal(out[:, i], alone[:, 0])


def build_aligned(parts: list[np.ndarray]) -> np.ndarray:
    from tiles import aligned

    out = aligned(sum(part.size for part in parts))
    np.concatenate(parts, out=out)
    return out


@pytest.mark.parametrize("K", [1, 333])
def test_unpack_row(tiles: Tiles, fmt: Format, K: int) -> None:
    N, interleave = 35, 2
    packed = tiles.pack(fmt, weights_of(interleave, N, K))
    stored = tiles.unpack(fmt, packed, (interleave, N, K))
    for which, n in [(0, 0), (1, 0), (0, 16), (1, 34)]:
        np.testing.assert_array_equal(tiles.unpack_row(fmt, packed, interleave, which, n, K), stored[which, n])


def test_largest_integers_do_not_saturate(tiles: Tiles, fmt: Format) -> None:
    """Every product at its largest, with both signs: what 16-bit intermediate sums would clip."""
    N, K = 32, 256
    weights = np.ones((1, N, K), np.float32)
    weights[0, 1::2] = -1
    packed = tiles.pack(fmt, weights)
    stored = tiles.unpack(fmt, packed, (1, N, K))
    x = np.ones((3, K), np.float32)
    x[1] = -1
    x[2, ::2] = -1
    for T in (1, 3):
        out, _ = tiles.gemm(fmt, x[:T], packed, N)
        np.testing.assert_allclose(
            out[0], x[:T].astype(np.float64) @ stored[0].T.astype(np.float64), rtol=1e-5, atol=1e-3
        )


def test_rows_of_any_size(tiles: Tiles, fmt: Format) -> None:
    """Rows of zeros, of tiny, huge and infinite values among others are what they are alone, and so are the others."""
    N, K = 40, 160
    weights = weights_of(1, N, K)
    weights[0, 3] = 0
    weights[0, :, 32:64] = -0.0
    packed = tiles.pack(fmt, weights)
    for among in ([0.0, 1e-38, 1e-30], [1e30, 0.0], [np.inf, 1e30]):
        x = np.where(rows_of(9, K) < 0, np.float32(-1), np.float32(1.5))
        x[2 : 2 + len(among)] *= np.array(among, np.float32)[:, None]
        whole, _ = tiles.gemm(fmt, x, packed, N, deterministic=True)
        for i, row in enumerate(x):
            alone, _ = tiles.gemm(fmt, row[None], packed, N, deterministic=True)
            np.testing.assert_array_equal(whole[0, i], alone[0, 0])
        usual = np.abs(x).max(axis=1) < 1e4
        wanted = x[usual].astype(np.float64) @ tiles.unpack(fmt, packed, (1, N, K))[0].T.astype(np.float64)
        np.testing.assert_allclose(whole[0, usual], wanted, rtol=0.1, atol=0.5)


@pytest.mark.parametrize("T", [1, 2, 8, 9, 40])
def test_bf16_in_12_bits(tiles: Tiles, T: int) -> None:
    """What bf16 gives: to the bit where all exponents have codes, else but for the order of additions."""
    plain, coded = FORMATS[1], FORMATS[2]
    N, K = 50, 544
    weights = weights_of(1, N, K)
    x = rows_of(T, K)
    for rare in (0, 40):
        weights[:] = np.sign(weights) * np.clip(np.abs(weights), 1e-3, None)
        rng = np.random.default_rng(rare)
        weights.flat[rng.integers(0, weights.size, rare)] = np.exp2(rng.uniform(-90, 3, rare))
        found, _ = tiles.gemm(coded, x, tiles.pack(coded, weights), N, nthreads=2)
        packed = tiles.pack(plain, weights)
        wanted, _ = tiles.gemm(plain, x, packed, N, nthreads=2)
        if rare == 0 and tiles.path != "amx":
            np.testing.assert_array_equal(found, wanted)
        assert error(found, wanted, x, tiles.unpack(plain, packed, (1, N, K))) < 1e-5
        row = tiles.unpack_row(coded, tiles.pack(coded, weights), 1, 0, 33, K)
        np.testing.assert_array_equal(row, tiles.unpack(plain, packed, (1, N, K))[0, 33])


def test_levels_agree_to_the_bit_on_integers(fmt: Format) -> None:
    if not fmt.group:
        N, K = 20, 64
    else:
        N, K = 50, 600
    levels = [build(level) for level in runnable_levels() if level.path != "portable"]
    packed = levels[0].pack(fmt, weights_of(1, N, K)) if levels else None
    for T in (1, 4, 20):
        results = [tiles.gemm(fmt, rows_of(T, K), packed, N, deterministic=True)[0] for tiles in levels]
        for other in results[1:]:
            if fmt.group:
                np.testing.assert_array_equal(results[0], other)
            else:
                np.testing.assert_allclose(results[0], other, rtol=0.05, atol=0.05)


def test_every_eight_bit_float(tiles: Tiles) -> None:
    """Exact multiples of each value: subnormals, the largest, both zeros."""
    fmt, codes = Format(8, 0, 0.0), np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    sizes = np.where(exponent, (8 + mantissa) * 2.0 ** (exponent - 10.0), mantissa * 2.0**-9).astype(np.float32)
    values = np.concatenate([sizes, -sizes, [np.float32(0)]])
    weights = np.stack([np.roll(values, i) for i in range(34)])[None]
    packed = tiles.pack(fmt, weights)
    np.testing.assert_array_equal(tiles.unpack(fmt, packed, weights.shape), weights)
    np.testing.assert_array_equal(tiles.unpack_row(fmt, packed, 1, 0, 20, len(values)), weights[0, 20])
    out, _ = tiles.gemm(fmt, np.eye(len(values), dtype=np.float32), packed, 34)
    np.testing.assert_array_equal(out[0].T, weights[0])
