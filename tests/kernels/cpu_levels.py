"""Building small C++ libraries against kernels/cpu for the tests beside this file."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADERS = ROOT / "kernels" / "cpu"
FLAGS = ("-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fvisibility=hidden", "-shared")

# The CPU flags (as Linux names them) that a level's code may use; "x86-64" is the plain C++ path.
_V4 = frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"})
_NEEDS = {
    "x86-64": frozenset(),
    "x86-64-v3": frozenset({"avx2", "fma", "f16c", "bmi2"}),
    "x86-64-v4": _V4,
    "cooperlake": _V4 | {"avx512_vnni", "avx512_bf16"},  # bf16 dot products without tiles
}


def cpu_flags() -> frozenset[str]:
    """The feature flags of this machine's first CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def levels(*wanted: str) -> list[str]:
    """Feature levels whose code this machine can run, of those `wanted` (all but cooperlake when none is named).

    "native" is always among them, so the list is never empty.
    """
    flags = cpu_flags()
    named = [level for level, needs in _NEEDS.items() if needs and needs <= flags]
    if "asimd" not in flags:
        named.insert(0, "x86-64")
    return [level for level in [*named, "native"] if level in (wanted or set(_NEEDS) - {"cooperlake"} | {"native"})]


def compiler() -> str:
    """The C++ compiler of this machine; its absence fails the test that asked."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    assert found, "no C++ compiler found: install g++ or clang++"
    return found


def build(source: str, level: str, folder: Path, extra: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Compile `source` for `level` into `folder` and load it."""
    name = hashlib.sha256(f"{source}{level}{extra}".encode()).hexdigest()[:12]
    code, library = folder / f"{name}.cpp", folder / f"{name}.so"
    code.write_text(source)
    command = [compiler(), *FLAGS, f"-march={level}", "-Wall", "-Wextra", "-Werror", f"-iquote{HEADERS}", *extra]
    done = subprocess.run([*command, str(code), "-o", str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))
