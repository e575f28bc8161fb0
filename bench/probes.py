"""The machine's own limits, measured: streaming read bandwidth and the peaks of its multiply-add and dot instructions.

`probes.cpp` is compiled for this machine by the system compiler the first time, kept in the user's cache, and called
through ctypes. Rates are sums over threads that ran at the same time.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from echoc.bench.states import MIN_CPU_SHARE, BestKnown, CoreState, Reading, classify
from echoc.errors import EchoError

SOURCE = Path(__file__).with_name("probes.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
COMPUTE_KINDS = ("fma_f32", "dot_bf16", "dot_int8", "amx_bf16", "amx_int8")
PREFETCH_DISTANCES = (0, 1024, 4096)
MIN_READ_BYTES = 1 << 30
TELL_SECONDS = 4.0  # between two words about waiting
SHORT_READ_BYTES = 64 << 20  # about a millisecond, and more than the caches keep


class ProbeError(EchoError):
    """The probes cannot be built or run on this machine."""


@dataclass(frozen=True)
class Rate:
    """One probe: `per_second` (bytes or operations, all threads together) and the least cpu share of a thread, over the
    time since the first one began."""

    per_second: float
    cpu_share: float


def best_rate(rates: Sequence[Rate]) -> float:
    """The best of several runs, of those in which every thread had its core where there are any."""
    undisturbed = [rate.per_second for rate in rates if rate.cpu_share >= MIN_CPU_SHARE]
    return max(undisturbed or [rate.per_second for rate in rates])


@dataclass(frozen=True)
class Limits:
    """Peaks of the machine. Rates are per second; 0 where the machine has no such instruction.

    `read_one`, `read_all`: bytes/s of one thread and of all threads. `fma_f32`, `dot_bf16`, `dot_int8`, `amx_bf16`,
    `amx_int8`: operations/s of all threads, a multiply-add counting two. `fma_f32_one`: the same for one thread.
    """

    threads: int
    read_bytes: int
    read_one: float
    read_all: float
    fma_f32_one: float
    fma_f32: float
    dot_bf16: float
    dot_int8: float
    amx_bf16: float
    amx_int8: float

    def dot_peak(self, weights_dtype: str) -> tuple[str, float]:
        """Name and rate of the fastest instruction that multiplies weights of this dtype."""
        families = {
            "f32": ("fma_f32",),
            "bf16": ("fma_f32", "dot_bf16", "amx_bf16"),
            "int8": ("fma_f32", "dot_bf16", "amx_bf16", "dot_int8", "amx_int8"),
        }
        alike = {"int4": "int8", "fp8": "bf16"}  # widened on the way
        names = families.get(alike.get(weights_dtype, weights_dtype))
        if names is None:
            raise EchoError(f"weights dtype {weights_dtype!r} has no dot peak: wanted f32, bf16, fp8, int8 or int4")
        return max(((name, float(getattr(self, name))) for name in names), key=lambda item: item[1])

    def as_dict(self) -> dict[str, float | int]:
        """The limits as plain numbers for the report."""
        return asdict(self)


def find_compiler() -> str:
    """The C++ compiler to use: $CXX, g++, clang++ or c++."""
    candidates = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    for name in candidates:
        if name and (path := shutil.which(name)):
            return path
    raise ProbeError(
        "no C++ compiler found for the machine probes (looked for $CXX, g++, clang++, c++): "
        "install one, for example `apt-get install g++`"
    )


def cache_folder() -> Path:
    """Where compiled probes are kept: $XDG_CACHE_HOME/echoc or ~/.cache/echoc."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "echoc" / "bench"


def build(folder: Path | None = None) -> Path:
    """Compiles the probes unless the cache holds them already; returns the shared library.

    The key covers source, compiler, its version, flags and the machine's CPU features, so that a cache on a shared
    home folder never serves another machine's code.
    """
    compiler = find_compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [SOURCE.read_bytes(), compiler.encode(), version.encode(), " ".join(FLAGS).encode(), _cpu_flags().encode()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    folder = folder or cache_folder()
    library = folder / f"probes_{digest}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fresh = Path(scratch) / "probes.so"
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(fresh)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ProbeError(f"the machine probes do not compile: {' '.join(command)}\n{done.stderr.strip()}")
        os.replace(fresh, library)
    return library


def _cpu_flags() -> str:
    return _cpu_field("flags", "Features")


def _cpu_field(*names: str) -> str:
    """The first line of /proc/cpuinfo that begins with one of these names; the platform's name where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return sys.platform
    return next((line for line in lines if line.startswith(names)), sys.platform)


class Probes:
    """The compiled probes, bound to a number of threads."""

    def __init__(self, threads: int, folder: Path | None = None) -> None:
        if threads < 1:
            raise ProbeError(f"probes on {threads} threads: wanted at least 1")
        self.threads = threads
        self.library = ctypes.CDLL(str(build(folder)))
        doubles = ctypes.POINTER(ctypes.c_double)
        self.library.echoc_probe_compute.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double, doubles, doubles]
        self.library.echoc_probe_allocate.argtypes = [ctypes.c_size_t]
        self.library.echoc_probe_allocate.restype = ctypes.c_void_p
        self.library.echoc_probe_release.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.library.echoc_probe_read.restype = ctypes.c_ulonglong
        self.library.echoc_probe_read.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            doubles,
            doubles,
        ]
        self.library.echoc_probe_line.restype = None
        self.library.echoc_probe_line.argtypes = [ctypes.c_int, doubles]
        cpu = hashlib.sha256(f"{_cpu_field('model name')}\0{_cpu_flags()}".encode()).hexdigest()[:16]
        self.known = BestKnown((folder or cache_folder()) / f"best_{cpu}_{threads}.json")
        self.fma_one_best = 0.0
        self._short: int | None = None  # memory of the short reads

    def compute(self, kind: str, threads: int, seconds: float) -> Rate:
        """Peak of one instruction (a name of COMPUTE_KINDS) in operations/s; 0 where the machine has none."""
        rates, shares = (ctypes.c_double * threads)(), (ctypes.c_double * threads)()
        absent = self.library.echoc_probe_compute(COMPUTE_KINDS.index(kind), threads, seconds, rates, shares)
        return Rate(0.0, 1.0) if absent else Rate(sum(rates), min(shares))

    def compute_peak(self, kind: str, threads: int, seconds: float = 0.01, repeats: int = 8) -> float:
        """The best of several short runs: a peak is what the machine does when nothing disturbs it."""
        return best_rate([self.compute(kind, threads, seconds) for _ in range(repeats)])

    def core_state(self, seconds: float = 0.001, attempts: int = 3) -> CoreState:
        """A probe of some milliseconds beside a sample: the best figures of a few, one where the cores are free."""
        best = Reading(0.0, 0.0)
        for _ in range(attempts):
            reading = self._reading(seconds)
            self.known.learn(reading, self.threads)
            best = best.better(reading)
            state = classify(best, self.threads, self.known.best)
            if state.state == "free":
                break
        return state

    def _reading(self, seconds: float) -> Reading:
        one = self.compute("fma_f32", 1, seconds / 2)
        if one.cpu_share >= MIN_CPU_SHARE:
            self.fma_one_best = max(self.fma_one_best, one.per_second)
        team = self.compute("fma_f32", self.threads, seconds)
        scaling = team.per_second / (self.fma_one_best or one.per_second)
        read = self.short_read()
        return Reading(scaling, min(team.cpu_share, read.cpu_share), read.per_second, self.line_ns())

    def line_ns(self) -> float:
        """Nanoseconds that a cache line takes one way between neighbours of the team, the slowest pair; 0 where one did
        not get its cores, or for one thread."""
        if self.threads == 1:
            return 0.0
        one = (ctypes.c_double * (self.threads - 1))()
        self.library.echoc_probe_line(self.threads, one)
        return max(one) if min(one) > 0 else 0.0

    def short_read(self) -> Rate:
        """Bytes/s of one pass of all threads over 64 MiB, which are kept for the next time."""
        if self._short is None:
            self._short = self._allocate(SHORT_READ_BYTES)
        return self._read_once(self._short, SHORT_READ_BYTES, self.threads, PREFETCH_DISTANCES[1])

    def _allocate(self, num_bytes: int) -> int:
        memory: int | None = self.library.echoc_probe_allocate(num_bytes)
        if not memory:
            raise ProbeError(f"no memory for a read probe of {num_bytes} bytes: free some or pass a smaller read size")
        return memory

    def read_bandwidth(self, threads: int, num_bytes: int, passes: int = 4) -> float:
        """Bytes/s of the best of `passes` forward passes over `num_bytes`; the slowest thread ends a pass."""
        memory = self._allocate(num_bytes)
        try:
            return best_rate(
                [
                    self._read_once(memory, num_bytes, threads, ahead)
                    for ahead in PREFETCH_DISTANCES
                    for _ in range(passes)
                ]
            )
        finally:
            self.library.echoc_probe_release(memory, num_bytes)

    def _read_once(self, memory: int, num_bytes: int, threads: int, ahead: int) -> Rate:
        rates, shares = (ctypes.c_double * threads)(), (ctypes.c_double * threads)()
        self.library.echoc_probe_read(memory, num_bytes, threads, ahead, rates, shares)
        return Rate(float(min(rates)) * threads, min(shares))

    def limits(self, read_bytes: int = MIN_READ_BYTES) -> Limits:
        """All peaks. `read_bytes`: size of the buffer streamed, best chosen as large as the weights of a model."""
        self.compute("fma_f32", self.threads, 0.05)  # lets the clocks rise
        one = self.compute_peak("fma_f32", 1)
        self.fma_one_best = max(self.fma_one_best, one)
        peaks = {kind: self.compute_peak(kind, self.threads) for kind in COMPUTE_KINDS}
        return Limits(
            threads=self.threads,
            read_bytes=read_bytes,
            read_one=self.read_bandwidth(1, read_bytes),
            read_all=self.read_bandwidth(self.threads, read_bytes),
            fma_f32_one=one,
            **peaks,
        )

    def wait_until_free(
        self, patience: float, wait: float = 0.0, on_wait: Callable[[CoreState], None] = lambda _state: None
    ) -> CoreState:
        """Probes up to `patience` seconds while others have the cores, and up to `wait` seconds while the cores are not
        free in any other way; `on_wait` is told every few seconds. Returns the last state seen."""
        begun = time.monotonic()
        told = begun
        while True:
            state, now = self.core_state(), time.monotonic()
            limit = max(patience, wait) if state.state == "contended" else wait
            if state.state == "free" or now - begun >= limit:
                return state
            if now - told >= TELL_SECONDS:
                on_wait(state)
                told = now
            time.sleep(0.05 if state.state == "contended" else 0.2)
