"""The devices that programs are compiled for: what each needs, its lowering and its build step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from echoc.compiler.bundle import Code, Progress, cpu_code
from echoc.compiler.ir import Program
from echoc.compiler.passes.pack import Packed
from echoc.compiler.schedules import Schedule, load
from echoc.compiler.targets.cpu.build import build_library, find_compiler, target_features
from echoc.compiler.targets.cpu.lower import lower as lower_for_cpu
from echoc.compiler.targets.gpu import fill, probe, sample, weights
from echoc.compiler.targets.gpu.build import build_kernels, check_tools
from echoc.compiler.targets.gpu.levels import LEVELS, Level, level_of
from echoc.compiler.targets.gpu.lower import lower as lower_for_gpu
from echoc.errors import CompileError


class Backend(Protocol):
    """One target."""

    def check(self) -> None:
        """Raises CompileError where the tools of the target are missing or do not know its level."""

    def prefers_narrow_kv(self) -> bool:
        """Whether attention over keys and values in 8 bits is faster than over 16."""

    def lower(self, program: Program, weights_dtype: str, group: int, codable: Callable[[Packed], bool]) -> Any:
        """Kernels, launch lists and memory plans. `codable`: whether a bf16 weight can be held in 12 bits."""

    def build(self, lowered: Any, report: Progress, draws: bool = False) -> Code:
        """Machine code; `draws`: the device draws the weights when it loads them."""


@dataclass(frozen=True)
class Cpu:
    """C++ through the system's compiler. `level` is a -march name; `schedules` are by kernel (None: those measured on
    this machine)."""

    level: str
    schedules: Mapping[str, Schedule] | None = None

    def check(self) -> None:
        find_compiler()
        target_features(self.level)

    def prefers_narrow_kv(self) -> bool:
        return "avx512_vnni" in target_features(self.level)  # products of 16-bit integers, kernels/cpu/attend_paired.h

    def lower(self, program: Program, weights_dtype: str, group: int, codable: Callable[[Packed], bool]) -> Any:
        chosen = load(self.level) if self.schedules is None else self.schedules
        features = target_features(self.level)
        # Tiles (AMX) read panels as they lie; without products of bf16 decoding takes longer than reading more.
        decodes = "avx512_bf16" in features and "amx_bf16" not in features
        return lower_for_cpu(program, weights_dtype, group, chosen, codable if decodes else None)

    def build(self, lowered: Any, report: Progress, draws: bool = False) -> Code:
        return cpu_code(lowered.sources, build_library(lowered.sources, self.level, report), self.level)


@dataclass(frozen=True)
class Gpu:
    """Triton, ahead of time."""

    level: Level

    def check(self) -> None:
        check_tools()

    def prefers_narrow_kv(self) -> bool:
        return False  # 8 bits save memory there, not time

    def lower(self, program: Program, weights_dtype: str, group: int, codable: Callable[[Packed], bool]) -> Any:
        return lower_for_gpu(program, weights_dtype, group, self.level.device)

    def build(self, lowered: Any, report: Progress, draws: bool = False) -> Code:
        fills = [fill.fill(f, g, self.level.device) for f, g in _formats(lowered)] if draws else []
        count = sample.vocabulary(lowered.program)
        samplers = {f.__name__: f(count, self.level.device) for f in (sample.peaks, sample.sample)} if count else {}
        limits = probe.probes(self.level.device) if count else {}
        kernels = lowered.kernels | {k.name: k for k in (*fills, *samplers.values(), *limits.values())}
        built = build_kernels(kernels, self.level, report)
        images = {n: f"kernels/{n}.{self.level.suffix}" for n in sorted(kernels)}
        sources = {n: f"kernels/{n}.{'py' if kernels[n].language == 'triton' else 'cu'}" for n in sorted(kernels)}
        drawn = [
            {"format": f, "group": g, "kernel": k.name, "tile": fill.BLOCK}
            for (f, g), k in zip(_formats(lowered), fills, strict=False)
        ]
        return Code(
            target={"device": self.level.device.vendor, "level": self.level.runs_on or self.level.name},
            kernels={
                "binaries": {n: {"member": images[n], **built[n].facts()} for n in images}, "sources": sources,
                "fill": drawn,
                "sample": {n: k.name for n, k in samplers.items()} | {
                    "parts": sample.parts(count), "dependent": self.level.device.dependent,
                } if count else {},
                "probe": probe.facts(limits) if limits else {},
            },
            members={images[n]: built[n].image for n in images}
            | {sources[n]: kernels[n].source.encode() for n in sources},
            tools={"triton": check_tools()},
            nbytes=weights.nbytes,
            parts=weights.parts,
            layout={"layout": "rows"},
        )  # fmt: skip


def _formats(lowered: Any) -> list[tuple[str, int]]:
    return sorted({(p.format, p.group) for p in lowered.packing.entries})


def backend(target: str, schedules: Mapping[str, Schedule] | None = None) -> Cpu | Gpu:
    """The backend of `cpu`, `cpu:LEVEL`, `cuda:LEVEL` or `rocm:LEVEL`. `schedules` are for CPUs, see `Cpu`.

    Raises: CompileError.
    """
    device, _, level = target.partition(":")
    if device == "cpu":
        return Cpu(level or "native", schedules)
    if device in LEVELS:
        return Gpu(level_of(target))
    known = [f"{v}:{each.name}" for v, levels in LEVELS.items() for each in levels]
    raise CompileError(
        f"unknown target {target!r}; wanted cpu, cpu:LEVEL (native, x86-64-v3, x86-64-v4, ...) or one of "
        f"{', '.join(known)}"
    )
