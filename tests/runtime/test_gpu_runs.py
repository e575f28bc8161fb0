"""Runs on a GPU are those of the CPU, object for object: the kernels' source over the tests' driver."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_fake import LEVELS, Driver
from gpu_fake import runs as kernels_run
from gpu_runs import host_image

from echoc.compiler.ir.algebra import Event, Mode, Rule, System, bag
from echoc.compiler.ir.expression import TIME, call, name, number
from echoc.compiler.ir.systems import program_of
from echoc.compiler.systems import compile_system
from echoc.compiler.targets.cpu.rewriting.runs import Generated, generate
from echoc.compiler.targets.gpu import runs as compiled_runs
from echoc.compiler.targets.gpu.cpp import CppImage, CppKernel
from echoc.compiler.targets.gpu.levels import LEVELS as ALL_LEVELS
from echoc.compiler.targets.gpu.levels import Level, level_of
from echoc.errors import ArtifactError, DeviceError
from echoc.membranes.validate import validate
from echoc.runtime import device_runs
from echoc.runtime.device_runs import DeviceRuns, Sizes
from echoc.runtime.devices.gpu import open_driver
from echoc.runtime.manifest import BinarySpec
from echoc.runtime.runs import Batch, Runs
from echoc.runtime.systems import SystemProgram

sys.path.insert(0, str(Path(__file__).parents[1] / "membranes" / "runs"))
from static_systems import compile_all, one, random_system

SEEDS = range(12)


def on_device(generated: Sequence[Generated], vendor: str, folder: Path, patch: pytest.MonkeyPatch) -> list[Runs]:
    """The systems on the tests' device, one image for all of them."""
    level = level_of(f"{vendor}:{LEVELS[vendor]}")
    sources: list[str] = []

    def collect(source: str, entries: Sequence[str], level: Level, *, threads: int, blocks: int) -> CppImage:
        sources.append(source)
        return CppImage(b"", {name: CppKernel(64, 0, 0, 0) for name in entries}, threads)

    def described(one: Generated) -> dict[str, Any]:
        with patch.context() as inner:
            inner.setattr(compiled_runs, "build_cpp", collect)
            code = compiled_runs.runs_code(one, level, lambda *told: None)
        return dict(code.kernels["binaries"][one.entry])

    facts = [described(one) for one in generated]
    image = host_image(sources, [one.entry for one in generated], vendor, folder)

    def load(one: Generated, said: dict[str, Any]) -> Callable[[Sizes], DeviceRuns]:
        binary = BinarySpec(one.entry, said["member"], said["entry"], level.device.warp, 0, 0)
        return lambda sizes: DeviceRuns(open_driver(vendor), 0, memoryview(image), binary, said, sizes)

    return [Runs(load(one, said), one.layout) for one, said in zip(generated, facts, strict=True)]


def same(a: Batch, b: Batch) -> None:
    for each in ("counts", "charges", "steps", "time", "halted"):
        np.testing.assert_array_equal(getattr(a, each), getattr(b, each), err_msg=each)
    if a.applications is not None or b.applications is not None:
        np.testing.assert_array_equal(a.applications, b.applications)


@pytest.mark.parametrize("mode", [Mode.DCBA, Mode.GILLESPIE])
def test_random_systems(mode: Mode, gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systems = [random_system(seed, mode) for seed in SEEDS]
    ours = on_device([generate(system) for system in systems], gpu.vendor, tmp_path, monkeypatch)
    moved = 0
    for seed, host, device in zip(SEEDS, compile_all(systems), ours, strict=True):
        count = 1 + seed * 7 % 67  # a run alone, parts of a group, several groups
        a, b = host.start(count, seed=seed, first=5), device.start(count, seed=seed, first=5)
        for steps, options in (
            (3, {"applications": True}),
            (40, {"every": 4}),
            (1, {}),
            (9, {"every": 2, "record": [0]}),
        ):
            if not host.size:
                options = {}
            np.testing.assert_array_equal(a.advance(steps, **options), b.advance(steps, **options))  # type: ignore[arg-type]
            same(a, b)
        moved += int(a.steps.sum())
    assert moved > 100 * len(SEEDS)


def test_times_and_laws(gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records at times, and a law of every function that laws have."""
    x = name("a")
    law = call("add", call("exp", call("neg", call("div", x, number(50)))), call("pow", x, number(0.3)))
    for function in ("sin", "cos", "tan", "tanh", "atan", "sqrt", "log"):
        law = call("add", law, call("abs", call(function, call("add", x, number(1.5)))))
    system = one(Mode.GILLESPIE, [Rule("1", (), bag("a"), rate=law), Rule("1", bag("a"), rate=0.7)], {"a": 3})
    host, device = compile_all([system])[0], on_device([generate(system)], gpu.vendor, tmp_path, monkeypatch)[0]
    a, b = host.start(40, seed=2), device.start(40, seed=2)
    times = [0.0, 0.5, 0.5, 2.0, 9.0]
    found = b.advance(times=times)
    np.testing.assert_array_equal(a.advance(times=times), found)
    assert found[:, -1].std() > 0
    same(a, b)
    a.advance(until=12.0)
    b.advance(until=12.0)
    same(a, b)


def test_events(gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments, triggers that turn when a count does, delays and what they set."""
    now, a = name(TIME), name("a")
    events = (
        Event("1", call("le", number(0.7), now), (("a", number(5)),)),
        Event("1", call("lt", number(6), a), (("a", call("sub", a, number(4))),), delay=number(0.25)),
        Event("1", call("lt", a, number(2)), (("b", call("add", name("b"), number(1))),), persistent=False),
    )
    rules = [Rule("1", (), bag("a"), rate=3.0), Rule("1", bag("a"), rate=0.5)]
    made = one(Mode.GILLESPIE, rules, {"a": 1, "b": 1})
    system = validate(System("test", made.cells, made.rules, made.groups, Mode.GILLESPIE, events=events))
    host, device = compile_all([system])[0], on_device([generate(system)], gpu.vendor, tmp_path, monkeypatch)[0]
    x, y = host.start(40, seed=6), device.start(40, seed=6)
    times = [0.5, 0.7, 2.0, 8.0]
    np.testing.assert_array_equal(x.advance(times=times), y.advance(times=times))
    x.advance(30, applications=True)
    y.advance(30, applications=True)
    same(x, y)
    assert x.counts[:, 1].max() > 1


def test_a_changed_state_goes_on_from_there(gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [Rule("1", bag("a"), bag({"b": 2}), probability=0.5), Rule("1", bag("a"), probability=0.5)]
    system = one(Mode.DCBA, rules, {"a": 10})
    host, device = compile_all([system])[0], on_device([generate(system)], gpu.vendor, tmp_path, monkeypatch)[0]
    a, b = host.start(33, seed=4), device.start(33, seed=4)
    for batch, runs in ((a, host), (b, device)):
        batch.advance(5)
        assert batch.halted.all()
        batch.counts[7, runs.place("1", "a")] = 1000
        batch.wake(7)
        batch.advance(2)
    same(a, b)
    gpu.calls()
    b.advance(1)
    assert len(kernels_run(gpu.calls())) == 1


def failing() -> System:
    double = Rule("1", bag("a"), bag({"a": 1 << 40}), probability=1.0)
    return one(Mode.DCBA, [double], {"a": 3})


def test_an_overflow_is_said_and_leaves_the_run_before_its_step(
    gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, device = compile_all([failing()])[0], on_device([generate(failing())], gpu.vendor, tmp_path, monkeypatch)[0]
    said = []
    batches = host.start(3, seed=1), device.start(3, seed=1)
    for batch in batches:
        with pytest.raises(DeviceError, match="would pass 2\\^63") as error:
            batch.advance(9)
        said.append(str(error.value))
    assert said[0] == said[1]
    same(*batches)


def test_too_many_runs_for_the_device(gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = on_device([generate(failing())], gpu.vendor, tmp_path, monkeypatch)[0]
    gpu.set("memory", 1 << 16)
    with pytest.raises(DeviceError, match=r"10000 runs take \d+ bytes on the device.*are free; ask for fewer runs"):
        device.start(10000).advance(1)
    assert device.start(2).advance(1).size == 0


def test_a_fault_names_the_kernel(gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = on_device([generate(failing())], gpu.vendor, tmp_path, monkeypatch)[0]
    batch = device.start(2)
    gpu.fail("cuStreamSynchronize", 700, after=5)  # binding and four uploads
    with pytest.raises(DeviceError, match=r"kernel dcba_\w+, 2 runs: the device is lost to this process"):
        batch.advance(1)
    gpu.reset()


def test_memory_is_given_back(gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = gpu.in_use
    device = on_device([generate(failing())], gpu.vendor, tmp_path, monkeypatch)[0]
    held = gpu.in_use
    batch = device.start(50)
    batch.advance(1)
    assert gpu.in_use > held
    del batch
    assert gpu.in_use == held
    del device
    assert gpu.in_use == before


def test_kernels_of_another_version_are_refused(gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled_runs.ABI == device_runs.ABI
    monkeypatch.setattr(compiled_runs, "ABI", 0)
    with pytest.raises(ArtifactError, match="compiled for another version of echoc"):
        on_device([generate(failing())], gpu.vendor, tmp_path, monkeypatch)


def test_an_artifact_from_source_to_runs(gpu: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, but for the compiler of the device's machine code: runs alone, forks, what is put in and taken."""

    def host(source: str, entries: Sequence[str], level: Level, *, threads: int, blocks: int) -> CppImage:
        image = host_image([source], entries, gpu.vendor, tmp_path)
        return CppImage(image, {name: CppKernel(64, 0, 0, 0) for name in entries}, threads)

    monkeypatch.setattr(compiled_runs, "build_cpp", host)
    system, target = random_system(8, Mode.DCBA), f"{gpu.vendor}:{LEVELS[gpu.vendor]}"
    incoming = [(0, system.objects[0])]
    standing = []
    for where, to in (("gpu.echo", target), ("cpu.echo", "cpu")):
        program = SystemProgram(
            compile_system(program_of(system), target=to, output=tmp_path / where, incoming=incoming)
        )
        run = program.create(seed=3, run=2)
        told: list[Any] = [run.advance(2, record=True), run.applied()]
        run.put(0, {system.objects[0]: 9})
        other = run.fork()
        told += [run.advance(20), other.advance(3, record=True), other.applied(), run.take(list(system.objects))]
        told += [each.membranes() for each in (run, other)] + [run.environment(), other.totals()]
        batch = program.create_many(40, seed=1)
        assert isinstance(batch, Batch)
        batch.advance(9)
        standing.append((told, batch.counts.tolist()))
    assert standing[0] == standing[1]
    assert standing[0][0][0].steps == 2


@pytest.mark.parametrize(
    "level", [each for levels in ALL_LEVELS.values() for each in levels], ids=lambda each: each.name
)
@pytest.mark.parametrize("mode", [Mode.DCBA, Mode.GILLESPIE])
def test_an_object_for_every_level(mode: Mode, level: Level) -> None:
    generated = generate(random_system(3, mode))
    code = compiled_runs.runs_code(generated, level, lambda *told: None)
    binary = code.kernels["binaries"][generated.entry]
    assert code.members[binary["member"]][:4] == b"\x7fELF"
    assert binary["threads"] == level.device.warp and 8 <= binary["registers"] <= level.registers
