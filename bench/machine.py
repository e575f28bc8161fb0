"""What the report says about the machine and the software it ran with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from echoc.bench.probes import find_compiler

# CPU features that decide which kernels an engine can use; the rest of the flags would bury them.
NOTABLE_FEATURES = [
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "asimdhp",
    "bf16",
    "i8mm",
    "sve",
    "sve2",
]


@dataclass(frozen=True)
class Machine:
    """CPU name, CPUs this process may use, notable features, memory in bytes, kernel, compiler, load average."""

    cpu: str
    cpus: int
    features: tuple[str, ...]
    l3_bytes: int
    memory_bytes: int
    kernel: str
    compiler: str
    load_average: float

    def as_dict(self) -> dict[str, object]:
        """Plain values for the report."""
        return {**asdict(self), "features": list(self.features)}


def describe_machine() -> Machine:
    """Reads /proc and /sys; fields that a system does not tell are empty or 0."""
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    version = subprocess.run([find_compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    return Machine(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        cpus=available_cpus(),
        features=tuple(name for name in NOTABLE_FEATURES if name in flags),
        l3_bytes=_cache_bytes(3),
        memory_bytes=memory_bytes(),
        kernel=f"{platform.system()} {platform.release()}",
        compiler=version.splitlines()[0] if version else "",
        load_average=os.getloadavg()[0],
    )


def available_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe_versions() -> dict[str, str]:
    """Python, numpy and echoc."""
    return {
        "python": sys.version.split()[0],
        "numpy": importlib.metadata.version("numpy"),
        "echoc": echoc_version(),
    }


def echoc_version() -> str:
    """The installed version, or 'source tree' where echoc runs uninstalled."""
    try:
        return importlib.metadata.version("echoc")
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cache_bytes(level: int) -> int:
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if int((index / "level").read_text()) == level:
                size = (index / "size").read_text().strip()
                return int(size.rstrip("KMG")) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1], 1)
        except (OSError, ValueError):
            continue
    return 0
