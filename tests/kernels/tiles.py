"""Compiles the tiles per feature level and calls them through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "cpu"
FLAGS = ["-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fvisibility=hidden"]

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Level:
    """A feature level: the compiler flags that choose it, the CPU flags it needs, the path it must select."""

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]
    path: str


V4 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"})
DOT = V4 | {"avx512_bf16", "avx512_vnni"}
LEVELS = [
    Level("x86-64", ("-march=x86-64",), frozenset(), "portable"),
    Level("x86-64-v3", ("-march=x86-64-v3",), frozenset({"avx2", "fma", "f16c"}), "avx2"),
    Level("x86-64-v4", ("-march=x86-64-v4",), V4, "avx512"),
    Level("zen4", ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"), DOT, "avx512-bf16-vnni"),
    Level("amx", ("-march=sapphirerapids",), DOT | {"amx_tile", "amx_bf16", "amx_int8", "avx512_fp16"}, "amx"),
]


def cpu_flags() -> frozenset[str]:
    """The feature flags the kernel reports for this CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":")[1].split())
    return frozenset()


def runnable_levels() -> list[Level]:
    """The levels this CPU has every feature of."""
    return [level for level in LEVELS if level.needs <= cpu_flags()]


@dataclass(frozen=True)
class Format:
    """A weight format and the relative error its arithmetic may add to that of the stored weights."""

    bits: int
    group: int
    tolerance: float

    def __str__(self) -> str:
        name = {32: "f32", 16: "bf16", 12: "bf16c", 8: "i8" if self.group else "f8", 4: "i4"}[self.bits]
        return f"{name}g{self.group}" if self.group else name


# int8 activations of a group are off by up to 1/254 of its largest value: about 0.7% of a dot product's deviation.
FORMATS = [Format(32, 0, 2e-6), Format(16, 0, 4e-3), Format(12, 0, 4e-3), Format(8, 0, 4e-3)] + [
    Format(bits, group, 0.012) for bits in (8, 4) for group in (32, 64, 128)
]


class Problem(ctypes.Structure):
    """The C struct of the same name in tiles_driver.cpp."""

    _fields_ = [
        ("T", ctypes.c_int64),
        ("N", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("nthreads", ctypes.c_int32),
        ("deterministic", ctypes.c_int32),
        ("x", ctypes.c_void_p),
        ("w", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("writes", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("rows_per_x", ctypes.c_int64),
        ("experts", ctypes.c_int64),
    ]


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """A uint8 array that starts at a multiple of 64 bytes, as mapped weights do."""
    raw = np.full(nbytes + 64, 0xA5, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


class Tiles:
    """The tiles compiled for one level."""

    def __init__(self, library: Path) -> None:
        self.lib = ctypes.CDLL(str(library))
        self.lib.tiles_level.restype = ctypes.c_char_p
        self.lib.tiles_packed_bytes.restype = ctypes.c_int64
        self.path: str = self.lib.tiles_level().decode()

    def pack(self, fmt: Format, weights: F32) -> NDArray[np.uint8]:
        """Packs f32 [interleave, N, K]."""
        weights = np.ascontiguousarray(weights, np.float32)
        sizes = [ctypes.c_int64(n) for n in weights.shape]
        out = aligned(self.lib.tiles_packed_bytes(fmt.bits, fmt.group, *sizes))
        self.lib.tiles_pack(fmt.bits, fmt.group, *sizes, ctypes.c_void_p(weights.ctypes.data), pointer(out))
        return out

    def unpack(self, fmt: Format, packed: NDArray[np.uint8], shape: tuple[int, int, int]) -> F32:
        """The stored values as f32 [interleave, N, K]."""
        out = np.full(shape, np.nan, np.float32)
        sizes = [ctypes.c_int64(n) for n in shape]
        self.lib.tiles_unpack(fmt.bits, fmt.group, *sizes, pointer(packed), pointer(out))
        return out

    def unpack_row(self, fmt: Format, packed: NDArray[np.uint8], interleave: int, which: int, n: int, K: int) -> F32:
        """Row n of weight `which` as the kernels' embedding lookup reads it."""
        out = np.full(K, np.nan, np.float32)
        sizes = [ctypes.c_int64(v) for v in (interleave, which, n, K)]
        assert self.lib.tiles_unpack_row(fmt.bits, fmt.group, *sizes, pointer(packed), pointer(out)) == 0
        return out

    def gemm(
        self,
        fmt: Format,
        x: F32,
        packed: NDArray[np.uint8],
        N: int,
        *,
        interleave: int = 1,
        nthreads: int = 1,
        deterministic: bool = False,
        ids: NDArray[np.int32] | None = None,
        rows_per_x: int = 1,
        experts: int = 1,
    ) -> tuple[F32, NDArray[np.uint8]]:
        """Returns the product [interleave, rows, N], poisoned where nothing was written, and the write counts."""
        x = np.ascontiguousarray(x, np.float32)
        rows = len(x) if ids is None else len(ids)
        out = np.full((interleave, rows, N), np.nan, np.float32)
        writes = np.zeros((rows, N), np.uint8)
        problem = Problem(
            *(len(x), N, x.shape[1], nthreads, int(deterministic)),
            *(x.ctypes.data, packed.ctypes.data, out.ctypes.data, writes.ctypes.data),
            *(None if ids is None else ids.ctypes.data, rows, rows_per_x, experts),
        )
        assert self.lib.tiles_gemm(fmt.bits, fmt.group, interleave, ctypes.byref(problem)) == 0
        return out, writes


def pointer(array: NDArray[np.float32] | NDArray[np.uint8]) -> ctypes.c_void_p:
    """The address of an array's data."""
    return ctypes.c_void_p(array.ctypes.data)


def run(command: list[str]) -> None:
    """Runs a compiler; its complaints become the test's."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@cache
def build(level: Level) -> Tiles:
    """Compiles the driver and the tiles for a level, or reuses an earlier build of the same sources."""
    sources = [Path(__file__).with_name("tiles_driver.cpp"), *sorted(KERNELS.glob("tiles_*.cpp"))]
    digest = hashlib.sha256(" ".join([*FLAGS, *level.flags]).encode())
    for path in [*sources, *sorted(KERNELS.glob("*.h"))]:
        digest.update(path.read_bytes())
    cache_dir = Path(tempfile.gettempdir()) / f"echoc-test-tiles-{os.getuid()}"
    cache_dir.mkdir(exist_ok=True)
    library = cache_dir / f"{level.name}-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        compiler = [*os.environ.get("CXX", "g++").split(), *FLAGS, *level.flags, f"-I{ROOT}"]
        with tempfile.TemporaryDirectory(dir=cache_dir) as folder:
            objects = [Path(folder) / f"{path.stem}.o" for path in sources]
            for path, out in zip(sources, objects, strict=True):
                # The driver is many instances of little: optimised lightly, it builds in half the time.
                how = ["-O1"] if path.stem == "tiles_driver" else ["-O3"]
                run([*compiler, *how, "-c", str(path), "-o", str(out)])
            fresh = Path(folder) / "tiles.so"
            run([*compiler, "-shared", "-pthread", *map(str, objects), "-o", str(fresh)])
            fresh.rename(library)
    return Tiles(library)
