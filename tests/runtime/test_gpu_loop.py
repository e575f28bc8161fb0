"""Decoding that closes on the device gives the tokens of the host's path, and leaves no page behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_fake import Driver
from test_engine import assert_right
from toy_model import expected_greedy

from echoc.errors import DeviceError
from echoc.runtime.llm import LLM
from echoc.runtime.loop import rows_for
from echoc.runtime.sampling import SamplingParams

Make = Callable[..., Path]
only_cuda = pytest.mark.parametrize("gpu", ["cuda"], indirect=True)


def moved(calls: list[str]) -> int:
    """The largest copy to the host, in bytes."""
    return max((int(call.split()[-1]) for call in calls if call.startswith("copy out")), default=0)


def check(llm: LLM) -> None:
    """Nothing runs and nobody holds a page."""
    assert llm.engine._loop is None and not llm.engine.has_work
    assert llm.model.program.pool.memory()["pages"] == 0


def run(llm: LLM) -> None:
    while llm.engine.has_work:
        llm.engine.step()
    check(llm)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(1, 97, generator.integers(1, 30)).tolist() for _ in range(count)]


def test_no_logits_come_to_the_host(gpu: Driver, gpu_artifact: Make) -> None:
    llm = LLM(gpu_artifact())
    gpu.calls()
    given = prompts(5)
    outputs = llm.generate(given, SamplingParams(temperature=0, max_tokens=40))
    for prompt, output in zip(given, outputs, strict=True):
        assert output.outputs[0].token_ids == expected_greedy(prompt, 40, [0])
    calls = gpu.calls()
    assert 0 < moved(calls) <= 8 * 4
    assert calls.count("graph") > 20
    check(llm)
    del llm
    assert gpu.in_use == 0


@pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
@pytest.mark.parametrize("deterministic", [False, True])
def test_draws_of_all_kinds_are_those_of_the_host(gpu: Driver, gpu_artifact: Make, deterministic: bool) -> None:
    llm = LLM(gpu_artifact(), deterministic=deterministic, num_pages=500)
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.0},
        {"temperature": 0.6, "top_k": 12},
        {"temperature": 1.7, "top_p": 0.7, "min_p": 0.02},
        {"n": 3, "top_k": 40},
        {"min_tokens": 9, "temperature": 1.3},
        {"stop_token_ids": list(range(10, 30))},
    ]
    requests = [
        llm.engine.add(prompt, SamplingParams(**{"max_tokens": 7 + 5 * i, "seed": 11 + i} | kinds[i % 7]))
        for i, prompt in enumerate(prompts(14))
    ]
    run(llm)
    for request in requests:
        assert_right(request)


@only_cuda
def test_requests_come_and_go_while_it_loops(gpu: Driver, gpu_artifact: Make) -> None:
    llm = LLM(gpu_artifact(), num_pages=36, max_num_seqs=6)
    generator = np.random.default_rng(3)
    waiting, requests, cut = prompts(40, seed=5), [], []
    for turn in range(2000):
        if waiting and generator.random() < 0.15:
            params: dict[str, Any] = {
                "max_tokens": int(generator.integers(1, 60)),
                "seed": turn,
                "ignore_eos": turn % 2 == 0,
            }
            if generator.random() < 0.2:
                params["presence_penalty"] = 0.5  # the host's to choose
            requests.append(llm.engine.add(waiting.pop(), SamplingParams(**params)))
        if generator.random() < 0.01 and llm.engine.requests:
            cut.append(next(iter(llm.engine.requests)))
            llm.engine.abort(cut[-1])
        llm.engine.step()
    run(llm)
    assert not waiting and len(requests) == 40
    for request in requests:
        if request.request_id not in cut:
            assert_right(request)
    assert llm.engine.scheduler.num_preemptions > 0


@only_cuda
def test_few_pages_and_cached_prefixes_change_nothing(gpu: Driver, gpu_artifact: Make) -> None:
    llm = LLM(gpu_artifact(), num_pages=30)
    prompt = list(range(1, 14))
    for _ in range(3):  # the second and third find the pages that the loop of the first has filled
        requests = [
            llm.engine.add([*prompt, *tail], SamplingParams(max_tokens=30, temperature=0, ignore_eos=True))
            for tail in ([], [3], [4, 5])
        ]
        run(llm)
        for request in requests:
            assert_right(request)
    longer = llm.generate([[*prompt, *requests[0].output().outputs[0].token_ids]], SamplingParams(temperature=0))[0]
    assert longer.num_cached_tokens > len(prompt)
    assert longer.outputs[0].token_ids == expected_greedy(longer.prompt_token_ids, 16, [0])


@only_cuda
def test_increments_arrive_step_by_step(gpu: Driver, gpu_artifact: Make) -> None:
    llm = LLM(gpu_artifact())
    stream = llm.stream([5, 6], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    found = [token for increment in stream for token in increment.token_ids]
    assert found == expected_greedy([5, 6], 12)
    stream = llm.stream([5, 6], SamplingParams(temperature=0, max_tokens=50, ignore_eos=True))
    next(stream), next(stream), next(stream)
    stream.close()
    check(llm)


@only_cuda
@pytest.mark.parametrize("after", [0, 3, 8])
def test_a_step_that_fails_fails_its_requests_alone(gpu: Driver, gpu_artifact: Make, after: int) -> None:
    llm = LLM(gpu_artifact())
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    gpu.fail("cuGraphLaunch", 1, after)
    requests = [llm.engine.add(prompt, params) for prompt in prompts(3)]
    run(llm)
    assert all(isinstance(request.error, DeviceError) for request in requests)
    requests = [llm.engine.add(prompt, params) for prompt in prompts(3)]
    run(llm)
    for request in requests:
        assert_right(request)


@only_cuda
@pytest.mark.parametrize("after", [0, 3, 8])
def test_a_step_without_memory_is_made_again_by_halves(gpu: Driver, gpu_artifact: Make, after: int) -> None:
    llm = LLM(gpu_artifact())
    requests = [llm.engine.add(prompt, SamplingParams(max_tokens=30, seed=i)) for i, prompt in enumerate(prompts(5))]
    gpu.fail("cuGraphLaunch", 2, after)
    with pytest.warns(RuntimeWarning, match="FAKE_ERROR_2.* from now on it takes"):
        run(llm)
    for request in requests:
        assert_right(request)


def test_a_device_without_memory_fails_nobody_who_fits(gpu: Driver, gpu_artifact: Make) -> None:
    llm = LLM(gpu_artifact(), num_pages=100)
    greedy = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    requests = [llm.engine.add(prompt, greedy) for prompt in ([5, 6], [7], [8])]
    for _ in range(6):
        llm.engine.step()
    gpu.set("memory", gpu.in_use)  # others have taken the rest
    requests.append(llm.engine.add(list(range(1, 90)) * 3, greedy))  # wants more for its step than there is
    with pytest.warns(RuntimeWarning, match="for the .* of a step.*; from now on it takes"):
        run(llm)
    for request in requests:
        assert_right(request)


@only_cuda
def test_every_launch_can_be_waited_for(gpu: Driver, gpu_artifact: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOC_GPU_SYNCHRONOUS", "1")
    llm = LLM(gpu_artifact())
    output = llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=20))[0]
    assert output.outputs[0].token_ids == expected_greedy([1, 2, 3], 20, [0])


def test_batches_have_few_sizes() -> None:
    sizes = [rows_for(count, 256) for count in range(1, 257)]
    assert sorted(set(sizes[:32])) == [1, 2, 4, 8, 16, 24, 32]
    assert len(set(sizes)) < 20 and sizes[-1] == 256
    for count, size in enumerate(sizes, start=1):
        assert count <= size <= max(count + 7, count * 5 // 4)
        assert rows_for(size, 256) == size
    assert rows_for(5, 5) == 5
