"""P systems on GPUs: the kernels of the CPU, compiled for a device, and what an artifact says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from echoc.compiler.targets.cpu.build import Progress
from echoc.compiler.targets.cpu.rewriting.population import Generated
from echoc.compiler.targets.gpu import cpp
from echoc.compiler.targets.gpu.levels import Level
from echoc.errors import CompileError

THREADS = 64  # of a block: few, so that the threads of a grid are on all multiprocessors
STACK = {"cuda": 512 << 10, "rocm": 64 << 10}  # the most bytes of local memory that a thread may have


@dataclass(frozen=True)
class Code:
    """Entries of the manifest and members of the artifact."""

    target: Mapping[str, Any]
    kernels: Mapping[str, Any]
    members: Mapping[str, bytes]
    tools: Mapping[str, str]


def population_code(generated: Generated, level: Level, report: Progress) -> Code:
    """The code of a population (kernels/gpu/population.h) for one level.

    Raises: CompileError when a compiler is missing or fails, or the kernel needs more than the architecture has.
    """
    source = '#include "kernels/gpu/population.h"\n' + generated.sources[generated.entry]
    return code(generated.entry, source, [generated.entry, f"{generated.entry}_abi"], level, report)


def code(name: str, source: str, entries: list[str], level: Level, report: Progress, threads: int = THREADS) -> Code:
    """One source with kernels that are launched in blocks of `threads` (ECHOC_THREADS in the source)."""
    report("compile kernels", 0, 1)
    built = cpp.build_cpp(source, entries, level, threads=threads, defines={"ECHOC_THREADS": threads}, optimize="-O2")
    most = STACK[level.device.vendor]
    for entry, kernel in built.kernels.items():
        if kernel.stack_bytes > most:
            raise CompileError(
                f"kernel {entry} needs {kernel.stack_bytes} bytes of local memory a thread; {level.name} has {most}"
            )
    report("compile kernels", 1, 1)
    image = f"kernels/{name}.{level.suffix}"
    binaries = {
        entry: {"member": image, "entry": entry, "extra_pointers": 0, **facts, "shared_bytes": 0,
                "static_shared_bytes": facts["shared_bytes"]}
        for entry, facts in built.facts().items()
    }  # fmt: skip
    return Code(
        target={"device": level.device.vendor, "level": level.name},
        kernels={"binaries": binaries, "sources": {name: f"kernels/{name}.cpp"}},
        members={image: built.image, f"kernels/{name}.cpp": source.encode()},
        tools={"compiler": cpp.versions(level.device.vendor)},
    )
