"""kernels/cpu/math.h against float64: errors in units in the last place, special values, and vectorisation."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_levels import FLAGS, HEADERS, build, levels
from numpy.typing import NDArray

Array = NDArray[Any]
inf, nan = float("inf"), float("nan")


def _log_uniform(low: float, high: float) -> Callable[[np.random.Generator, int], Array]:
    def draw(rng: np.random.Generator, n: int) -> Array:
        return np.exp2(rng.uniform(np.log2(low), np.log2(high), n)).astype(np.float32)

    return draw


def _signed(low: float, high: float) -> Callable[[np.random.Generator, int], Array]:
    positive = _log_uniform(low, high)
    return lambda rng, n: positive(rng, n) * rng.choice(np.array([-1, 1], np.float32), n)


def _uniform(low: float, high: float) -> Callable[[np.random.Generator, int], Array]:
    return lambda rng, n: rng.uniform(low, high, n).astype(np.float32)


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


# name -> (float64 meaning, draws, bound in ulp)
UNARY: dict[str, tuple[Callable[[Array], Array], list[Callable[[np.random.Generator, int], Array]], float]] = {
    "exp": (np.exp, [_uniform(-104, 89), _signed(1e-30, 80)], 1.5),
    "exp2": (np.exp2, [_uniform(-150, 128.5), _signed(1e-30, 100)], 1.5),
    "expm1": (np.expm1, [_uniform(-90, 89), _signed(1e-38, 20), _uniform(-1, 1)], 2.5),
    "log": (np.log, [_log_uniform(1e-44, 3e38), _uniform(0.5, 2)], 1.5),
    "log2": (np.log2, [_log_uniform(1e-44, 3e38), _uniform(0.5, 2)], 2.0),
    "log10": (np.log10, [_log_uniform(1e-44, 3e38), _uniform(0.5, 2)], 2.5),
    "log1p": (np.log1p, [_log_uniform(1e-38, 3e38), _uniform(-0.999, 2), _signed(1e-38, 0.9)], 2.0),
    "tanh": (np.tanh, [_uniform(-12, 12), _signed(1e-38, 2)], 2.5),
    "sigmoid": (_sigmoid, [_uniform(-100, 30), _signed(1e-30, 10)], 2.5),
    "silu": (lambda x: x * _sigmoid(x), [_uniform(-80, 80), _signed(1e-30, 10)], 3.0),
    "softplus": (_softplus, [_uniform(-87, 30), _signed(1e-30, 10)], 2.5),
    "erf": (np.vectorize(math.erf), [_uniform(-5, 5), _signed(1e-37, 2)], 2.0),
    "sin": (np.sin, [_uniform(-10, 10), _uniform(-1e6, 1e6), _signed(1e-30, 1e8)], 2.0),
    "cos": (np.cos, [_uniform(-10, 10), _uniform(-1e6, 1e6), _signed(1e-30, 1e8)], 2.0),
    "sqrt": (np.sqrt, [_log_uniform(1e-44, 3e38)], 0.51),
    "rsqrt": (lambda x: 1 / np.sqrt(x), [_log_uniform(1e-44, 3e38)], 1.5),
    "reciprocal": (lambda x: 1 / x, [_signed(1e-37, 1e37)], 0.51),
    "floor": (np.floor, [_signed(1e-3, 1e9)], 0.0),
    "ceil": (np.ceil, [_signed(1e-3, 1e9)], 0.0),
    "trunc": (np.trunc, [_signed(1e-3, 1e9)], 0.0),
    "round": (np.rint, [_signed(1e-3, 1e9), lambda rng, n: rng.integers(-99, 99, n).astype(np.float32) / 2], 0.0),
    "abs": (np.abs, [_signed(1e-38, 1e38)], 0.0),
    "sign": (np.sign, [_signed(1e-38, 1e38)], 0.0),
}

# name -> [(argument, wanted)]: what C's libm gives (Annex F of the C standard).
SPECIAL: dict[str, list[tuple[float, float]]] = {
    "exp": [(0, 1), (-0.0, 1), (inf, inf), (-inf, 0), (nan, nan), (1e30, inf), (-1e30, 0)],
    "exp2": [(0, 1), (inf, inf), (-inf, 0), (nan, nan), (10, 1024), (-149, 2.0**-149), (1e30, inf), (-1e30, 0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (inf, inf), (-inf, -1), (nan, nan), (1e-40, 1e-40)],
    "log": [(1, 0), (0, -inf), (-0.0, -inf), (inf, inf), (-1, nan), (-inf, nan), (nan, nan)],
    "log2": [(1, 0), (8, 3), (0, -inf), (inf, inf), (-1, nan), (-inf, nan), (nan, nan)],
    "log10": [(1, 0), (0, -inf), (inf, inf), (-1, nan), (nan, nan)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1, -inf), (inf, inf), (-2, nan), (-inf, nan), (nan, nan), (1e-40, 1e-40)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (inf, 1), (-inf, -1), (nan, nan), (50, 1)],
    "sigmoid": [(0, 0.5), (inf, 1), (-inf, 0), (nan, nan)],
    "silu": [(0, 0), (inf, inf), (nan, nan), (-1e30, 0)],
    "softplus": [(inf, inf), (-inf, 0), (nan, nan), (100, 100)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (inf, 1), (-inf, -1), (nan, nan), (9, 1)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (inf, nan), (-inf, nan), (nan, nan)],
    "cos": [(0, 1), (-0.0, 1), (inf, nan), (nan, nan)],
    "sqrt": [(0.0, 0.0), (-0.0, -0.0), (inf, inf), (-1, nan), (nan, nan)],
    "rsqrt": [(0, inf), (inf, 0), (-1, nan), (nan, nan)],
    "round": [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, -0.0), (inf, inf), (nan, nan)],
    "sign": [(0.0, 0.0), (nan, nan), (inf, 1), (-inf, -1)],
}

BINARY = ("pow", "max", "min", "remainder", "copysign")

SOURCE = (
    '#include "math.h"\n#include "abi.h"\n'
    + "\n".join(
        f"ECHOC_EXPORT void v_{n}(const float* x, float* __restrict y, int n) "
        f"{{ for (int i = 0; i < n; ++i) y[i] = echoc::m::{n}(x[i]); }}"
        for n in UNARY
    )
    + "\n"
    + "\n".join(
        f"ECHOC_EXPORT void v_{n}(const float* a, const float* b, float* __restrict y, int n) "
        f"{{ for (int i = 0; i < n; ++i) y[i] = echoc::m::{n}(a[i], b[i]); }}"
        for n in BINARY
    )
)


@pytest.fixture(scope="module", params=levels())
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(SOURCE, request.param, tmp_path_factory.mktemp("math"))


def apply(library: ctypes.CDLL, name: str, *inputs: Array) -> Array:
    arrays = [np.ascontiguousarray(x, np.float32) for x in inputs]
    y = np.full(arrays[0].shape, 7e7, np.float32)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, y)]
    getattr(library, f"v_{name}")(*pointers, ctypes.c_int(y.size))
    return y


def ulps(found: Array, wanted: Array) -> Array:
    """Distance in units in the last place of the wanted value; both infinite or both NaN is 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = wanted.astype(np.float32)
        unit = np.spacing(np.minimum(np.abs(single), np.float32(3.4e38))).astype(np.float64)
        error = np.abs(found.astype(np.float64) - wanted) / unit
    same = (found == single) | (np.isnan(found) & np.isnan(single))
    return np.where(same & ~np.isfinite(single), 0, error)


@pytest.mark.parametrize("name", UNARY)
def test_error(library: ctypes.CDLL, name: str) -> None:
    meaning, draws, bound = UNARY[name]
    for number, draw in enumerate(draws):
        x = draw(np.random.default_rng(number), 100_003)
        with np.errstate(all="ignore"):
            wanted = meaning(x.astype(np.float64))
        error = ulps(apply(library, name, x), wanted)
        worst = int(np.argmax(np.where(np.isnan(error), inf, error)))
        assert error[worst] <= bound, f"{name}({x[worst]!r}): {error[worst]} ulp from {wanted[worst]!r}"


@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(library: ctypes.CDLL, name: str) -> None:
    x = np.array([a for a, _ in SPECIAL[name]] * 5, np.float32)  # long enough for the vector body and its tail
    wanted = np.array([w for _, w in SPECIAL[name]] * 5, np.float32)
    found = apply(library, name, x)
    bits = (found == wanted) & (np.signbit(found) == np.signbit(wanted)) | np.isnan(found) & np.isnan(wanted)
    if name in {"exp", "sigmoid", "silu", "softplus"}:  # the sign of a zero limit is of no use here
        bits |= (found == 0) & (wanted == 0)
    assert bits.all(), [(a, f, w) for a, f, w, ok in zip(x, found, wanted, bits, strict=True) if not ok]


def test_pow(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    x, y = _log_uniform(1e-38, 1e38)(rng, 100_003), _signed(1e-3, 1e2)(rng, 100_003)
    near, large = rng.uniform(0.9, 1.1, 100_003).astype(np.float32), rng.uniform(-900, 900, 100_003).astype(np.float32)
    whole = rng.integers(-9, 9, 100_003).astype(np.float32)
    for a, b in ((x, y), (near, large), (-x, whole), (-near, whole)):
        with np.errstate(all="ignore"):
            error = ulps(apply(library, "pow", a, b), np.power(a.astype(np.float64), b.astype(np.float64)))
        worst = int(np.argmax(np.where(np.isnan(error), inf, error)))
        assert error[worst] <= 2.0, f"pow({a[worst]!r}, {b[worst]!r}): {error[worst]} ulp"
    values = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, inf, -inf, nan, 1e30, -1e30, 16777217.0]
    a, b = (np.array(g, np.float32).ravel() for g in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        wanted = np.power(a.astype(np.float64), b.astype(np.float64)).astype(np.float32)
    found = apply(library, "pow", a, b)
    good = (found == wanted) & (np.signbit(found) == np.signbit(wanted)) | np.isnan(found) & np.isnan(wanted)
    assert good.all(), list(zip(a[~good], b[~good], found[~good], wanted[~good], strict=True))


def test_max_min_remainder(library: ctypes.CDLL) -> None:
    values = [0.0, 1.0, -1.0, 2.5, -7.25, 3.0, -3.0, inf, -inf, nan]
    a, b = (np.array(g, np.float32).ravel() for g in np.meshgrid(values, values))
    with np.errstate(invalid="ignore"):
        assert np.array_equal(apply(library, "max", a, b), np.maximum(a, b), equal_nan=True)
        assert np.array_equal(apply(library, "min", a, b), np.minimum(a, b), equal_nan=True)
        finite = np.isfinite(a) & np.isfinite(b) & (b != 0)
        a, b = a[finite], b[finite]
        assert np.array_equal(apply(library, "remainder", a, b), np.mod(a, b))


@pytest.mark.parametrize("level", ["x86-64-v3", "native"])
def test_loops_vectorise(level: str, tmp_path: Path) -> None:
    """g++ reports a vectorised loop for every function (its report is the only one we parse)."""
    gxx = shutil.which("g++")
    assert gxx, "g++ is needed to check vectorisation"
    lines = SOURCE.splitlines()
    (tmp_path / "loops.cpp").write_text(SOURCE)
    flags = [f for f in FLAGS if f != "-shared"]
    command = [gxx, *flags, f"-march={level}", f"-iquote{HEADERS}", "-fopt-info-vec", "-c", "loops.cpp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    report = {int(line.split(":")[1]) for line in done.stderr.splitlines() if "loop vectorized" in line}
    missing = [text for number, text in enumerate(lines, 1) if "void v_" in text and number not in report]
    assert not missing, missing
