"""Stepping an artifact on a GPU: launches, graphs, memory and faults, on the driver of the tests."""

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_fake import Driver, axis, runs
from toy_model import PAGE_SIZE, expected_greedy, expected_logits

from echoc.errors import ArtifactError, DeviceError
from echoc.runtime.llm import LLM
from echoc.runtime.program import Program
from echoc.runtime.sampling import SamplingParams

Make = Callable[..., Path]
only_cuda = pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
PROMPTS = [[5, 6, 7, 8, 9], [3], list(range(1, 60))]


def ports(tokens: Any = (5, 6, 7), width: int = 2, **changes: Any) -> dict[str, Any]:
    """A step over one sequence whose pages are 0, 1, ...; the row of its last token is wanted."""
    return {
        "tokens": np.array(tokens, np.int32),
        "positions": np.arange(len(tokens), dtype=np.int32),
        "sequences": np.zeros(len(tokens), np.int32),
        "rows": np.array([len(tokens) - 1], np.int32),
        "block_table": np.arange(width, dtype=np.int32)[None],
    } | changes


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_loaded_model_speaks_and_leaves_nothing(gpu: Driver, gpu_artifact: Make, deterministic: bool) -> None:
    llm = LLM(gpu_artifact(), deterministic=deterministic)
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=20))
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert output.outputs[0].token_ids == expected_greedy(prompt, 20, [0])
    graph_steps = sum(variant["graph_steps"] for variant in llm.model.program.device.counters())
    assert graph_steps > 0
    assert gpu.in_use > 0
    del llm
    assert gpu.in_use == 0


def test_a_step_is_one_copy_each_way_around_its_launches(gpu: Driver, gpu_artifact: Make) -> None:
    program = Program(gpu_artifact(), num_pages=8)
    gpu.calls()
    logits = program.step(ports([5, 6, 7, 8, 9]))["logits"]
    np.testing.assert_array_equal(logits[0], expected_logits([5, 6, 7, 8, 9]))
    dependent = " dependent" if gpu.vendor == "cuda" else ""  # never of the first, which follows a copy
    assert gpu.calls() == [
        f"copy in {5 * 256}",
        "run toy_append 2,1,1 threads 64 shared 0",
        f"run toy_read 1,1,1 threads 64 shared 0{dependent}",
        "run toy_logits 4,1,1 threads 64 shared 60000",
        f"copy out {-(-97 * 4 // 256) * 256}",
    ]


def with_maps(manifest: dict[str, Any], **changes: Any) -> None:
    for variant in manifest["variants"]:
        variant["launches"][2] |= {"kernel": "toy_mapped", "matrices": [[0, "u8", 1, 16]]} | changes


@only_cuda
def test_kernels_that_copy_boxes_get_a_tensor_map(gpu: Driver, gpu_artifact: Make) -> None:
    program = Program(gpu_artifact(with_maps), num_pages=8)
    for _ in range(3):  # launched, captured, replayed
        np.testing.assert_array_equal(program.step(ports())["logits"][0], expected_logits([5, 6, 7]))


@pytest.mark.parametrize(
    ("failing", "status", "matrix", "words"),
    [
        ("", 0, [0, "u8", 1, 1 << 30], "tensor map of 1 rows of 1073741824 u8 for kernel toy_mapped: its memory has"),
        ("cuTensorMapEncodeTiled", 1, [0, "u8", 1, 16], "tensor map of 1 rows of 16 u8 .*toy_mapped.*FAKE_ERROR_1"),
    ],
)
@only_cuda
def test_a_tensor_map_that_cannot_be_is_named(
    gpu: Driver, gpu_artifact: Make, failing: str, status: int, matrix: list[Any], words: str
) -> None:
    if failing:
        gpu.fail(failing, status)
    with pytest.raises(DeviceError, match=words):
        Program(gpu_artifact(lambda m: with_maps(m, matrices=[matrix])), num_pages=4)
    assert gpu.in_use == 0


def test_more_shared_memory_than_usual_is_asked_for(gpu: Driver, gpu_artifact: Make) -> None:
    path = gpu_artifact()
    Program(path, num_pages=4)
    assert [call for call in gpu.calls() if call.startswith("attribute")] == (
        ["attribute 8 60000"] if gpu.vendor == "cuda" else []
    )
    path = gpu_artifact(lambda m: m["kernels"]["binaries"]["toy_read"].update(shared_bytes=400_000))
    with pytest.raises(DeviceError, match="toy_read wants 400000 bytes of shared memory, a block on Fake GPU has"):
        Program(path, num_pages=4)


def test_sizes_that_occur_again_are_replayed(gpu: Driver, gpu_artifact: Make) -> None:
    program = Program(gpu_artifact(), num_pages=8)
    gpu.calls()
    made = []
    for tokens in ([5, 6, 7], [1, 2, 3], [9, 9, 9], [4, 3]):
        np.testing.assert_array_equal(program.step(ports(tokens))["logits"][0], expected_logits(tokens))
        made.append([call for call in gpu.calls() if call in ("graph", "instantiate")])
    assert made == [[], ["instantiate", "graph"], ["graph"], []]
    assert [c["graph_steps"] for c in program.device.counters()] == [0, 0, 2, 0, 0, 0]


def test_growing_sequences_keep_their_sizes(gpu: Driver, gpu_artifact: Make) -> None:
    program = Program(gpu_artifact(), num_pages=128)
    with program.create() as instance:
        instance.step([5])
        gpu.calls()
        for token in range(1, 90):
            instance.step([token])
        assert gpu.calls().count("instantiate") == 3  # up to 8, 16 and 24 pages of 4 tokens
        np.testing.assert_array_equal(instance.step([7])[0], expected_logits([5, *range(1, 90), 7]))


def test_large_steps_are_not_captured(gpu: Driver, gpu_artifact: Make) -> None:
    def enlarge(manifest: Any) -> None:
        manifest["symbols"][0]["high"] = 512
        for variant in manifest["variants"]:
            if variant["max_tokens"] == 64:
                variant["max_tokens"] = 512

    program = Program(gpu_artifact(enlarge), num_pages=128)
    for size, captured in ((256, True), (257, False)):
        tokens = [1 + i % 90 for i in range(size)]
        gpu.calls()
        for _ in range(3):
            logits = program.step(ports(tokens, width=65))["logits"]
        np.testing.assert_array_equal(logits[0], expected_logits(tokens))
        assert ("graph" in gpu.calls()) == captured


def test_graphs_are_bounded_and_go_when_blocks_move(gpu: Driver, gpu_artifact: Make) -> None:
    program = Program(gpu_artifact(), num_pages=200)
    executor = program.device._executor  # type: ignore[attr-defined]
    for width in range(1, 100):
        for _ in range(2):
            program.step(ports([5, 6, 7], width=width))
    assert 1 <= executor.num_graphs <= 64
    gpu.calls()
    program.step(ports([5, 6, 7], width=99))
    assert gpu.calls()[0] == "graph"
    program.step(ports([1] * 16, width=128, block_table=np.zeros((32, 128), np.int32)))
    assert executor.num_graphs == 0
    np.testing.assert_array_equal(program.step(ports([5, 6, 7], width=99))["logits"][0], expected_logits([5, 6, 7]))


def test_grids_follow_the_sizes(gpu: Driver, gpu_artifact: Make) -> None:
    """A grid of (2 T R - 5 T + 3) / 4 by M."""

    def change(manifest: Any) -> None:
        for variant in manifest["variants"]:
            variant["launches"][1]["grid"] = [[[[2, [0, 1]], [-5, [0]], [3, []]], 4], axis(3, 1)]

    program = Program(gpu_artifact(change), num_pages=8)
    rows = np.zeros(3, np.int32)
    gpu.calls()
    program.step(ports([1, 2, 3, 4, 5], rows=rows, width=2))
    assert gpu.calls()[2].startswith("run toy_read 2,2,1 ")
    program.step(ports([3], rows=rows, width=4))
    assert gpu.calls()[2].startswith("run toy_read 1,4,1 ")
    with pytest.raises(DeviceError, match="kernel toy_read has a grid of -12 elements"):
        program.step(ports([1, 2, 3, 4, 5], width=2))
    assert program.step(ports([5, 6], rows=rows))["logits"].shape == (3, 97)


def test_a_launch_without_blocks_is_left_out(gpu: Driver, gpu_artifact: Make) -> None:
    def change(manifest: Any) -> None:
        for variant in manifest["variants"]:
            variant["launches"][1]["grid"] = [[[[1, [0]], [-1, []]], 1]]

    program = Program(gpu_artifact(change), num_pages=8)
    gpu.calls()
    program.step(ports([5]))
    assert runs(gpu.calls()) == ["toy_append", "toy_logits"]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([[[[1 << 40, [0]]], 1]], "toy_read would need .* blocks on axis 0, a device takes 2147483647"),
        ([axis(1, 1), [[[70000, []]], 1]], "70000 blocks on axis 1, a device takes 65535"),
        ([[[[1 << 61, [0, 0, 0]]], 1]], "more than 2\\^63 elements"),
    ],
)
def test_grids_that_no_device_takes_are_refused(gpu: Driver, gpu_artifact: Make, grid: Any, words: str) -> None:
    def change(manifest: Any) -> None:
        for variant in manifest["variants"]:
            variant["launches"][1]["grid"] = grid

    program = Program(gpu_artifact(change), num_pages=8)
    for _ in range(3):  # by itself, and while it is captured
        with pytest.raises(DeviceError, match=words):
            program.step(ports())


def test_pages_fork_and_copy(gpu: Driver, gpu_artifact: Make) -> None:
    program = Program(gpu_artifact(), num_pages=32)
    with program.create() as first:
        np.testing.assert_array_equal(first.step([5, 6, 7])[0], expected_logits([5, 6, 7]))
        with first.fork() as second:
            gpu.calls()
            np.testing.assert_array_equal(second.step([1, 2])[0], expected_logits([5, 6, 7, 1, 2]))
            assert f"copy {8 * PAGE_SIZE}" in gpu.calls()
            both = program.advance([first, second], [[9], [3, 4]])
            np.testing.assert_array_equal(both, [expected_logits([5, 6, 7, 9]), expected_logits([5, 6, 7, 1, 2, 3, 4])])
    with pytest.raises(IndexError, match="outside of the pool"):
        program.device.copy_pages([(0, 32)])


def test_the_pool_takes_what_the_device_has(gpu: Driver, gpu_artifact: Make) -> None:
    path = gpu_artifact()
    gpu.set("memory", 1 << 20)
    program = Program(path)
    assert program.device.num_pages == pytest.approx(0.9 * (1 << 20) / (8 * PAGE_SIZE), rel=0.01)
    del program
    assert LLM(path, max_num_seqs=3).engine.pool.num_pages == 3 * 512 // PAGE_SIZE
    assert LLM(path, kv_cache_bytes=64 * 32).engine.pool.num_pages == 64
    gpu.set("memory", 358)
    with pytest.raises(DeviceError, match="hold no page of 32 bytes"):
        Program(path)


def test_no_memory_at_load_says_what_it_was_for(gpu: Driver, gpu_artifact: Make) -> None:
    path = gpu_artifact()
    with pytest.raises(
        DeviceError, match=r"of 2\.98 GiB for state, with 1024\.0 MiB of the device's 1\.00 GiB free.*fewer"
    ):
        Program(path, num_pages=100_000_000)
    assert gpu.in_use == 0
    gpu.fail("cuMemAlloc_v2", 2)
    with pytest.raises(DeviceError, match="of 256 bytes for the weights"):
        Program(path, num_pages=4)
    gpu.set("memory", 100)
    with pytest.raises(DeviceError, match=r"takes 356 bytes for weights.* the device has 100: compile with smaller"):
        Program(path, num_pages=4)


def test_no_memory_in_flight_fails_the_step_alone(gpu: Driver, gpu_artifact: Make) -> None:
    program = Program(gpu_artifact(), num_pages=32)
    program.step(ports())
    gpu.set("memory", 4096)
    with pytest.raises(DeviceError, match=r"for the (inputs|outputs) of a step"):
        program.step(ports([1] * 16, width=4, rows=np.arange(16, dtype=np.int32)))
    np.testing.assert_array_equal(program.step(ports())["logits"][0], expected_logits([5, 6, 7]))
    gpu.set("memory", 1 << 30)
    rows = np.arange(16, dtype=np.int32)
    assert program.step(ports([1] * 16, width=4, rows=rows))["logits"].shape == (16, 97)


def faulty(manifest: Any) -> None:
    """Steps of 17 tokens or more run into a fault in their second launch."""
    for variant in manifest["variants"]:
        if variant["max_tokens"] == 64:
            variant["launches"][1]["kernel"] = "toy_fault"


def test_a_fault_names_what_was_in_flight_and_the_device_is_lost(gpu: Driver, gpu_artifact: Make) -> None:
    program = Program(gpu_artifact(faulty), num_pages=32)
    program.step(ports())
    words = (
        "device is lost to this process: .*StreamSynchronize: FAKE_ERROR_700.*in flight: step of variant 4 with "
        "kernels toy_append, toy_fault, toy_logits; start the process anew.*ECHOC_GPU_SYNCHRONOUS=1"
    )
    with pytest.raises(DeviceError, match=words):
        program.step(ports([1] * 17, width=8))
    with pytest.raises(DeviceError, match="device is lost"):
        program.step(ports())
    with pytest.raises(DeviceError, match="device is lost"):
        program.device.copy_pages([(0, 1)])


def test_a_request_that_loses_the_device_fails_the_requests_not_the_engine(gpu: Driver, gpu_artifact: Make) -> None:
    llm = LLM(gpu_artifact(faulty), num_pages=64)
    outputs = llm.generate([[5, 6], [4]], SamplingParams(temperature=0, max_tokens=4))
    assert [output.error for output in outputs] == [None, None]
    for _ in range(2):
        with pytest.raises(DeviceError, match="device is lost"):
            llm.generate([[1] * 20], SamplingParams(temperature=0, max_tokens=4))


def test_waiting_behind_every_launch_names_the_one_that_faults(
    gpu: Driver, gpu_artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOC_GPU_SYNCHRONOUS", "1")
    program = Program(gpu_artifact(faulty), num_pages=32)
    for _ in range(3):
        np.testing.assert_array_equal(program.step(ports())["logits"][0], expected_logits([5, 6, 7]))
    assert "graph" not in gpu.calls()
    with pytest.raises(DeviceError, match=r"kernel toy_fault \(launch 1 of 3\) failed: FAKE_ERROR_700") as caught:
        program.step(ports([1] * 17, width=8))
    assert "SYNCHRONOUS" not in str(caught.value)


@only_cuda
@pytest.mark.parametrize(
    ("function", "after"), [("cuGraphInstantiateWithFlags", 0), ("cuStreamBeginCapture_v2", 0), ("cuGraphLaunch", 0)]
)
def test_a_failing_call_is_named_and_the_next_step_is_right(
    gpu: Driver, gpu_artifact: Make, function: str, after: int
) -> None:
    program = Program(gpu_artifact(), num_pages=32)
    program.step(ports())
    gpu.fail(function, 1, after)
    with pytest.raises(DeviceError, match=rf"{function}: FAKE_ERROR_1 \(as the test says\)"):
        program.step(ports([3, 2, 1]))
    for tokens in ([5, 6, 7], [1, 2, 3]):
        np.testing.assert_array_equal(program.step(ports(tokens))["logits"][0], expected_logits(tokens))


def test_profiling_times_every_launch(gpu: Driver, gpu_artifact: Make) -> None:
    program = Program(gpu_artifact(), num_pages=8)
    program.device.set_profiling(True)
    for _ in range(3):
        program.step(ports())
    assert "dependent" not in " ".join(gpu.calls())
    program.device.set_profiling(False)
    np.testing.assert_array_equal(program.step(ports([1, 2, 3]))["logits"][0], expected_logits([1, 2, 3]))
    counters = program.device.counters()[2]
    assert (counters["steps"], counters["profiled_steps"]) == (4, 3)
    assert len(counters["launch_seconds"]) == 3
    assert 0 < sum(counters["launch_seconds"]) <= counters["seconds"]


def test_a_step_is_replayed_on_the_device_alone(gpu: Driver, gpu_artifact: Make) -> None:
    program = Program(gpu_artifact(), num_pages=8)
    device: Any = program.device
    with pytest.raises(DeviceError, match="make one first"):
        device.replay(10)
    program.step(ports())
    gpu.calls()
    seconds = device.replay(10)
    assert len(seconds) == 10
    assert min(seconds) >= 0
    calls = gpu.calls()
    assert not [call for call in calls if call.startswith("copy")]
    assert runs(calls) == ["toy_append", "toy_read", "toy_logits"] * 10
    with pytest.raises(DeviceError, match="make one with these sizes first"):
        device._executor.run_loop(2, [4, 1, 1, 2], 10)
    np.testing.assert_array_equal(program.step(ports([1, 2, 3]))["logits"][0], expected_logits([1, 2, 3]))
    assert len(device.copy_seconds(1 << 20, 3)) == 3


def test_weights_are_uploaded_whole(gpu: Driver, gpu_artifact: Make) -> None:
    """More than every chunk of the upload, and a rest."""
    from toy_model import SCALE, weights_member

    big = np.random.default_rng(0).integers(0, 256, (41 << 20) + 13, dtype=np.uint8).tobytes()

    def change(manifest: Any) -> None:
        manifest["weights"].append({"name": "big", "format": "plain", "shape": [len(big)], "nbytes": len(big)})

    member = weights_member({"big": big, "p0": SCALE.tobytes()})
    program = Program(gpu_artifact(change, **{"weights.safetensors": member}), num_pages=4)
    executor = program.device._executor  # type: ignore[attr-defined]
    assert executor.read("weight", 1, 0, len(big)) == big
    assert executor.read("weight", 0, 0, 4) == SCALE.tobytes()
    with pytest.raises(IndexError, match="outside of weight 1"):
        executor.read("weight", 1, 1, len(big))


def test_an_upload_that_fails_is_told(gpu: Driver, gpu_artifact: Make) -> None:
    gpu.fail("cuMemcpyHtoDAsync_v2", 999)
    with pytest.raises(DeviceError, match="FAKE_ERROR_999"):
        Program(gpu_artifact(), num_pages=4)
    assert gpu.in_use == 0


def test_random_weights_are_drawn_by_the_kernel_of_their_format(gpu: Driver, gpu_artifact: Make) -> None:
    def change(manifest: Any) -> None:
        manifest["random_weights"] = {"seed": (1 << 62) + 5}
        manifest["weights"].append(
            {"name": "w", "format": "i8", "group": 32, "interleave": 2, "shape": [24, 2064], "experts": 3,
             "nbytes": 6 * 2048, "std": 0.5}
        )  # fmt: skip
        manifest["kernels"]["fill"] = [{"format": "i8", "group": 32, "kernel": "toy_fill", "tile": 1000}]

    program = Program(gpu_artifact(change), num_pages=4)
    executor = program.device._executor  # type: ignore[attr-defined]
    for slab in range(6):  # the experts of the first source, then those of the second
        found = struct.unpack("<3i i f 2i 3i", executor.read("weight", 1, slab * 2048, 40))
        assert found == (5, 1 << 30, 1 << 16 | slab % 3, slab // 3, 0.5, 24, 2064, 24, 3, 1)

    def unknown(manifest: Any) -> None:
        change(manifest)
        manifest["weights"][1]["group"] = 64

    with pytest.raises(ArtifactError, match=r"weight w is to be drawn, and no kernel .* 'i8' in groups of 64"):
        Program(gpu_artifact(unknown), num_pages=4)


def test_states_without_pages_are_saved_and_restored(gpu: Driver, gpu_artifact: Make) -> None:
    def change(manifest: Any) -> None:
        for name, size in (("a", 5), ("b", 300)):
            manifest["states"].append({"name": name, "kind": "value", "page_size": 0, "bytes_per_page": size})

    program = Program(gpu_artifact(change), num_pages=4)
    device: Any = program.device
    assert not device.save().any()
    assert device.save().size == 305
    values = np.random.default_rng(0).integers(0, 256, 305, dtype=np.uint8)
    device.restore(values)
    np.testing.assert_array_equal(device.save(), values)
    program.device.copy_pages([(0, 1)])
    np.testing.assert_array_equal(device.save(), values)
    np.testing.assert_array_equal(program.step(ports())["logits"][0], expected_logits([5, 6, 7]))


def test_steps_from_two_threads_take_turns_or_are_refused(gpu: Driver, gpu_artifact: Make) -> None:
    program = Program(gpu_artifact(), num_pages=8)
    refused, right = [], []

    def work() -> None:
        for _ in range(200):
            try:
                right.append(np.array_equal(program.step(ports())["logits"][0], expected_logits([5, 6, 7])))
            except DeviceError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) + len(refused) == 400
    assert right
    assert all("running in another thread" in message for message in refused)


def test_a_forked_child_is_told_and_takes_nothing_with_it(gpu: Driver, gpu_artifact: Make) -> None:
    program = Program(gpu_artifact(), num_pages=8)
    child = os.fork()
    if child == 0:
        try:
            program.step(ports())
        except DeviceError as error:
            os._exit(0 if "forked" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(program.step(ports())["logits"][0], expected_logits([5, 6, 7]))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda m: m["states"][0].update(kind="drum"), ArtifactError, "kind 'drum'"),
        (lambda m: m["kernels"]["binaries"]["toy_read"].update(entry="absent"), DeviceError, "entry absent of kernel"),
        (lambda m: m["kernels"]["binaries"]["toy_read"].update(member="absent"), ArtifactError, "no member absent"),
        (lambda m: m["variants"][0]["launches"][2]["args"][1].__setitem__(1, 7), ArtifactError, "weight 7 of 1"),
        (lambda m: m["variants"][0]["launches"][0]["args"][0].__setitem__(1, 1), ArtifactError, "state 1 of 1"),
        (lambda m: m["variants"][0]["launches"][2]["args"][2].__setitem__(1, 6), ArtifactError, "port 6 of 6"),
        (lambda m: m["variants"][0]["launches"][2]["args"][0].__setitem__(1, -8), ArtifactError, "arena -8 of"),
        (lambda m: m["variants"][0]["launches"][2]["args"][0].__setitem__(1, 1 << 70), ArtifactError, "compile the"),
        (lambda m: m["weights"][0].update(nbytes=1 << 70), DeviceError, "takes 1180591620717411303776 bytes"),
        (lambda m: m["states"][0].update(bytes_per_page=1 << 70), DeviceError, "the device has 1073741824"),
        (lambda m: m["variants"][0].update(arena_bytes=1 << 70), DeviceError, "the device has 1073741824"),
        (lambda m: m["weights"][0].update(nbytes=1000), ArtifactError, "64 bytes, wanted 1000"),
        (lambda m: m["weights"][0].update(name="p1"), ArtifactError, "p1.*missing"),
        (lambda m: m.update(variants=[]), ArtifactError, "no variants"),
    ],
)
@only_cuda
def test_what_does_not_fit_together_is_refused(
    gpu: Driver, gpu_artifact: Make, change: Callable[[Any], None], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Program(gpu_artifact(change), num_pages=4)
    assert gpu.in_use == 0
