"""kernels/cpu/rows.h: values against numpy, and the same bits from every feature level."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_levels import build, levels
from numpy.typing import NDArray

Array = NDArray[Any]
SCALARS = ("sum", "sum_squares", "max", "min", "product", "argmax", "argmin")
LENGTHS = (1, 2, 7, 15, 16, 17, 31, 33, 64, 100, 257, 1000, 4099)

SOURCE = (
    '#include "rows.h"\n#include "abi.h"\nusing namespace echoc;\n'
    + "\n".join(
        f"ECHOC_EXPORT void r_{n}(const float* x, int64_t n, double* y) {{ *y = double(rows::{n}(x, n)); }}"
        for n in SCALARS
    )
    + r"""
ECHOC_EXPORT void r_dot(const float* a, const float* b, int64_t n, double* y) { *y = rows::dot(a, b, n); }
ECHOC_EXPORT void r_centred(const float* x, float c, int64_t n, double* y) { *y = rows::sum_squares(x, n, c); }
ECHOC_EXPORT void r_cumsum(const float* x, float* y, int64_t n) { rows::cumulative_sum(x, y, n); }
ECHOC_EXPORT void r_topk(const float* x, int64_t n, int64_t k, float* v, int32_t* i, int largest) {
    rows::top_k(x, n, k, v, i, largest != 0);
}
ECHOC_EXPORT void r_sort(const float* x, int64_t n, int down, float* v, int32_t* i, uint64_t* s) {
    rows::sort(x, n, down != 0, v, i, s);
}
"""
)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    folder: Path = tmp_path_factory.mktemp("rows")
    return {level: build(SOURCE, level, folder) for level in levels()}


def pointer(x: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.ctypes.data)


def scalar(library: ctypes.CDLL, name: str, x: Array) -> float:
    y = np.zeros(1)
    getattr(library, f"r_{name}")(pointer(x), ctypes.c_int64(x.size), pointer(y))
    return float(y[0])


def unaligned(x: Array, shift: int) -> Array:
    """A copy of x that starts `shift` floats into an allocation."""
    y = np.empty(x.size + shift, np.float32)[shift:]
    y[:] = x
    return y


def lane_sum(x: Array) -> np.float32:
    """The documented order: 16 lanes, then halves upon halves."""
    lanes = np.zeros(16, np.float32)
    for i in range(0, x.size, 16):
        part = x[i : i + 16]
        lanes[: part.size] += part
    for width in (8, 4, 2, 1):
        lanes = lanes[:width] + lanes[width : 2 * width]
    return np.float32(lanes[0])


@pytest.mark.parametrize("n", LENGTHS)
def test_reductions(libraries: dict[str, ctypes.CDLL], n: int) -> None:
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    wide = x.astype(np.float64)
    for level, library in libraries.items():
        assert scalar(library, "sum", x) == lane_sum(x), level
        assert abs(scalar(library, "sum", x) - wide.sum()) <= 1e-6 * np.abs(wide).sum()
        assert abs(scalar(library, "sum_squares", x) - (wide**2).sum()) <= 1e-6 * (wide**2).sum()
        assert scalar(library, "max", x) == x.max()
        assert scalar(library, "min", x) == x.min()
        assert scalar(library, "argmax", x) == x.argmax()
        assert scalar(library, "argmin", x) == x.argmin()
        near_one = (1 + x / 100).astype(np.float32)
        assert scalar(library, "product", near_one) == pytest.approx(np.prod(near_one.astype(np.float64)), rel=1e-5)


def test_bits_do_not_depend_on_alignment_or_vector_width(libraries: dict[str, ctypes.CDLL]) -> None:
    fused = [library for level, library in libraries.items() if level != "x86-64"]  # the plain level has no fma
    compared = 0
    for n in LENGTHS:
        x = np.random.default_rng(n).standard_normal(n).astype(np.float32) * 100
        for name in SCALARS:
            group = fused if name == "sum_squares" else list(libraries.values())
            found = {scalar(library, name, unaligned(x, shift)) for library in group for shift in range(4)}
            assert len(found) == 1, (name, n, found)
            compared += 1
    assert compared == len(LENGTHS) * len(SCALARS)


def test_nan_and_ties(libraries: dict[str, ctypes.CDLL]) -> None:
    x = np.ones(100, np.float32)
    x[[40, 70]], x[[30, 90]] = 5, -5
    broken = x.copy()
    broken[[55, 60]] = np.nan
    for library in libraries.values():
        assert scalar(library, "argmax", x) == 40
        assert scalar(library, "argmin", x) == 30
        assert scalar(library, "argmax", broken) == 55
        assert scalar(library, "argmin", broken) == 55
        for name in ("max", "min", "sum"):
            assert np.isnan(scalar(library, name, broken)), name
        assert scalar(library, "max", np.full(20, -np.inf, np.float32)) == -np.inf
        assert scalar(library, "sum", x[:0]) == 0


def test_dot_and_centred(libraries: dict[str, ctypes.CDLL]) -> None:
    for n in LENGTHS:
        rng = np.random.default_rng(n)
        a, b, y = rng.standard_normal(n).astype(np.float32), rng.standard_normal(n).astype(np.float32), np.zeros(1)
        for library in libraries.values():
            library.r_dot(pointer(a), pointer(b), ctypes.c_int64(n), pointer(y))
            assert abs(y[0] - a.astype(np.float64) @ b) <= 1e-6 * (np.abs(a) @ np.abs(b))
            library.r_centred(pointer(a), ctypes.c_float(0.5), ctypes.c_int64(n), pointer(y))
            assert y[0] == pytest.approx(((a.astype(np.float64) - 0.5) ** 2).sum(), rel=2e-6)


def test_cumulative_sum(libraries: dict[str, ctypes.CDLL]) -> None:
    for n in LENGTHS:
        x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
        for library in libraries.values():
            y = np.zeros(n, np.float32)
            library.r_cumsum(pointer(x), pointer(y), ctypes.c_int64(n))
            assert np.array_equal(y, np.cumsum(x, dtype=np.float32))


def rows_with_ties(n: int) -> list[Array]:
    rng = np.random.default_rng(n)
    tied = rng.integers(-3, 4, n).astype(np.float32)
    tied[tied == 0] *= rng.choice([-1, 1], int((tied == 0).sum()))  # both zeros
    broken = rng.standard_normal(n).astype(np.float32)
    broken[rng.integers(0, n, n // 5)] = np.nan
    broken[rng.integers(0, n, n // 9)] = np.inf
    return [rng.standard_normal(n).astype(np.float32), tied, broken, np.zeros(n, np.float32)]


@pytest.mark.parametrize("n", LENGTHS)
def test_sort_and_top_k(libraries: dict[str, ctypes.CDLL], n: int) -> None:
    for x in rows_with_ties(n):
        up = np.argsort(x, kind="stable")
        down = np.lexsort((np.arange(n), -x, ~np.isnan(x)))  # NaN first, then large to small, ties in order
        for library in libraries.values():
            values, indices, scratch = np.zeros(n, np.float32), np.zeros(n, np.int32), np.zeros(n, np.uint64)
            for descending, wanted in ((0, up), (1, down)):
                library.r_sort(
                    pointer(x), ctypes.c_int64(n), descending, pointer(values), pointer(indices), pointer(scratch)
                )
                assert np.array_equal(indices, wanted)
                assert np.array_equal(values, x[wanted], equal_nan=True)
            for k in {1, min(3, n), min(8, n), min(40, n)}:
                for largest, wanted in ((1, down), (0, up)):
                    library.r_topk(
                        pointer(x), ctypes.c_int64(n), ctypes.c_int64(k), pointer(values), pointer(indices), largest
                    )
                    assert np.array_equal(indices[:k], wanted[:k]), (k, largest)
                    assert np.array_equal(values[:k], x[wanted[:k]], equal_nan=True)
