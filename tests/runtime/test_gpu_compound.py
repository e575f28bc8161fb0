"""Topologies on a GPU: every content is compiled for the device and runs there; wires cross through the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_fake import LEVELS, Driver, as_image
from gpu_fake import runs as kernels_run
from gpu_reservoir import host_library
from gpu_runs import host_image
from test_gpu_population import THREADS, host_kernel

import echoc
from echoc.compiler.ir.algebra import Cell, Group, Mode, Rule, System, bag
from echoc.compiler.targets.gpu import cpp, reservoir
from echoc.compiler.targets.gpu import runs as compiled_runs
from echoc.compiler.targets.gpu.cpp import CppImage, CppKernel
from echoc.compiler.targets.gpu.levels import Level
from echoc.compiler.targets.gpu.reservoir import ReservoirSource, Shape
from echoc.errors import DeviceError
from echoc.membranes.compound import Membrane, compile
from echoc.membranes.reservoirs import ESN
from echoc.runtime.compound import CompoundProgram

TARGETS = {vendor: f"{vendor}:{level}" for vendor, level in LEVELS.items()}
MIND = """@model<transition>
def main() {
  @mu = []'1;
  [up]'1 --> food [seen]'1;
}
"""


@pytest.fixture
def host_compilers(gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine code of the tests' driver instead of the device's."""
    (tmp_path / "built").mkdir()

    def population(
        source: str, entries: Sequence[str], level: Level, *, threads: int, defines: Mapping[str, Any], optimize: str
    ) -> CppImage:
        image = host_kernel(source, entries, tmp_path / "built", level.device.vendor)
        return CppImage(image, {entry: CppKernel(32, 0, 0, 0) for entry in entries}, THREADS)

    def runs(source: str, entries: Sequence[str], level: Level, *, threads: int, blocks: int) -> CppImage:
        image = host_image([source], entries, level.device.vendor, tmp_path / "built")
        return CppImage(image, {entry: CppKernel(32, 0, 0, 0) for entry in entries}, threads)

    def network(self: ReservoirSource, level: Level) -> tuple[bytes, CppKernel]:
        image = host_library(self, 5 if "int32_t batch" in self.source else 4, 1, tmp_path / "built")
        return as_image(image, level.device.vendor), CppKernel(32, 0, 0, 0)

    monkeypatch.setattr(cpp, "build_cpp", population)
    monkeypatch.setattr(compiled_runs, "build_cpp", runs)
    monkeypatch.setattr(ReservoirSource, "build", network)
    monkeypatch.setattr(reservoir, "shape_for", lambda network, level: Shape(2, 8))
    monkeypatch.setattr(reservoir, "_BLOCKS", dict.fromkeys(reservoir._BLOCKS, 2))
    gpu.set("multiprocessors", 6)


def topology() -> Membrane:
    """An ear hears a signal, a mind counts when it rises, and feeds prey that a predator eats."""
    rng = np.random.default_rng(3)
    signal = rng.standard_normal((300, 1))
    ear = ESN(12, inputs=1, seed=2).fit(signal, np.cumsum(signal, axis=0) * 0.3, washout=20)
    rules = (
        Rule("1", bag(["food"]), bag({"prey": 3}), rate=2.0),
        Rule("1", bag(["prey"]), bag({"prey": 2}), rate=0.1),
        Rule("1", bag(["prey", "hunter"]), bag({"hunter": 2}), rate=0.02),
        Rule("1", bag(["hunter"]), rate=0.3),
    )
    pond = System("pond", (Cell("1", None, bag({"hunter": 2})),), rules, (Group((0, 1, 2, 3)),), Mode.GILLESPIE)
    top = Membrane("top", {"signal": "f64[1]"}, {"left": "i64[2]", "heard": "f64[1]"})
    top.add("ear", {"u": "f64[1]"}, {"y": "f64[1]"}, reservoir=ear)
    top.add("mind", {"seen": "objects up"}, {"gives": "objects food"}, pli=MIND)
    top.add("pond", {"comes": "objects food"}, {"holds": {"counts": ["prey", "hunter"]}}, system=pond, steps=3)
    top.wire("signal", "ear.u")
    top.wire("ear.y", "heard")
    top.wire("ear.y", "mind.seen", threshold={"above": 0.0, "objects": ["up"]})
    top.wire("mind.gives", "pond.comes")
    top.wire("pond.holds", "left")
    return top


def test_a_topology_runs_on_the_device(gpu: Driver, host_compilers: None, tmp_path: Path) -> None:
    top = topology()
    ours = compile(top, target=TARGETS[gpu.vendor], output=tmp_path / "gpu.echo")
    assert ours.manifest.device == gpu.vendor
    members = [ours.inside(name).manifest for name in ours.members if name.endswith(".echo")]
    assert len(members) == 3 and {member.device for member in members} == {gpu.vendor}
    program = echoc.load(ours.path)
    assert isinstance(program, CompoundProgram)
    theirs = CompoundProgram(compile(top, output=tmp_path / "cpu.echo")).create(seed=4)
    run = program.create(seed=4)
    gpu.calls()
    moved = 0
    for x in np.random.default_rng(8).standard_normal(16):
        found, wanted = run.step({"signal": [x]}), theirs.step({"signal": [x]})
        assert found.keys() == wanted.keys()
        np.testing.assert_allclose(found["heard"], wanted["heard"], rtol=1e-9, atol=1e-12)
        if "left" in wanted:
            np.testing.assert_array_equal(found["left"], wanted["left"])
            moved += 1
    assert moved > 5 and run.activity() == theirs.activity()
    kernels = {name.partition("_")[0] for name in kernels_run(gpu.calls())}
    assert kernels >= {"reservoir", "population", "gillespie"}
    run.reset()
    theirs.reset()
    assert run.step({"signal": [0.5]}).keys() == theirs.step({"signal": [0.5]}).keys()


def test_what_is_there_already_stays_where_it_was_compiled_for(
    gpu: Driver, host_compilers: None, tmp_path: Path
) -> None:
    """An artifact as a content keeps its device; the others go to the target."""
    model = ESN(20, inputs=1, seed=1).fit(np.ones((50, 1)), np.ones((50, 1)), washout=5)
    path = model.compile(tmp_path / "ear.echo")
    top = Membrane("top", {"u": "f64[1]"}, {"y": "f64[1]"})
    top.add("ear", {"u": "f64[1]"}, {"y": "f64[1]"}, artifact=str(path.path))
    top.wire("u", "ear.u")
    top.wire("ear.y", "y")
    ours = compile(top, target=TARGETS[gpu.vendor], output=tmp_path / "gpu.echo")
    assert ours.inside("membranes/0-ear.echo").manifest.device == "cpu"
    outputs = CompoundProgram(ours).create().step({"u": [1.0]})
    np.testing.assert_allclose(outputs["y"], model.predict(np.ones((1, 1)))[0], rtol=1e-9)


@pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
def test_a_device_that_does_not_fit_is_said_at_once(
    gpu: Driver, host_compilers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compile(topology(), target="cuda:sm_90a", output=tmp_path / "gpu.echo").path
    with pytest.raises(DeviceError, match=r"device 3 was asked for; the driver of cuda has 1"):
        CompoundProgram(path, device_index=3)
    gpu.set("major", 8)
    with pytest.raises(DeviceError, match=r"gpu.echo was compiled for cuda:sm_90a, the device is Fake GPU \(sm_80\)"):
        CompoundProgram(path)
    monkeypatch.setenv("ECHOC_CUDA_LIBRARY", str(tmp_path / "libcuda.so"))
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        CompoundProgram(path)
