"""Programs stepped by their ports: binding, bounds, variants, instances, counters."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import build_artifact, expected_logits

import echoc
from echoc.errors import DeviceError, RequestError
from echoc.runtime.program import Program


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_artifact(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def program(artifact: Path) -> Program:
    return echoc.load(artifact, num_pages=32, num_threads=2)


def ports(**changes: Any) -> dict[str, Any]:
    return {
        "tokens": [5, 6, 7],
        "positions": [0, 1, 2],
        "sequences": [0, 0, 0],
        "rows": [0, 2],
        "block_table": [[3]],
    } | changes


def test_a_step_by_its_ports(program: Program) -> None:
    logits = program.step(ports())["logits"]
    np.testing.assert_array_equal(logits, [expected_logits([5]), expected_logits([5, 6, 7])])


def test_outputs_are_copies_unless_asked_otherwise(program: Program) -> None:
    kept = program.step(ports())["logits"]
    before = kept.copy()
    view = program.step(ports(tokens=[9, 9, 9]), copy=False)["logits"]
    np.testing.assert_array_equal(kept, before)
    assert np.shares_memory(view, program.step(ports(), copy=False)["logits"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": None}, "input tokens wants i32"),
        ({"tokens": [1.5, 2.0, 3.0]}, "input tokens wants i32"),
        ({"tokens": [[5, 6, 7]]}, r"tokens has shape \[1, 3\], wanted \['T'\]"),
        ({"positions": [0, 1]}, r"positions has shape \[2\]"),
        ({"rows": []}, "R is 0, the program takes 1..32"),
        ({"extra": [1]}, "no input port 'extra'"),
        ({"tokens": [5, 97, 7]}, "tokens holds 97, wanted 0..96"),
        ({"tokens": [5, -1, 7]}, "tokens holds -1, wanted 0..96"),
        ({"positions": [0, 1, 4]}, "positions holds 4, wanted 0..3"),
        ({"sequences": [0, 0, 1]}, "sequences holds 1, wanted 0..0"),
        ({"rows": [3]}, "rows holds 3, wanted 0..2"),
        ({"block_table": [[32]]}, "block_table holds 32, wanted 0..31"),
        ({name: np.zeros(65, np.int32) for name in ("tokens", "positions", "sequences")}, "T is 65"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(program: Program, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        program.step(ports(**changes))


def test_a_missing_input_and_an_unknown_rule_are_named(program: Program) -> None:
    inputs = ports()
    del inputs["rows"]
    with pytest.raises(RequestError, match="lacks its input rows"):
        program.step(inputs)
    with pytest.raises(RequestError, match="no rule 'leap'"):
        program.step(ports(), rule="leap")


def test_the_smallest_variant_that_fits_runs(program: Program) -> None:
    def steps() -> list[int]:
        return [variant["steps"] for variant in program.device.counters()]

    program.step(ports(tokens=[5], positions=[0], sequences=[0], rows=[0]))
    assert steps() == [1, 0, 0, 0, 0, 0]
    program.step(ports())
    assert steps() == [1, 0, 1, 0, 0, 0]
    program.step(ports(**{name: np.zeros(17, np.int32) for name in ("tokens", "positions", "sequences")}))
    assert steps() == [1, 0, 1, 0, 1, 0]


def test_bounds_of_ports(program: Program) -> None:
    assert (program.max_tokens(), program.max_rows()) == (64, 32)
    assert program.bound("block_table", axis=0) == 64
    assert program.bound("logits", axis=1) == 97
    assert program.bound("absent", axis=0) == 2**31 - 1


def test_instances_step_fork_and_release(program: Program) -> None:
    with program.create() as first:
        np.testing.assert_array_equal(first.step([5, 6, 7])[0], expected_logits([5, 6, 7]))
        with first.fork() as second:
            rows = second.step([1, 2], rows="all")
            np.testing.assert_array_equal(rows, [expected_logits([5, 6, 7, 1]), expected_logits([5, 6, 7, 1, 2])])
            both = program.advance([first, second], [[9], [3, 4]])
            np.testing.assert_array_equal(both, [expected_logits([5, 6, 7, 9]), expected_logits([5, 6, 7, 1, 2, 3, 4])])
            assert (first.length, second.length) == (4, 7)
    assert program.pool.num_available == 32
    with pytest.raises(ValueError, match="does not exist"):
        _ = first.length


def test_a_step_without_pages_changes_nothing(artifact: Path) -> None:
    program = Program(artifact, num_pages=2)
    instance = program.create()
    instance.step([1, 2, 3])
    with pytest.raises(RequestError, match="needs 2 pages, 1 are free"):
        instance.step(list(range(1, 9)))
    assert instance.length == 3
    np.testing.assert_array_equal(instance.step([4])[0], expected_logits([1, 2, 3, 4]))


def test_steps_from_two_threads_take_turns_or_are_refused(program: Program) -> None:
    refused, right = [], []

    def work() -> None:
        for _ in range(300):
            try:
                right.append(np.array_equal(program.step(ports(rows=[2]))["logits"][0], expected_logits([5, 6, 7])))
            except DeviceError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) + len(refused) == 600
    assert right
    assert all("running in another thread" in message for message in refused)


def test_profiling_times_every_launch(program: Program) -> None:
    program.device.set_profiling(True)
    for _ in range(3):
        program.step(ports())
    program.device.set_profiling(False)
    program.step(ports())
    counters = program.device.counters()[2]
    assert (counters["steps"], counters["profiled_steps"]) == (4, 3)
    assert len(counters["launch_seconds"]) == 3
    assert 0 < sum(counters["launch_seconds"]) <= counters["seconds"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_pages": 0}, "num_pages is 0"),
        ({"state_bytes": 10}, "hold no page"),
        ({"num_pages": 4, "num_threads": 0}, "num_threads is 0"),
    ],
)
def test_absurd_sizes_are_refused(artifact: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        Program(artifact, **options)


def test_many_steps_on_more_threads_than_cores_agree(artifact: Path) -> None:
    program = Program(artifact, num_pages=32, num_threads=7)
    wanted = expected_logits([5, 6, 7])
    for _ in range(300):
        np.testing.assert_array_equal(program.step(ports(), copy=False)["logits"][1], wanted)
