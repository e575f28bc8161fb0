"""C++ for GPUs: what is built, what is said of it, and what is refused."""

from __future__ import annotations

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
