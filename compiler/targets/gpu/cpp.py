"""C++ to machine code of a GPU, for kernels that share their source with the CPU: clang of the pip package ziglang
makes NVIDIA's PTX or AMD's assembly, the assembler of the pip package triton or clang's own makes the image.

No header and no library of either vendor is used: `kernels/gpu/device.h` has the threads and `kernels/gpu/include` what
kernels need of the standard library.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from echoc.compiler.targets.cpu.build import KERNELS, cache_folder
from echoc.compiler.targets.gpu import code_object
from echoc.compiler.targets.gpu.levels import Level
from echoc.errors import CompileError

ROOT = KERNELS.parent
FLAGS = (
    "-x", "c++", "-std=c++20", "-nostdinc", "-nogpulib", "-ffreestanding", "-fno-exceptions", "-fno-rtti",
    "-fconvergent-functions", "-fno-threadsafe-statics",
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror=return-type",
    "-DECHOC_DEVICE=1",
)  # fmt: skip
REGISTER_FILE = {"cuda": 65_536}  # 32-bit registers of a multiprocessor, which one block may take
VERSION = "1"  # of what is kept in the cache
_INCLUDE = re.compile(r'^\s*#include ["<]([^">]+)[">]', re.MULTILINE)


@dataclass(frozen=True)
class CppKernel:
    """What a launch of a kernel must know, and what it needs: registers of a thread, bytes of shared memory that it
    declares, bytes of local memory (stack) a thread, spills in bytes (ROCm: registers). `calls`: the size of its stack
    is not known ahead, as functions call each other by pointer or recursively."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    spills: int
    calls: bool = False


@dataclass(frozen=True)
class CppImage:
    """A cubin or hsaco and its kernels by name."""

    image: bytes
    kernels: Mapping[str, CppKernel]
    threads: int

    def facts(self) -> dict[str, dict[str, Any]]:
        """Of every kernel, by name, as a manifest holds them."""
        return {name: {"threads": self.threads, **asdict(kernel)} for name, kernel in self.kernels.items()}


def clang() -> tuple[Path, Path]:
    """ziglang's executable and clang's own headers. Raises CompileError where the package is missing."""
    spec = importlib.util.find_spec("ziglang")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        found = Path(folder) / "zig"
        if found.is_file():
            return found, Path(folder) / "lib" / "include"
    raise CompileError(
        "membranes on GPUs are compiled by the clang in ziglang, which is not installed: pip install 'echoc[gpu]'"
    )


def assembler(level: Level) -> Path:
    """NVIDIA's assembler in the package triton. Raises CompileError where it is missing."""
    spec = importlib.util.find_spec("triton")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        name = "ptxas-blackwell" if int(re.sub(r"\D", "", level.name)) >= 100 else "ptxas"
        for found in (Path(folder) / "backends" / "nvidia" / "bin" / n for n in (name, "ptxas")):
            if found.is_file():
                return found
    raise CompileError(
        f"machine code for {level.name} is made by ptxas in the package triton, which is not installed: "
        "pip install 'echoc[gpu]'"
    )


@cache
def versions(vendor: str) -> str:
    """The compilers' versions, as they say."""
    zig, _ = clang()
    said = _run([str(zig), "clang", "--version"], "asking for clang's version", vendor).splitlines()[0]
    if vendor != "cuda":
        return said
    return f"{said}; triton {importlib.metadata.version('triton')}"


def build_cpp(
    source: str,
    entries: Sequence[str],
    level: Level,
    *,
    threads: int = 256,
    defines: Mapping[str, str | int] | None = None,
    optimize: str = "-O3",
    blocks: int = 0,
) -> CppImage:
    """Machine code of the kernels in a C++ source, from the cache or the compilers.

    Args:
        source: may include "kernels/..." and the headers in `kernels/gpu/include`.
        entries: the names of its kernels, declared with ECHOC_KERNEL(threads) of `kernels/gpu/device.h`.
        threads: of a block.
        defines: macros.
        optimize: -O2 for long code that is steered by tables.
        blocks: that a multiprocessor of CUDA's must hold at once: few leave a thread more registers. 0: its assembler
            chooses.
    Raises: CompileError when a compiler is missing or rejects the source, a kernel is not in it, or one needs more
        registers or shared memory than a block of the architecture has.
    """
    bounds = f".maxntid {threads}\n" + (f".minnctapersm {blocks}\n" if blocks else "")
    macros = [optimize, *(f"-D{name}={value}" for name, value in sorted((defines or {}).items()))]
    folder = cache_folder()
    tools = versions(level.device.vendor)
    parts = (source, _digest(source), level.name, tools, *FLAGS, *macros, bounds, VERSION, *entries)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    path, facts = folder / f"{key}.{level.suffix}", folder / f"{key}.cpp.json"
    try:
        if not (path.exists() and facts.exists()):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                build = _cuda if level.device.vendor == "cuda" else _rocm
                found = build(source, entries, level, Path(scratch), macros, threads, bounds)
                written = Path(scratch) / "facts.json"
                written.write_text(json.dumps({name: asdict(kernel) for name, kernel in found.items()}))
                (Path(scratch) / "image").replace(path)
                written.replace(facts)
        kernels = {name: CppKernel(**fields) for name, fields in json.loads(facts.read_text()).items()}
        image = CppImage(path.read_bytes(), kernels, threads)
    except OSError as error:
        raise CompileError(f"building in {folder} failed: {error}; ECHOC_CACHE may name another folder") from error
    for name, kernel in kernels.items():
        _check(name, kernel, level, threads)
    return image


def _check(name: str, kernel: CppKernel, level: Level, threads: int) -> None:
    registers = min(level.registers, REGISTER_FILE.get(level.device.vendor, level.registers * threads) // threads)
    for what, found, most in (
        ("registers a thread", kernel.registers, registers),
        ("bytes of shared memory", kernel.shared_bytes, level.shared_bytes),
    ):
        if found > most:
            raise CompileError(
                f"kernel {name} needs {found} {what}; {level.name} has {most} for blocks of {threads} threads. Compile "
                "it with smaller blocks"
            )


def _front(source: str, folder: Path, level: Level, target: Sequence[str], macros: Sequence[str]) -> str:
    """The assembly of a source."""
    zig, headers = clang()
    file = folder / "kernel.cpp"
    file.write_text(source)
    include = ["-isystem", str(KERNELS / "gpu" / "include"), "-isystem", str(headers), f"-I{ROOT}",
               "-iquote", str(KERNELS / "cpu")]  # fmt: skip
    out = folder / "kernel.s"
    _run([str(zig), "clang", *FLAGS, *target, *macros, *include, "-S", str(file), "-o", str(out)], "clang", level.name)
    return out.read_text()


def _cuda(
    source: str, entries: Sequence[str], level: Level, folder: Path, macros: Sequence[str], threads: int, bounds: str
) -> dict[str, CppKernel]:
    number = re.sub(r"\D", "", level.name)
    target = ["-target", "nvptx64-nvidia-cuda", "-Xclang", "-target-cpu", "-Xclang", f"sm_{number}"]
    ptx = _front(source, folder, level, target, macros)
    for name in entries:  # a kernel in plain C++ cannot say how many threads its blocks have
        found = re.search(rf"\.visible \.entry {name}\([^)]*\)[^\n]*\n", ptx)
        if found is None:
            raise CompileError(f"the source has no kernel {name}; kernels are declared with ECHOC_KERNEL")
        ptx = ptx[: found.end()] + bounds + ptx[found.end() :]
    (folder / "kernel.ptx").write_text(ptx)
    command = [str(assembler(level)), f"-arch={level.name}", "-O3", "-v", str(folder / "kernel.ptx"), "-o"]
    said = _run([*command, str(folder / "image")], "ptxas", level.name)
    kernels = {}
    for name in entries:
        report = re.search(rf"Compiling entry function '{name}'.*?Used (\d+) registers([^\n]*)", said, re.DOTALL)
        if report is None:
            raise CompileError(f"ptxas says nothing of the registers of {name}:\n{said[:2000]}")
        text = report[0]
        shared = re.search(r"(\d+) bytes smem", report[2])
        stack = re.search(r"(\d+) bytes stack frame", text)
        cumulative = re.search(r"(\d+) bytes cumulative stack size", text)
        spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", text))
        size = max(int(found[1]) if found else 0 for found in (stack, cumulative))
        unknown = f"Stack size for entry function '{name}' cannot be statically determined" in said
        kernels[name] = CppKernel(int(report[1]), int(shared[1]) if shared else 0, size, spills, unknown)
    return kernels


def _rocm(
    source: str, entries: Sequence[str], level: Level, folder: Path, macros: Sequence[str], threads: int, bounds: str
) -> dict[str, CppKernel]:
    target = ["-target", "amdgcn-amd-amdhsa", f"-mcpu={level.name}", "-mcode-object-version=5"]
    _front(source, folder, level, target, macros)
    zig, _ = clang()
    command = [str(zig), "clang", *target, "-x", "assembler", "-c", str(folder / "kernel.s"), "-o"]
    _run([*command, str(folder / "kernel.o")], "clang's assembler", level.name)
    link = [str(zig), "ld.lld", "-shared", "--no-undefined", str(folder / "kernel.o"), "-o", str(folder / "image")]
    _run(link, "the linker", level.name)
    described = code_object.kernels((folder / "image").read_bytes())
    kernels = {}
    for name in entries:
        if name not in described:
            raise CompileError(f"the source has no kernel {name}; kernels are declared with ECHOC_KERNEL")
        notes = described[name]
        most = notes[".max_flat_workgroup_size"]
        if most != threads:
            raise CompileError(f"kernel {name} is declared for blocks of {most} threads; wanted {threads}")
        kernels[name] = CppKernel(
            notes[".vgpr_count"], notes[".group_segment_fixed_size"], notes[".private_segment_fixed_size"],
            notes[".vgpr_spill_count"] + notes[".sgpr_spill_count"], bool(notes.get(".uses_dynamic_stack")),
        )  # fmt: skip
    return kernels


def _run(command: list[str], what: str, level: str) -> str:
    """What a compiler says when it succeeds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompileError(f"{what} for {level} does not start: {error}; install 'echoc[gpu]' again") from error
    if done.returncode:
        said = done.stderr + done.stdout
        lines = [x for x in said.splitlines() if "error" in x] or said.splitlines()
        raise CompileError(
            f"{what} for {level} failed (exit code {done.returncode}):\n  " + "\n  ".join(lines[:8])
            + f"\ncommand: {' '.join(command)}"
        )  # fmt: skip
    return done.stdout + done.stderr


def _digest(source: str) -> str:
    """Of every hand-written file that a source includes, directly or through others."""
    seen: set[Path] = set()
    texts = [source]
    while texts:
        for name in _INCLUDE.findall(texts.pop()):
            for path in (ROOT / name, KERNELS / "cpu" / name, KERNELS / "gpu" / "include" / name):
                if path not in seen and path.is_file():
                    seen.add(path)
                    texts.append(path.read_text())
    digest = hashlib.sha256()
    for path in sorted(seen):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()
