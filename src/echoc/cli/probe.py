"""Facts about the machine for `echoc doctor`: the CPU, and C++ compilers tried on a real source."""

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The features that kernels choose between, in the names of /proc/cpuinfo.
KERNEL_FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8",
)  # fmt: skip

# What a CPU must have for each level, in the names of /proc/cpuinfo (psABI levels and gcc's -march documentation).
_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_ZEN4 = _V4 | {"avx512_vnni", "avx512_bf16", "avx512vbmi", "avx512ifma"}
LEVELS: dict[str, frozenset[str]] = {
    "native": _V3,
    "x86-64-v3": _V3,
    "x86-64-v4": _V4,
    "znver4": _ZEN4,
    "sapphirerapids": _ZEN4 | {"avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"},
}

# A shared library as generated kernels are: C++20, vector flags, one C entry point.
_TEST_SOURCE = """
#include <cstdint>
#include <span>
extern "C" std::int64_t echoc_probe(const std::int32_t* values, std::int64_t count) {
  std::int64_t sum = 0;
  for (std::int32_t value : std::span(values, static_cast<std::size_t>(count))) sum += std::int64_t{value} * value;
  return sum;
}
"""
_TEST_FLAGS = ("-std=c++20", "-O3", "-march=native", "-shared", "-fPIC")
_TIMEOUT_SECONDS = 180  # ziglang builds its own runtime library at first use


@dataclass(frozen=True)
class Compiler:
    """One C++ compiler, what came of building, loading and calling a small shared library, and the CPU levels it knows.

    `seconds` is what the test took. `levels` are those of LEVELS that its -march takes.
    """

    name: str
    command: tuple[str, ...]
    version: str | None
    works: bool
    seconds: float
    error: str | None
    levels: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON-able data."""
        return asdict(self)


def cpu_facts() -> dict[str, Any]:
    """Model name, architecture, usable cores and feature flags of the CPU."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features") and not flags:
            flags.update(value.split())
    return {
        "model": model,
        "architecture": platform.machine(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "kernel_features": [name for name in KERNEL_FEATURES if name in flags],
        "features": sorted(flags),
    }


def probe_compilers() -> list[Compiler]:
    """Try g++, clang++ and the ziglang package, in the order in which the compiler prefers them."""
    commands: list[tuple[str, tuple[str, ...] | None]] = [(name, _on_path(name)) for name in ("g++", "clang++")]
    wanted = os.environ.get("CXX")
    if wanted:
        commands.insert(0, ("$CXX", tuple(wanted.split())))
    has_zig = importlib.util.find_spec("ziglang") is not None
    commands.append(("ziglang", (sys.executable, "-m", "ziglang", "c++") if has_zig else None))
    return [_try_compiler(name, command) for name, command in commands]


def _on_path(name: str) -> tuple[str, ...] | None:
    found = shutil.which(name)
    return (found,) if found else None


def _try_compiler(name: str, command: tuple[str, ...] | None) -> Compiler:
    if command is None:
        return Compiler(name, (), None, False, 0.0, "not found")
    try:
        answer = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Compiler(name, command, None, False, 0.0, str(error))
    version = answer.stdout.strip().splitlines()[0] if answer.stdout.strip() else "unknown version"
    start = time.perf_counter()
    error_text = _build_and_call(command)
    seconds = time.perf_counter() - start
    levels = () if error_text else tuple(level for level in LEVELS if _knows(command, level))
    return Compiler(name, command, version, error_text is None, seconds, error_text, levels)


def _knows(command: tuple[str, ...], level: str) -> bool:
    asked = [*command, f"-march={level}", "-E", "-x", "c++", os.devnull]
    try:
        return subprocess.run(asked, capture_output=True, timeout=_TIMEOUT_SECONDS).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _build_and_call(command: tuple[str, ...]) -> str | None:
    """Build the test library, load it, call it; what went wrong, or None."""
    with tempfile.TemporaryDirectory(prefix="echoc-doctor-") as folder:
        source, library = Path(folder, "probe.cpp"), Path(folder, "probe.so")
        source.write_text(_TEST_SOURCE, encoding="utf-8")
        try:
            built = subprocess.run(
                [*command, *_TEST_FLAGS, "-o", str(library), str(source)],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        if built.returncode != 0:
            lines = built.stderr.strip().splitlines()
            return lines[0] if lines else f"exit code {built.returncode}"
        try:
            function = ctypes.CDLL(str(library)).echoc_probe
        except (OSError, AttributeError) as error:
            return str(error)
        function.argtypes, function.restype = (ctypes.POINTER(ctypes.c_int32), ctypes.c_int64), ctypes.c_int64
        total = function((ctypes.c_int32 * 4)(1, 2, 3, 4), 4)
        return None if total == 30 else f"the test library returned {total}, 30 was wanted"
