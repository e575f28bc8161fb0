"""Kernels are compiled ahead of time on a machine without a GPU, and the artifact says what they take of one."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device import port, program_of
from tiny_models import save

import echoc
from echoc.compiler.api import compile_program
from echoc.compiler.ir import Program, make, symbol
from echoc.compiler.targets.gpu import build, lower
from echoc.compiler.targets.gpu.levels import level_of
from echoc.errors import CompileError
from echoc.runtime.artifact import Artifact

MACHINES = {"cuda": 190, "rocm": 224}  # e_machine of cubins and of AMD's code objects
MACH = {"gfx90a": 0x3F, "gfx942": 0x4C, "gfx1100": 0x41}  # the low byte of e_flags (LLVM, AMDGPUUsage)
TARGETS = ("cuda:sm_90a", "rocm:gfx942")


def small() -> tuple[Program, dict[str, Any]]:
    """Rows, a reduction, and a matmul with an epilogue."""
    x = port("x", symbol("T"), 64)
    weight = make("weight", name="w", shape=(32, 64), dtype="f32")
    centred = make("sub", x, make("reshape", make("max", x, axes=(1,)), shape=(symbol("T"), 1)))
    y = make("tanh", make("contract", make("exp", centred), weight, spec="tk,nk->tn"))
    values = {"w": np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)}
    return program_of({"y": y}, {"T": (1, 8)}), values


def check(artifact: Artifact, target: str) -> None:
    """Every kernel that is launched is there, is machine code of the target, and fits the target."""
    level = level_of(target)
    manifest = artifact.manifest
    wanted = {"sm_100": "sm_100a"}.get(level.name, level.name)  # Triton's code for it runs on nothing else
    assert (manifest.device, manifest.level) == (level.device.vendor, wanted)
    for launch in (x for v in manifest.variants for x in v.launches):
        raw = manifest.raw["kernels"]["binaries"][launch.kernel]
        image = bytes(artifact.view(raw["member"]))
        assert image[:4] == b"\x7fELF"
        assert struct.unpack_from("<H", image, 18)[0] == MACHINES[level.device.vendor]
        if level.device.vendor == "rocm":
            assert struct.unpack_from("<I", image, 48)[0] & 0xFF == MACH[level.name]
        assert raw["entry"].encode() in image
        assert raw["threads"] % level.device.warp == 0
        assert raw["shared_bytes"] <= level.shared_bytes
        assert 0 < raw["registers"] <= level.registers
        assert launch.dependent == level.device.dependent


@pytest.mark.parametrize("target", [*TARGETS, "cuda:sm_80", "cuda:sm_100", "rocm:gfx90a", "rocm:gfx1100"])
def test_a_program_compiles_for_every_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(lower, "TOKENS", (8,))
    program, values = small()
    compile_program(program, values, target=target, weights_dtype="fp8", output=tmp_path / "fp8.echo")
    artifact = compile_program(program, values, target=target, weights_dtype="bf16", output=tmp_path / "small.echo")
    check(artifact, target)
    sources = artifact.manifest.raw["kernels"]["sources"]
    assert all(artifact.text(member) for member in sources.values())


@pytest.mark.parametrize("target", TARGETS)
def test_a_language_model_compiles(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(lower, "TOKENS", (16,))
    folder = tmp_path_factory.mktemp("llama")
    save(folder, "llama", num_hidden_layers=1)
    artifact = echoc.compile(folder, target=target, weights="random:3", weights_dtype="fp8", output=tmp_path / "a.echo")
    check(artifact, target)
    assert "f8" in {f.format for f in artifact.manifest.fills}
    assert artifact.manifest.variants[0].launches


def test_the_same_source_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOC_CACHE", str(tmp_path))
    monkeypatch.setattr(lower, "TOKENS", (8,))
    low = lower.lower(small()[0], "bf16", 32, level_of("cuda:sm_90a").device)
    first = build.build_kernels(low.kernels, level_of("cuda:sm_90a"))
    monkeypatch.setattr(build._Workers, "start", lambda self: pytest.fail("a worker was started"))
    assert build.build_kernels(low.kernels, level_of("cuda:sm_90a")) == first


@pytest.mark.parametrize("target", ["cuda:sm_70", "rocm:gfx906", "vulkan"])
def test_unknown_targets_are_told_the_known_ones(tmp_path: Path, target: str) -> None:
    program, values = small()
    with pytest.raises(CompileError, match="cuda:sm_90a") as error:
        compile_program(program, values, target=target, output=tmp_path / "a.echo")
    assert target in str(error.value)


def test_without_triton_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    program, values = small()
    with pytest.raises(CompileError, match=r"pip install 'echoc\[gpu\]'"):
        compile_program(program, values, target="cuda:sm_90a", output=tmp_path / "a.echo")


def test_a_kernel_that_triton_rejects_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOC_CACHE", str(tmp_path))
    low = lower.lower(small()[0], "bf16", 32, level_of("cuda:sm_90a").device)
    name, kernel = next((n, k) for n, k in low.kernels.items() if k.family == "rows")
    broken = kernel.source.replace("tl.program_id(0)", "tl.program_id('x')")
    with pytest.raises(CompileError, match=name):
        build.build_kernels({name: replace(kernel, source=broken)}, level_of("cuda:sm_90a"))


def test_a_compiler_that_dies_takes_nobody_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOC_CACHE", str(tmp_path))
    low = lower.lower(small()[0], "bf16", 32, level_of("cuda:sm_90a").device)
    name, kernel = next((n, k) for n, k in low.kernels.items() if k.family == "rows")
    deadly = kernel.source.replace("import triton\n", "import os\nos.abort()\nimport triton\n", 1)
    with pytest.raises(CompileError, match=r"the compiler died: exit code -6"):
        build.build_kernels({name: replace(kernel, source=deadly)}, level_of("cuda:sm_90a"))
