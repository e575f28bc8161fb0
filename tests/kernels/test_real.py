"""Elementary functions of doubles that are the same on every device: known values, and the same bits from two
compilers."""

from __future__ import annotations

import ctypes
import math
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from echoc.compiler.targets.cpu.build import KERNELS, find_compiler
from echoc.compiler.targets.gpu.cpp import FLAGS, clang

ONE = ("exp", "log", "log1p", "sin", "cos", "tan", "tanh", "atan")
SOURCE = '#include "kernels/cpu/real.h"\n' + "".join(
    f'extern "C" double real_{name}(double x) {{ return echoc::real::{name}(x); }}\n' for name in ONE
)
SOURCE += 'extern "C" double real_pow(double x, double y) { return echoc::real::pow(x, y); }\n'
SPECIAL = [0.0, 1.0, 2.0, 0.5, 3.0, math.inf, math.nan, 1e300, 5e-324, 1e-310, 2.0**53, 1e20]
Library = Callable[..., float]


def load(path: Path) -> dict[str, Library]:
    library, out = ctypes.CDLL(str(path)), {}
    for name in (*ONE, "pow"):
        out[name] = getattr(library, f"real_{name}")
        out[name].restype = ctypes.c_double
        out[name].argtypes = [ctypes.c_double] * (2 if name == "pow" else 1)
    return out


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Library]:
    folder = tmp_path_factory.mktemp("real")
    (folder / "real.cpp").write_text(SOURCE)
    flags = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", f"-I{KERNELS.parent}"]
    subprocess.run([*find_compiler().command, *flags, "real.cpp", "-o", "real.so"], cwd=folder, check=True)
    return load(folder / "real.so")


def arguments(name: str, rng: random.Random) -> list[float]:
    """Of every size, near the edges of series and reductions, and where values nearly vanish."""
    around = [rng.gauss(0, 1) for _ in range(300)] + [rng.gauss(0, 1e-6) for _ in range(50)]
    if name in ("log", "log1p"):
        return [abs(x) + (name == "log") * 1e-9 for x in around] + [
            math.exp(rng.uniform(-700, 700)) for _ in range(200)
        ]
    if name == "exp":
        return around + [rng.uniform(-745, 709) for _ in range(300)]
    wide = [rng.choice((-1, 1)) * math.exp(rng.uniform(-20, 700)) for _ in range(300)]
    near = [float(rng.randrange(1, 1 << 22)) * math.pi / 2 for _ in range(100)]
    return around + wide + near + [rng.uniform(-30, 30) for _ in range(300)]


def near(got: float, wanted: float, units: float) -> bool:
    if math.isnan(wanted) or math.isinf(wanted) or wanted == 0:
        same_sign = math.isnan(wanted) or math.copysign(1, got) == math.copysign(1, wanted)
        return (math.isnan(got) if math.isnan(wanted) else got == wanted) and same_sign
    return abs(got - wanted) <= units * math.ulp(wanted)


def libm(name: str) -> Library:
    function = getattr(ctypes.CDLL("libm.so.6"), name)
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double] * (2 if name == "pow" else 1)
    return function  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ONE)
def test_within_three_units_of_the_c_library(real: dict[str, Library], name: str) -> None:
    signed = [sign * x for x in SPECIAL for sign in (1.0, -1.0)]
    for x in arguments(name, random.Random(name)) + signed:
        wanted = libm(name)(x)
        assert near(real[name](x), wanted, 3), (x, real[name](x), wanted)


def test_powers(real: dict[str, Library]) -> None:
    rng = random.Random(5)
    pairs = [(rng.uniform(0, 10), rng.uniform(-10, 10)) for _ in range(500)]
    pairs += [(1 + rng.gauss(0, 1e-4), rng.gauss(0, 1e6)) for _ in range(500)]
    pairs += [(-rng.uniform(0, 10), float(rng.randrange(-300, 300))) for _ in range(300)]
    pairs += [(math.exp(rng.uniform(-700, 700)), rng.uniform(-1, 1)) for _ in range(300)]
    signed = [sign * x for x in SPECIAL for sign in (1.0, -1.0)]
    for x, y in pairs + [(x, y) for x in signed for y in signed]:
        wanted = libm("pow")(x, y)
        assert near(real["pow"](x, y), wanted, 2), (x, y, real["pow"](x, y), wanted)


def test_another_compiler_gives_the_same_bits(real: dict[str, Library], tmp_path: Path) -> None:
    """The one for GPUs, told to compile for this machine."""
    zig, headers = clang()
    (tmp_path / "real.cpp").write_text(SOURCE)
    include = ["-isystem", str(KERNELS / "gpu" / "include"), "-isystem", str(headers), f"-I{KERNELS.parent}"]
    flags = [flag for flag in FLAGS if flag != "-nogpulib"]
    command = [str(zig), "clang", *flags, *include, "-target", "x86_64-linux-gnu", "-Xclang", "-target-cpu", "-Xclang",
               "x86-64-v3", "-fPIC", "-c", "real.cpp", "-o", "real.o"]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([*find_compiler().command, "-shared", "real.o", "-o", "real.so"], cwd=tmp_path, check=True)
    other, rng = load(tmp_path / "real.so"), random.Random(7)

    def bits(value: float) -> str:
        return value.hex()

    for name in ONE:
        for x in arguments(name, rng):
            assert bits(other[name](x)) == bits(real[name](x)), (name, x)
    for _ in range(2000):
        x, y = math.exp(rng.gauss(0, 3)), rng.gauss(0, 30)
        assert bits(other["pow"](x, y)) == bits(real["pow"](x, y)), (x, y)
