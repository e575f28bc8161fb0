"""What a kernel takes of a multiprocessor, as its object says, against what one block may have.

Sources: CUDA C++ Programming Guide, "Compute Capabilities"; LLVM's "User Guide for AMDGPU Backend", "Memory Spaces" and
"Register allocation granularity"; AMD's instruction set references for CDNA 2, CDNA 3 and RDNA 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from echoc.compiler.targets.gpu.levels import Level
from echoc.errors import CompileError

MOST_THREADS = 1024


class Needs(Protocol):
    """A kernel's needs. `registers` of a thread (vector registers on ROCm), `scalar_registers` and `wavefront` of ROCm
    (0: the object does not say), bytes of shared memory of a block."""

    @property
    def threads(self) -> int: ...
    @property
    def registers(self) -> int: ...
    @property
    def scalar_registers(self) -> int: ...
    @property
    def wavefront(self) -> int: ...
    @property
    def shared_bytes(self) -> int: ...


@dataclass(frozen=True)
class RegisterFile:
    """`size` vector registers a lane in each of `parts` that the waves of a block are spread over; a wave takes them in
    multiples of `granule`."""

    size: int
    parts: int
    granule: int


FILES = {
    "cuda": RegisterFile(512, 4, 8),  # 65,536 for 4 times 32 lanes
    "gfx90a": RegisterFile(512, 4, 8),
    "gfx942": RegisterFile(512, 4, 8),
    "gfx1100": RegisterFile(1536, 4, 24),  # blocks have both units of a work-group processor, LLVM's default
}
SCALARS = {"gfx90a": 108, "gfx942": 108, "gfx1100": 108}  # with VCC


def check(name: str, needs: Needs, level: Level) -> None:
    """Raises CompileError where no multiprocessor of the level could run a block of the kernel."""
    file = FILES[level.name if level.device.vendor == "rocm" else "cuda"]
    waves = -(-needs.threads // level.device.warp)
    taken = -(-needs.registers // file.granule) * file.granule * -(-waves // file.parts)
    for what, found, most in (
        ("threads", needs.threads, MOST_THREADS),
        ("registers a thread", needs.registers, level.registers),
        (f"registers a lane for its {waves} waves", taken, file.size),
        ("scalar registers", needs.scalar_registers, SCALARS.get(level.name, 0)),
        ("bytes of shared memory", needs.shared_bytes, level.shared_bytes),
    ):
        if found > most:
            raise CompileError(
                f"kernel {name} needs {found} {what}; a block of {level.name} has at most {most}. This is an error of "
                "the compiler: report it with the kernel's source"
            )
    if needs.wavefront not in (0, level.device.warp):
        raise CompileError(
            f"kernel {name} was made for wavefronts of {needs.wavefront} lanes; those of {level.name} here have "
            f"{level.device.warp}. This is an error of the compiler: report it with the kernel's source"
        )
