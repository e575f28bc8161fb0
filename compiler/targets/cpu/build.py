"""The build step: generated and hand-written C++ to one shared library, by the system's compiler, through a cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from echoc.errors import CompileError

KERNELS = Path(__file__).resolve().parents[3] / "kernels"
FLAGS = ("-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fvisibility=hidden", "-pipe")
TILES = ("tiles_float.cpp", "tiles_int.cpp")
BATCH = 8
OPTIMIZE = {  # by family, else -O3: tables steer populations; runs come out alike on every device
    "population": ("-O2", "-ffp-contract=off"),
    "gillespie": ("-O3", "-ffp-contract=off"),
    "dcba": ("-O3", "-ffp-contract=off"),
}
NEWER_LEVELS = {
    "znver4": ("-march=znver3", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512cd", "-mavx512bf16",
               "-mavx512vnni", "-mavx512vbmi", "-mavx512vbmi2", "-mavx512bitalg", "-mavx512vpopcntdq", "-mavx512ifma"),
    "graniterapids": ("-march=sapphirerapids",),
}  # fmt: skip
MACROS = {
    "__AVX2__": "avx2", "__FMA__": "fma", "__F16C__": "f16c", "__BMI2__": "bmi2", "__AVX512F__": "avx512f",
    "__AVX512BW__": "avx512bw", "__AVX512VL__": "avx512vl", "__AVX512DQ__": "avx512dq",
    "__AVX512VNNI__": "avx512_vnni", "__AVX512BF16__": "avx512_bf16", "__AVX512FP16__": "avx512_fp16",
    "__AVXVNNI__": "avx_vnni", "__AMX_TILE__": "amx_tile", "__AMX_INT8__": "amx_int8", "__AMX_BF16__": "amx_bf16",
}  # fmt: skip
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the command that starts it and the first line of its version."""

    command: tuple[str, ...]
    version: str


@cache
def find_compiler() -> Compiler:
    """$CXX where it is set, else the first of g++, clang++ and ziglang's c++ that runs; or CompileError."""
    named = tuple(os.environ.get("CXX", "").split())
    candidates: list[tuple[str, ...]] = (
        [named] if named else [(name,) for name in ("g++", "clang++", "c++") if shutil.which(name)]
    )
    if not named and importlib.util.find_spec("ziglang") is not None:
        candidates.append((sys.executable, "-m", "ziglang", "c++"))
    for command in candidates:
        try:
            done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return Compiler(command, (done.stdout.splitlines() or ["unknown"])[0])
    if named:
        raise CompileError(
            f"CXX names {' '.join(named)!r}, which does not answer to --version; name a C++ compiler or unset it"
        )
    tried = ", ".join(" ".join(c) for c in candidates) or "g++, clang++, c++, ziglang"
    raise CompileError(
        f"no C++ compiler was found (tried {tried}). Install one: `apt install g++`, `dnf install gcc-c++`, "
        "`xcode-select --install`, or `pip install ziglang`; or point CXX at one."
    )


@cache
def level_flags(level: str) -> tuple[str, ...]:
    """The compiler's flags for a CPU level; levels newer than the compiler are spelled as features of an older one."""
    flags = (f"-march={level}",)
    if level in NEWER_LEVELS and not _accepts(flags):
        return NEWER_LEVELS[level]
    return flags


def _accepts(flags: tuple[str, ...]) -> bool:
    command = [*find_compiler().command, *flags, "-E", "-x", "c++", os.devnull, "-o", os.devnull]
    return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0


@cache
def target_features(level: str) -> tuple[str, ...]:
    """The CPU features that code for a level may use, by the compiler's own macros, in /proc/cpuinfo's names."""
    compiler = find_compiler()
    command = [*compiler.command, *level_flags(level), "-dM", "-E", "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise CompileError(
            f"the compiler {compiler.version} does not know the CPU level {level!r}: {done.stderr.strip()[:300]}\n"
            "wanted `native` or a -march name such as x86-64-v3, x86-64-v4, znver4, sapphirerapids"
        )
    defined = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("#define ")}
    return tuple(name for macro, name in MACROS.items() if macro in defined)


def cache_folder() -> Path:
    """Where compiled kernels are kept. Raises CompileError when nothing can be written there."""
    base = os.environ.get("ECHOC_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "echoc"
    )
    folder = Path(base) / "build"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "no permission to write"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise CompileError(f"the build cache {folder} cannot be used: {reason}; point ECHOC_CACHE at another folder")
    return folder


_INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)


def headers_digest(source: str) -> str:
    """A digest of every hand-written file that a source includes, directly or through others."""
    digest = hashlib.sha256()
    seen: set[Path] = set()
    texts = [source]
    while texts:
        for name in _INCLUDE.findall(texts.pop()):
            path = KERNELS / "cpu" / name.removeprefix("kernels/cpu/")
            if path not in seen and path.is_file():
                seen.add(path)
                texts.append(path.read_text())
    for path in sorted(seen):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [x for x in done.stderr.splitlines() if "error" in x] or done.stderr.splitlines()
        raise CompileError(
            f"the C++ compiler failed on {what} (exit code {done.returncode}):\n  " + "\n  ".join(lines[:8])
            + f"\ncommand: {' '.join(command)}"
        )  # fmt: skip


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _object(name: str, source: str, level: str, folder: Path) -> Path:
    """The object file of one source, from the cache or the compiler. Written beside and renamed."""
    compiler = find_compiler()
    features = ",".join(target_features(level))
    flags = [*OPTIMIZE.get(name.partition("_")[0], ("-O3",)), *FLAGS]
    path = folder / f"{_key(source, headers_digest(source), compiler.version, *flags, level, features)}.o"
    if path.exists():
        os.utime(path)
        return path
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file = Path(scratch) / f"{name}.cpp"
        file.write_text(source)
        out = Path(scratch) / "out.o"
        include = [f"-I{KERNELS.parent}", "-iquote", str(KERNELS / "cpu")]
        _run([*compiler.command, *flags, *level_flags(level), *include, "-c", str(file), "-o", str(out)], f"{name}.cpp")
        out.replace(path)
    return path


def batches(sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Kernels joined into translation units of one family: reading the headers costs more than compiling a kernel."""
    families: dict[str, list[str]] = {}
    for name in sorted(sources):
        families.setdefault(name.rpartition("_")[0], []).append(name)
    for family, names in families.items():
        for i in range(0, len(names), BATCH):
            part = names[i : i + BATCH]
            yield f"{family}_{i // BATCH}", "\n".join(sources[n] for n in part)


def build_library(
    sources: Mapping[str, str], level: str, progress: Progress | None = None, tiles: bool = True
) -> bytes:
    """The shared library of the given kernels and the tiles they call.

    Args:
        sources: kernel name -> C++ source.
        level: a -march name.
        progress: told (stage, done, total).
        tiles: whether the kernels multiply matrices; those of P systems do not.
    Raises: CompileError when there is no compiler, it fails, or the cache cannot be written.
    """
    folder = cache_folder()
    jobs = dict(batches(sources))
    for tile in TILES if tiles else ():
        jobs[tile.removesuffix(".cpp")] = (KERNELS / "cpu" / tile).read_text()
    try:
        return _link(_objects(jobs, level, folder, progress), folder)
    except OSError as error:
        raise CompileError(f"building in {folder} failed: {error}; ECHOC_CACHE may name another folder") from error


def _objects(jobs: Mapping[str, str], level: str, folder: Path, progress: Progress | None) -> dict[str, Path]:
    """The object files of all sources, by name."""
    done = 0
    objects: dict[str, Path] = {}
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        # the tiles take longest: first in line
        order = sorted(jobs, key=lambda n: (not n.startswith("tiles"), n))
        futures = {name: pool.submit(_object, name, jobs[name], level, folder) for name in order}
        try:
            for name, future in futures.items():
                objects[name] = future.result()
                done += 1
                if progress:
                    progress("compile kernels", done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return objects


def _link(objects: Mapping[str, Path], folder: Path) -> bytes:
    """The shared library of object files, from the cache or the linker."""
    key = _key(*(str(objects[n]) for n in sorted(objects)), "link")
    library = folder / f"{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            out = Path(scratch) / "out.so"
            command = [*find_compiler().command, "-shared", "-o", str(out), *(str(objects[n]) for n in sorted(objects))]
            _run(command, "linking the kernels")
            out.replace(library)
    return library.read_bytes()
