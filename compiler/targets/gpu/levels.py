"""The GPU architectures that programs are compiled for, and what each can do."""

from __future__ import annotations

from dataclasses import dataclass

from echoc.compiler.targets.gpu.render import Device
from echoc.errors import CompileError


@dataclass(frozen=True)
class Level:
    """One architecture. `capability` is what Triton calls it; `shared_bytes` what a block may have of shared memory,
    `registers` the 32-bit registers of a thread; `runs_on` what the code needs, where that is not `name`."""

    device: Device
    name: str
    capability: int | str
    shared_bytes: int
    registers: int = 255
    suffix: str = "cubin"
    runs_on: str = ""


LEVELS = {
    "cuda": (
        Level(Device("cuda"), "sm_80", 80, 166_912),
        Level(Device("cuda", dependent=True, streams="sm_90a", tensor_maps=True), "sm_90a", 90, 232_448),
        Level(Device("cuda", dependent=True, tensor_maps=True), "sm_100", 100, 232_448, runs_on="sm_100a"),
    ),
    "rocm": (
        Level(Device("rocm", 64), "gfx90a", "gfx90a", 65_536, 512, "hsaco"),
        Level(Device("rocm", 64), "gfx942", "gfx942", 65_536, 512, "hsaco"),
        Level(Device("rocm", 32), "gfx1100", "gfx1100", 65_536, 256, "hsaco"),
    ),
}
DEFAULTS = {"cuda": "sm_90a", "rocm": "gfx942"}


def level_of(target: str) -> Level:
    """The architecture that `cuda:LEVEL` or `rocm:LEVEL` names. Raises CompileError."""
    vendor, _, name = target.partition(":")
    known = {level.name: level for level in LEVELS.get(vendor, ())}
    found = known.get(name or DEFAULTS.get(vendor, ""))
    if found is None:
        names = [f"{v}:{level.name}" for v, levels in LEVELS.items() for level in levels]
        raise CompileError(f"unknown target {target!r}; known GPU targets: {', '.join(names)}")
    return found
