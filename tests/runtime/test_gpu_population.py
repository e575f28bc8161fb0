"""Populations on a GPU: the driver of the tests runs their kernel with a thread of the host for each of the device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from gpu_fake import Driver, as_image

import echoc
from echoc.compiler.targets.cpu.rewriting.population import Generated, build, generate
from echoc.compiler.targets.gpu import cpp, systems
from echoc.compiler.targets.gpu.levels import LEVELS, Level, level_of
from echoc.errors import DeviceError
from echoc.membranes.compiling import compile as compile_system
from echoc.membranes.plingua import read
from echoc.runtime.devices.gpu import open_driver
from echoc.runtime.population import Gpu, Population, PopulationBatch, PopulationLimit
from echoc.runtime.systems import SystemProgram

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "membranes"))

from random_systems import random_system  # noqa: E402

THREADS = 24  # of a block; a grid has one for every 48 rows
TARGETS = {"cuda": "cuda:sm_90a", "rocm": "rocm:gfx942"}
FAMILIES = ("transition", "active", "tissue", "spiking", "kernel")

# Divides in every step until the counter ends; then some dissolve, and what they held goes up.
DIVIDING = """@model<membrane_division>
def main() {
  @mu = [[]'2]'1;
  @ms(2) = x*20, d{1}, k;
  [d{i}]'2 --> [u{i}]'2 [v{i}]'2 : 1 <= i <= 6;
  [u{i} --> d{i+1}, l]'2 : 1 <= i <= 6;
  [v{i} --> d{i+1}]'2 : 1 <= i <= 6;
  [x --> y*3]'2;
  [d{7}]'2 --> e;
  [k]'2 --> k[]'2;
}
"""


def host_kernel(source: str, entries: Sequence[str], folder: Path, vendor: str) -> bytes:
    """The image of a population's kernel for the driver of the tests."""
    text = '#include "gpu_host.h"\n' + source + "".join(f"RUN({e}, echoc::population::Control)\n" for e in entries)
    (folder / "kernel.cpp").write_text(text)
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-ffp-contract=off",
               f"-DECHOC_THREADS={THREADS}", f"-I{cpp.ROOT}", f"-I{HERE}", "kernel.cpp", "-o", "kernel.so"]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True)
    return as_image((folder / "kernel.so").read_bytes(), vendor)


@pytest.fixture
def on_device(gpu: Driver, tmp_path: Path) -> Callable[..., PopulationBatch]:
    """A batch on the driver's device."""

    def make(generated: Generated, instances: int = 1, max_bytes: int = 64 << 20) -> PopulationBatch:
        source = '#include "kernels/gpu/population.h"\n' + generated.sources[generated.entry]
        image = host_kernel(source, [generated.entry, f"{generated.entry}_abi"], tmp_path, gpu.vendor)
        device = Gpu(open_driver(gpu.vendor), 0, THREADS, 1 << 30)
        gpu.set("multiprocessors", 6)
        return PopulationBatch(image, generated.layout, instances=instances, max_bytes=max_bytes, gpu=device)

    return make


def standing(run: Population) -> tuple[Any, ...]:
    return run.steps, run.halted, run.membranes(), run.environment(), sorted(run.links())


@pytest.mark.parametrize("family", FAMILIES)
def test_runs_are_those_of_the_cpu(family: str, on_device: Callable[..., PopulationBatch], gpu: Driver) -> None:
    generated = generate(random_system(3, family))
    ours = on_device(generated, 2)
    theirs = PopulationBatch(build(generated), generated.layout, instances=2, num_threads=1, max_bytes=64 << 20)
    for batch in (ours, theirs):
        batch.start(seed=5, first=1)
    for _ in range(6):
        for i in range(2):
            assert ours[i].advance(1, record=True) == theirs[i].advance(1, record=True)
            assert ours[i].applied() == theirs[i].applied()
            assert standing(ours[i]) == standing(theirs[i])
            assert ours[i].totals() == theirs[i].totals()
    assert any(call.startswith(f"run {generated.entry} ") for call in gpu.calls())


def test_membranes_that_divide_fork_and_are_put_into(on_device: Callable[..., PopulationBatch], gpu: Driver) -> None:
    generated = generate(read("dividing.pli", text=DIVIDING))
    ours = on_device(generated)
    theirs = PopulationBatch(build(generated), generated.layout, instances=1, num_threads=2, max_bytes=64 << 20)
    for batch in (ours, theirs):
        batch.start(seed=1)
        batch.advance(4)
        batch.fork(0)
        batch[0].put(1, {"x": 7})
        batch.advance()
    assert ours[0].steps > 12
    for i in range(2):
        assert standing(ours[i]) == standing(theirs[i])
        assert ours[i].memory()["membranes"] == theirs[i].memory()["membranes"]
    grids = {call.split()[2] for call in gpu.calls() if call.startswith(f"run {generated.entry} ")}
    assert "1,1,1" in grids and max(int(grid.split(",")[0]) for grid in grids) > 1
    held = ours.memory()["pages"]
    ours.release(1)
    assert ours.memory()["pages"] < held
    ours.release(0)
    assert ours.memory()["pages"] < held
    del ours, batch
    assert gpu.in_use == 0


def test_a_run_that_does_not_fit_stands_before_the_step(on_device: Callable[..., PopulationBatch]) -> None:
    generated = generate(read("dividing.pli", text=DIVIDING.replace("<= 6", "<= 60").replace("{7}", "{61}")))
    batch = on_device(generated, max_bytes=1 << 20)
    batch.start(seed=1)
    before = standing(batch[0])
    with pytest.raises(PopulationLimit, match="MiB of memory; the run stands at step"):  # noqa: PT012
        while True:
            batch.advance(1)
            before = standing(batch[0])
    assert before[0] > 5
    assert standing(batch[0]) == before


def test_a_device_without_memory(on_device: Callable[..., PopulationBatch], gpu: Driver) -> None:
    generated = generate(read("dividing.pli", text=DIVIDING))
    gpu.fail("cuMemAllocManaged", 2)
    with pytest.raises(DeviceError, match=r"Managed of .* for a population: FAKE_ERROR_2"):
        on_device(generated)


def test_a_kernel_that_fails_is_named(on_device: Callable[..., PopulationBatch], gpu: Driver) -> None:
    generated = generate(read("dividing.pli", text=DIVIDING))
    batch = on_device(generated)
    batch.start(seed=1)
    batch.advance(2)
    gpu.fail("cuStreamSynchronize", 719)
    with pytest.raises(DeviceError, match=f"kernel {generated.entry} on Fake GPU: .*FAKE_ERROR_719"):
        batch.advance(1)
    with pytest.raises(DeviceError, match=r"the device was lost: kernel .* in a new process"):
        batch.advance(1)


def test_an_artifact_from_source_to_run(gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, but for the compiler of the device's machine code."""

    def host(
        source: str, entries: Sequence[str], level: Level, *, threads: int, defines: Mapping[str, Any], optimize: str
    ) -> cpp.CppImage:
        image = host_kernel(source, entries, tmp_path, level.device.vendor)
        return cpp.CppImage(image, {e: cpp.CppKernel(32, 0, 0, 0) for e in entries}, THREADS)

    monkeypatch.setattr(cpp, "build_cpp", host)
    (tmp_path / "dividing.pli").write_text(DIVIDING)
    artifact = compile_system(tmp_path / "dividing.pli", target=TARGETS[gpu.vendor], output=tmp_path / "gpu.echo")
    assert artifact.manifest.device == gpu.vendor
    program = echoc.load(artifact.path, max_bytes=64 << 20)
    assert isinstance(program, SystemProgram)
    run = program.create(seed=3)
    run.advance()
    cpu = SystemProgram(compile_system(tmp_path / "dividing.pli", output=tmp_path / "cpu.echo")).create(seed=3)
    cpu.advance()
    assert run.membranes() == cpu.membranes()
    gpu.set("major", 8)
    if gpu.vendor == "cuda":
        with pytest.raises(DeviceError, match="compiled for cuda:sm_90a, the device is Fake GPU"):
            SystemProgram(artifact.path)


def test_an_artifact_for_another_vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dividing.pli").write_text(DIVIDING)
    artifact = compile_system(tmp_path / "dividing.pli", target="rocm:gfx1100", output=tmp_path / "gpu.echo")
    monkeypatch.setenv("ECHOC_ROCM_LIBRARY", str(tmp_path / "libamdhip64.so"))
    with pytest.raises(DeviceError, match="no ROCm driver"):
        SystemProgram(artifact)


@pytest.mark.parametrize("level", [each for levels in LEVELS.values() for each in levels], ids=lambda level: level.name)
def test_machine_code_for_every_level(level: Level) -> None:
    generated = generate(read("dividing.pli", text=DIVIDING))
    code = systems.population_code(generated, level, lambda stage, done, total: None)
    binary = code.kernels["binaries"][generated.entry]
    assert code.members[binary["member"]][:4] == b"\x7fELF"
    assert binary["threads"] == systems.THREADS and 16 <= binary["registers"] <= level.registers
    assert (
        level.device.vendor == "rocm" or not binary["calls"]
    )  # there a barrier might call back, as far as clang knows
    assert code.target == {"device": level.device.vendor, "level": level.name}


def test_what_is_needed_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(systems.STACK, "cuda", 0)
    generated = generate(read("dividing.pli", text=DIVIDING))
    with pytest.raises(echoc.errors.CompileError, match="bytes of local memory a thread; sm_80 has 0"):
        systems.population_code(generated, level_of("cuda:sm_80"), lambda stage, done, total: None)
