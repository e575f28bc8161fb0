"""Reservoirs on a GPU: the driver of the tests runs their kernels with a thread of the host for each of the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gpu_fake import Driver, as_image
from gpu_reservoir import host_library

import echoc
from echoc.compiler.targets.cpu.reservoir import LayerPlan, NetworkPlan
from echoc.compiler.targets.gpu import levels, reservoir
from echoc.compiler.targets.gpu.cpp import CppKernel
from echoc.compiler.targets.gpu.levels import LEVELS, Level, level_of
from echoc.compiler.targets.gpu.reservoir import ReservoirSource, Shape, reservoir_kernel
from echoc.errors import CompileError, DeviceError
from echoc.membranes.reservoirs import ESN, DeepESN, Layer, Reservoir, Tree, TreeESN
from echoc.membranes.reservoirs.engine import network_plan

RNG = np.random.default_rng(4)
U = RNG.uniform(-0.5, 0.5, (200, 1))
Y = np.roll(U, 2, axis=0) + 0.1
LEVEL = {"cuda": "cuda:sm_90a", "rocm": "rocm:gfx942"}
TREE = Tree([-1, 0, 0, 1, 1, 3], RNG.uniform(-1, 1, 6))
Target = Callable[[Shape], str]
ONE = pytest.mark.parametrize("gpu", ["cuda"], indirect=True)  # vendor: the kernels are the same


@pytest.fixture
def on_device(gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """Makes kernels for few threads of the host; gives the target that they pass for."""

    def use(shape: Shape) -> str:
        def build(self: ReservoirSource, level: Level) -> tuple[bytes, CppKernel]:
            batch = "int32_t batch" in self.source
            image = host_library(self, 5 if batch else 4, 2 if batch else 1, tmp_path)
            return as_image(image, gpu.vendor), CppKernel(32, 0, 0, 0)

        monkeypatch.setattr(ReservoirSource, "build", build)
        monkeypatch.setattr(reservoir, "shape_for", lambda network, level: shape)
        monkeypatch.setattr(reservoir, "_BLOCKS", dict.fromkeys(reservoir._BLOCKS, shape.blocks * shape.teams))
        return LEVEL[gpu.vendor]

    return use


def fitted(model: Reservoir) -> Reservoir:
    return model.fit(U if model.inputs else np.zeros((200, 0)), Y, washout=50)


def skipping() -> Reservoir:
    """A layer that hears one two below it: states must wait, so that the layers run one after another."""
    rng = np.random.default_rng(7)
    low = Layer(rng.uniform(-0.3, 0.3, (5, 5)), rng.uniform(-1, 1, (5, 2)), np.zeros((5, 0)), 0.5)
    middle = Layer(rng.uniform(-0.3, 0.3, (4, 4)), rng.uniform(-1, 1, (4, 6)), np.zeros((4, 0)), 1.0, (0, 0), (0,))
    high = Layer(rng.uniform(-0.3, 0.3, (3, 3)), rng.uniform(-1, 1, (3, 11)), np.zeros((3, 0)), 0.7, (0, 1), (0, 1))
    return Reservoir([low, middle, high])


MODELS = {
    "plain": lambda: ESN(41, connectivity=0.4, bias=0.1, leak=0.7),
    "fitted": lambda: fitted(ESN(33, connectivity=0.4, bias=0.1, leak=0.7, ridge=1e-5, squares="half")),
    "deep": lambda: fitted(DeepESN([12, 10, 8], leak=[1.0, 0.5, 0.7], connectivity=0.5, squares="all", ridge=1e-5)),
    "feedback": lambda: fitted(ESN(20, connectivity=0.4, feedback=1, input_to_readout=False, ridge=1e-2)),
    "generator": lambda: fitted(DeepESN([12, 9], 0, connectivity=0.5, feedback=1, bias=0.3, ridge=1e-2)),
    "tree": lambda: TreeESN([5, 4], connectivity=0.6).reservoir(TREE),
}


@ONE
@pytest.mark.parametrize("shape", [Shape(1, 8), Shape(3, 8)], ids=["alone", "blocks"])
@pytest.mark.parametrize("kind", MODELS)
def test_artifacts_give_what_the_cpu_gives(kind: str, shape: Shape, on_device: Target, tmp_path: Path) -> None:
    model = MODELS[kind]()
    u = RNG.uniform(-0.5, 0.5, (150, model.inputs))
    artifacts = {"cpu": model.compile(tmp_path / "cpu.echo"), "gpu": None}
    artifacts["gpu"] = model.compile(tmp_path / "gpu.echo", target=on_device(shape))
    found = {}
    for name, artifact in artifacts.items():
        program = echoc.load(artifact)
        parts = [next(iter(program.step({"u": part}).values())) for part in (u[:1], u[1:70], u[70:71], u[71:])]
        found[name] = np.vstack(parts)
    np.testing.assert_allclose(found["gpu"], found["cpu"], rtol=1e-9, atol=1e-11)
    assert np.abs(found["cpu"]).max() > 0.01


@ONE
def test_states_of_f32(on_device: Target, tmp_path: Path) -> None:
    model = MODELS["plain"]()
    artifact = model.compile(tmp_path / "gpu.echo", target=on_device(Shape(3, 8)), dtype="f32")
    found = echoc.load(artifact).step({"u": U[:40].astype(np.float32)})["x"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, model.states(U[:40]), atol=3e-6)


def test_instances_have_states_of_their_own(on_device: Target, tmp_path: Path) -> None:
    model = MODELS["feedback"]()
    program = echoc.load(model.compile(tmp_path / "gpu.echo", target=on_device(Shape(2, 8))))
    one = program.create()
    first = one.step({"u": U[:30]})["y"]
    other = one.fork()
    again = one.step({"u": U[30:60]})["y"]
    np.testing.assert_array_equal(other.step({"u": U[30:60]})["y"], again)
    np.testing.assert_array_equal(program.step({"u": U[:30]})["y"], first)


@ONE
@pytest.mark.parametrize("kind", ["plain", "deep", "feedback", "generator"])
def test_training_and_free_runs_on_a_device(kind: str, on_device: Target) -> None:
    model, wanted = MODELS[kind](), MODELS[kind]()
    target = on_device(Shape(2, 8))
    device = Reservoir(
        model.layers, inputs=model.inputs, ridge=1e-2, squares=model.squares, device=target,
        input_to_readout=model.input_to_readout,
    )  # fmt: skip
    wanted.ridge = 1e-2
    u = U if model.inputs else np.zeros((200, 0))
    for each in (device, wanted):
        each.fit(u, Y, washout=50)
    np.testing.assert_allclose(device.readout, wanted.readout, rtol=1e-6, atol=1e-9)
    device.readout = wanted.readout
    runs = [m.free_run(12, inputs=U[:12] if m.feedback and m.inputs else None) for m in (device, wanted)]
    np.testing.assert_allclose(*runs, atol=1e-8)


@ONE
def test_batches_are_shared_among_teams(on_device: Target) -> None:
    model = MODELS["deep"]()
    target = on_device(Shape(2, 8, 3))
    device = Reservoir(model.layers, inputs=1, device=target)
    u, x = RNG.uniform(-1, 1, (7, 25, 1)), RNG.uniform(-1, 1, (7, model.units))
    states, last = device.engine.run(u, np.zeros((7, 25, 0)), x)
    wanted, _ = model.engine.run(u, np.zeros((7, 25, 0)), x)
    np.testing.assert_allclose(states, wanted, atol=1e-13)
    np.testing.assert_array_equal(last, states[:, -1])


@ONE
def test_levels_of_trees_are_batches(on_device: Target) -> None:
    options = {"connectivity": 0.6, "seed": 3}
    device = TreeESN([9, 7], device=on_device(Shape(1, 8, 2)), **options)
    np.testing.assert_allclose(device.states(TREE), TreeESN([9, 7], **options).states(TREE), atol=1e-13)


@ONE
@pytest.mark.parametrize("hold", ["registers", "shared", "plan"])
def test_weights_stay_where_they_fit(hold: str, on_device: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 1000 if hold == "registers" else 0
    monkeypatch.setattr(reservoir, "_HELD", {4: most, 8: most})
    model = ESN(29, connectivity=0.3, leak=0.8, bias=0.2)
    target = on_device(Shape(2, 8))
    if hold == "plan":
        kernel = reservoir_kernel(network_plan(model.layers, 1, None), "f64", level_of(target), pointers=())
        place = int(dict(line.split(" = ") for line in constants(kernel.source))["kHeldValues"])
        tight = {v: tuple(replace(each, shared_bytes=place) for each in levels.LEVELS[v]) for v in levels.LEVELS}
        monkeypatch.setattr(levels, "LEVELS", tight)
    device = Reservoir(model.layers, device=target)
    np.testing.assert_allclose(device.states(U[:30]), model.states(U[:30]), atol=1e-13)
    assert device.engine._gpu_kernels[0][1].kernel.schedule["weights_in"] == hold


@ONE
def test_states_that_must_wait_run_depth_by_depth(on_device: Target) -> None:
    model = skipping()
    device = Reservoir(model.layers, device=on_device(Shape(2, 8)))
    np.testing.assert_allclose(device.states(U[:40]), model.states(U[:40]), atol=1e-13)
    schedule = device.engine._gpu_kernels[0][1].kernel.schedule
    assert not schedule["pipeline"]


def random_network(rng: np.random.Generator) -> NetworkPlan:
    """Layers of unequal degrees, driven by any that stand before them."""
    inputs, first, layers = int(rng.integers(0, 4)), [], []
    begin = 0
    for i in range(int(rng.integers(1, 5))):
        units = int(rng.integers(1, 25))
        sources = [(False, 0, inputs)] if inputs and (i == 0 or rng.random() < 0.5) else []
        sources += [(True, *first[c]) for c in range(i) if rng.random() < 0.6]
        width = units + 1 + sum(count for _, _, count in sources)
        matrix = rng.uniform(-1, 1, (units, width)) * (rng.random((units, width)) < rng.random())
        layers.append(LayerPlan(matrix, float(rng.uniform(0.1, 1)), tuple(sources)))
        first.append((begin, units))
        begin += units
    return NetworkPlan(tuple(layers), inputs, 0)


def test_every_weight_is_held_once() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        network = random_network(rng)
        shape = Shape(int(rng.integers(1, 5)), int(rng.choice([4, 8, 32])))
        kernel = reservoir_kernel(network, "f64", level_of("cuda:sm_80"), pointers=("states",), shape=shape)
        weights = sorted(np.concatenate([layer.matrix[layer.matrix != 0] for layer in network.layers]))
        places = dict(line.split(" = ") for line in constants(kernel.source))
        values = kernel.plan[int(places["kValues"]) : int(places["kColumns"])].view(np.float64)
        np.testing.assert_array_equal(sorted(values[values != 0]), weights)


def constants(source: str) -> Sequence[str]:
    marker = "static constexpr int64_t "
    return [line.split(marker)[1].rstrip(";") for line in source.splitlines() if marker in line]


@pytest.mark.parametrize(
    "level", [level for levels in LEVELS.values() for level in levels], ids=lambda level: level.name
)
def test_machine_code_for_every_level(level: Level, tmp_path: Path) -> None:
    for kind, dtype in (("deep", "f64"), ("feedback", "f32")):
        model = MODELS[kind]()
        artifact = model.compile(tmp_path / "x.echo", target=f"{level.device.vendor}:{level.name}", dtype=dtype)
        (binary,) = artifact.manifest.raw["kernels"]["binaries"].values()
        assert binary["spills"] == 0 and 0 < binary["registers"] <= level.registers
        assert bytes(artifact.view(binary["member"])[:4]) == b"\x7fELF"


def test_a_device_that_does_not_hold_all_blocks(on_device: Target, gpu: Driver, tmp_path: Path) -> None:
    artifact = MODELS["plain"]().compile(tmp_path / "gpu.echo", target=on_device(Shape(3, 8)))
    gpu.set("multiprocessors", 2)
    with pytest.raises(DeviceError, match=r"3 blocks .* wait for each other.* holds 2"):
        echoc.load(artifact)


def test_more_states_than_a_block_holds(tmp_path: Path) -> None:
    layers = tuple(LayerPlan(np.hstack([np.zeros((8000, 8000)), np.ones((8000, 1))]), 1.0, ()) for _ in range(2))
    with pytest.raises(CompileError, match=r"16000 units needs .* bytes of shared memory"):
        reservoir_kernel(NetworkPlan(layers, 0, 0), "f64", level_of("rocm:gfx942"), pointers=("states",))
