"""C++ for GPUs: what is built, what is said of it, and what is refused."""

from __future__ import annotations

import ctypes
import math
import random
import subprocess
from pathlib import Path

import pytest

from echoc.compiler.targets.gpu import cpp
from echoc.compiler.targets.gpu.levels import LEVELS, Level, level_of
from echoc.errors import CompileError

SOURCE = """
#include "kernels/gpu/device.h"
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>

namespace device = echoc::device;

ECHOC_BLOCK_SHARED double buffer[256];

ECHOC_KERNEL(256) void meet(device::Meeting* meeting, uint32_t blocks, double* x, std::atomic<int32_t>* count) {
  const uint32_t at = device::block() * 256 + device::thread();
  buffer[device::thread()] = x[at];
  device::meet_grid(*meeting, blocks);
  x[at] = std::log(buffer[255 - device::thread()]) + std::exp(x[at]);
  count->fetch_add(1);
}

ECHOC_KERNEL(256) void sorted(double* x, int64_t n) {
  std::sort(x, x + n, [](double a, double b) { return a < b; });
}
"""


@pytest.mark.parametrize(
    "level", [level for levels in LEVELS.values() for level in levels], ids=lambda level: level.name
)
def test_an_image_for_every_level(level: Level) -> None:
    built = cpp.build_cpp(SOURCE, ["meet", "sorted"], level)
    assert built.image[:4] == b"\x7fELF"
    assert set(built.kernels) == {"meet", "sorted"}
    meet, ordered = built.kernels["meet"], built.kernels["sorted"]
    assert meet.shared_bytes == 2048 and ordered.shared_bytes == 0
    assert 8 <= meet.registers <= level.registers
    assert not meet.calls and meet.spills == 0
    assert built.facts()["meet"]["threads"] == 256
    assert cpp.build_cpp(SOURCE, ["meet", "sorted"], level) == built


def test_what_a_compiler_rejects_is_said() -> None:
    with pytest.raises(CompileError, match=r"clang for gfx942 failed.*(?s:.*)unknown_name"):
        cpp.build_cpp("int f() { return unknown_name; }", ["f"], level_of("rocm:gfx942"))


def test_functions_that_no_device_has_are_refused() -> None:
    source = (
        '#include "kernels/gpu/device.h"\nextern "C" int puts(int);ECHOC_KERNEL(256) void f(int* x) { *x = puts(*x); }'
    )
    for target in ("cuda:sm_90a", "rocm:gfx1100"):
        with pytest.raises(CompileError, match="puts"):
            cpp.build_cpp(source, ["f"], level_of(target))


@pytest.mark.parametrize("target", ["cuda:sm_80", "rocm:gfx90a"])
def test_a_kernel_that_is_not_there(target: str) -> None:
    with pytest.raises(CompileError, match="no kernel other"):
        cpp.build_cpp(SOURCE, ["other"], level_of(target))


def test_more_shared_memory_than_there_is() -> None:
    source = (
        '#include "kernels/gpu/device.h"\nECHOC_BLOCK_SHARED double a[9000];\n'
        "ECHOC_KERNEL(64) void f(double* x) { a[echoc::device::thread()] = 1; echoc::device::meet_block(); *x = a[1]; }"
    )
    with pytest.raises(CompileError, match=r"72000|local memory|shared"):
        cpp.build_cpp(source, ["f"], level_of("rocm:gfx942"), threads=64)


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CompileError, match=r"ziglang.*echoc\[gpu\]"):
        cpp.clang()
    with pytest.raises(CompileError, match=r"triton.*echoc\[gpu\]"):
        cpp.assembler(level_of("cuda:sm_90a"))


def test_functions_of_doubles_are_exact_to_two_ulps(tmp_path: Path) -> None:
    source = tmp_path / "scalar.cpp"
    source.write_text(
        '#include "kernels/gpu/scalar.h"\n'
        + "".join(
            f'extern "C" double {name}(double x) {{ return echoc::scalar::{name}(x); }}\n'
            for name in ("exp", "log", "log1p")
        ).replace('"C" double ', '"C" double our_')
        + 'extern "C" double our_next(double x, double to) { return echoc::scalar::next_after(x, to); }\n'
    )
    library = tmp_path / "scalar.so"
    subprocess.run(
        ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", f"-I{cpp.ROOT}", str(source), "-o", str(library)], check=True
    )
    ours = ctypes.CDLL(str(library))
    for name in ("our_exp", "our_log", "our_log1p", "our_next"):
        getattr(ours, name).restype = ctypes.c_double
        getattr(ours, name).argtypes = [ctypes.c_double] * (2 if name == "our_next" else 1)
    draw = random.Random(5)
    for _ in range(4000):
        x = draw.choice([draw.uniform(-700, 700), draw.uniform(-1, 1), draw.gauss(0, 1e-6)])
        assert abs(ours.our_exp(x) - math.exp(x)) <= 2 * math.ulp(math.exp(x))
        y = math.exp(x) * draw.uniform(0.5, 2)
        assert abs(ours.our_log(y) - math.log(y)) <= 2 * math.ulp(math.log(y))
        z = draw.choice([-draw.random(), draw.uniform(-1e-9, 1e-9), y])
        if z > -1:
            assert abs(ours.our_log1p(z) - math.log1p(z)) <= 3 * math.ulp(math.log1p(z))
        assert ours.our_next(x, y) == math.nextafter(x, y)
    assert ours.our_log(0.0) == -math.inf and math.isnan(ours.our_log(-1.0)) and ours.our_log(math.inf) == math.inf
    assert ours.our_log(5e-324) == pytest.approx(math.log(5e-324), rel=1e-15)
    assert ours.our_exp(1000.0) == math.inf and ours.our_exp(-1000.0) == 0 and ours.our_exp(-745.0) == 5e-324
    assert ours.our_next(0.0, -1.0) == -5e-324 and ours.our_next(1.0, 1.0) == 1.0
