"""The journal of requests: what runs when a process dies is gone on with by the next, and comes out as undisturbed."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_fake import Driver
from toy_model import VOCAB_SIZE, build_artifact, expected_greedy
from toy_text import tokenizer_json

from echoc.errors import DeviceError, JournalError, RequestError
from echoc.runtime import journal
from echoc.runtime.async_llm import AsyncLLM
from echoc.runtime.llm import LLM
from echoc.runtime.outputs import RequestOutput
from echoc.runtime.sampling import SamplingParams

HERE = str(Path(__file__).resolve().parent)
ENDLESS = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)

# argv: artifact, journal, step in which the process dies. The requests are those of `asked`.
DYING = """
import os, signal, sys
sys.path.insert(0, {here!r})
from test_journal import asked
from echoc.runtime.llm import LLM
llm = LLM(sys.argv[1], num_pages=300, num_threads=1, seed=5, max_num_batched_tokens=24, journal=sys.argv[2])
step = llm.model.stepper.step
left = [int(sys.argv[3])]
def last(**arrays):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(**arrays)
llm.model.stepper.step = last
llm.generate(*asked())
"""


def asked() -> tuple[list[Any], list[SamplingParams]]:
    """Requests of all kinds, among them some without a seed."""
    random = np.random.default_rng(7)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0, "logprobs": 3, "prompt_logprobs": 2},
        {"temperature": 0.9},
        {"n": 3, "top_k": 30, "seed": 4},
        {"top_p": 0.8, "repetition_penalty": 1.3, "frequency_penalty": 0.2, "logit_bias": {5: 2.5, 6: -1.0}},
        {"n": 2, "logprobs": 0, "min_tokens": 9, "stop_token_ids": [4, 5, 6, 7]},
        {"stop": ["e", "an"], "include_stop_str_in_output": True, "ignore_eos": True},
        {"bad_words": ["th"], "min_p": 0.01, "cache_salt": "x", "seed": (1 << 64) - 1},
    ]
    prompts: list[Any] = [random.integers(2, VOCAB_SIZE, random.integers(2, 40)).tolist() for _ in kinds]
    prompts[5] = "the cat, and then é"
    return prompts, [
        SamplingParams(**({"max_tokens": 12 + 9 * i, "ignore_eos": i % 2 == 1} | kind)) for i, kind in enumerate(kinds)
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_artifact(tmp_path_factory.mktemp("journal"), **{"tokenizer.json": tokenizer_json().encode()})


@pytest.fixture(scope="module")
def undisturbed(path: Path) -> list[RequestOutput]:
    return LLM(path, num_pages=300, num_threads=1, seed=5).generate(*asked())


def same(found: list[RequestOutput], wanted: list[RequestOutput]) -> None:
    """All but how much of the prompt was in the cache."""
    assert [replace(output, num_cached_tokens=0) for output in found] == [
        replace(output, num_cached_tokens=0) for output in wanted
    ]


def take(llm: LLM, steps: int) -> None:
    for _ in range(steps):
        llm.engine.step()


def rows(file: Path, question: str) -> list[Any]:
    connection = sqlite3.connect(file)
    found = connection.execute(question).fetchall()
    connection.close()
    return found


@pytest.mark.parametrize("step", [1, 2, 9, 25, 40])
def test_a_killed_process_is_gone_on_with(
    path: Path, tmp_path: Path, undisturbed: list[RequestOutput], step: int
) -> None:
    file = tmp_path / "j"
    command = [sys.executable, "-c", DYING.format(here=HERE), str(path), str(file), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    llm = LLM(path, num_pages=300, num_threads=1, seed=99, journal=file)
    entries = llm.unfinished()
    assert [entry.prompt_token_ids for entry in entries] == [output.prompt_token_ids for output in undisturbed]
    assert any(any(entry.token_ids) for entry in entries) == (step > 2)
    same(llm.recover(), undisturbed)
    assert llm.unfinished() == [] and not llm.engine.requests
    assert llm.engine.pool.num_sequences == 0
    llm.close()
    same(LLM(path, num_threads=1, journal=file).recover(), [])


def test_a_process_may_die_again_and_again(path: Path, tmp_path: Path, undisturbed: list[RequestOutput]) -> None:
    file, made = tmp_path / "j", 0
    llm = LLM(path, num_pages=300, num_threads=1, seed=5, journal=file)
    for prompt, params in zip(*asked(), strict=True):
        llm.engine.add(prompt, params)
    for turn in range(6):
        for _ in range(8):
            llm.engine.step()
        child = os.fork()  # holds a copy of the connection, and goes as any process does
        if child == 0:
            del llm
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        llm.close()
        llm = LLM(path, num_pages=300, num_threads=1, journal=file, max_num_batched_tokens=[30, 64][turn % 2])
        entries = llm.unfinished()
        before, made = made, sum(len(tokens) for entry in entries for tokens in entry.token_ids)
        assert made > before
        for entry in entries:
            llm.engine.resume(entry)
    llm.close()
    same(LLM(path, num_pages=300, num_threads=1, journal=file).recover(), undisturbed)


def test_what_ended_and_was_not_handed_over_is_handed_over(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "j"
    llm = LLM(path, num_threads=1, journal=file)
    kinds = [{"temperature": 0.0}, {"seed": 3, "n": 2, "logprobs": 1, "prompt_logprobs": 0}]
    requests = [llm.engine.add([5, 6], SamplingParams(max_tokens=9, ignore_eos=True, **kind)) for kind in kinds]
    bad = llm.engine.add([7, 8], SamplingParams(banned_token_ids=list(range(VOCAB_SIZE))))
    given_up = llm.engine.add("the cat", ENDLESS)
    for _ in range(20):
        llm.engine.step()
    llm.engine.abort(given_up.request_id)
    assert all(request.finished for request in [*requests, bad])
    llm.close()
    llm = LLM(path, num_threads=1, journal=file)
    assert [entry.finished for entry in llm.unfinished()] == [True] * 4
    found = llm.recover()
    same(found[:2], [request.output() for request in requests])
    assert isinstance(found[2].error, RequestError) and str(found[2].error) == str(bad.error)
    assert found[2].outputs[0].finish_reason == "error"
    assert found[3].outputs == given_up.output().outputs and found[3].outputs[0].finish_reason == "abort"
    assert llm.unfinished() == []


def test_what_was_handed_over_stays_for_a_while(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "KEPT", 4)
    file = tmp_path / "j"
    llm = LLM(path, num_threads=1, journal=file)
    for _ in range(5):
        assert all(output.error is None for output in llm.generate([[5], [6], [7]], SamplingParams(max_tokens=3)))
    assert "".join(map(str, llm.stream("the cat", ENDLESS)))
    llm.close()
    assert 4 <= len(rows(file, "SELECT number FROM requests")) <= 8
    assert len(rows(file, "SELECT step FROM steps")) < 80
    llm = LLM(path, num_threads=1, journal=file)
    assert llm.unfinished() == []
    assert llm.engine.add([5], ENDLESS).request_id == "request-16"  # numbers, and so seeds, go on


def test_interrupted_requests_stay_and_those_given_up_do_not(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "j"
    llm = LLM(path, num_threads=1, journal=file)
    step, steps = llm.model.stepper.step, []

    def interrupted(**arrays: Any) -> Any:
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(**arrays)

    llm.model.stepper.step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[5, 6], [7, 8]], ENDLESS)
    left = llm.stream([9, 9], ENDLESS)
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert [entry.token_ids[0] for entry in llm.unfinished()] == [expected_greedy(p, 4) for p in ([5, 6], [7, 8])]
    with pytest.raises(JournalError, match="named 'request-1' that is not finished"):
        llm.engine.add([1], ENDLESS, request_id="request-1")
    llm.abort(llm.engine.add([1], ENDLESS, request_id="x").request_id)
    llm.journal.forget("request-0")
    (output,) = llm.recover()  # in the same process
    assert output.outputs[0].token_ids == expected_greedy([7, 8], 60)
    assert llm.unfinished() == []
    with pytest.raises(JournalError, match="no unfinished request named 'x'"):
        llm.resume("x")


def test_a_step_that_fails_leaves_its_requests_in_the_journal(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "j"
    llm = LLM(path, num_threads=1, journal=file)
    step = llm.model.stepper.step

    def failing(**arrays: Any) -> Any:
        raise OSError("the device went away")

    request = llm.engine.add([5, 6], ENDLESS)
    llm.engine.step()
    llm.model.stepper.step = failing  # type: ignore[method-assign]
    llm.engine.step()
    assert "the device went away" in str(request.error)
    llm.model.stepper.step = step  # type: ignore[method-assign]
    (entry,) = llm.unfinished()
    assert "the device went away" in str(entry.result.error) and not entry.finished
    assert "".join(map(str, llm.resume(entry.request_id)))
    assert llm.unfinished() == []


def test_a_resumed_stream_begins_with_what_there_was(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "j"
    params = SamplingParams(n=2, seed=4, max_tokens=30, ignore_eos=True)
    (wanted,) = LLM(path, num_threads=1).generate("the cat", params)
    llm = LLM(path, num_threads=1, journal=file)
    stream = llm.stream("the cat", params)
    for _ in range(15):
        next(stream)
    llm.close()

    async def main() -> None:
        async with AsyncLLM(path, num_threads=1, journal=file) as engine:
            (entry,) = await engine.unfinished()
            assert entry.prompt == "the cat" and len(entry.token_ids) == 2
            increments = [increment async for increment in engine.resume(entry.request_id)]
            assert len(increments[0].token_ids) == len(entry.token_ids[0]) > 1
            for output in wanted.outputs:
                mine = [increment for increment in increments if increment.index == output.index]
                assert [token for increment in mine for token in increment.token_ids] == output.token_ids
                assert "".join(map(str, mine)) == output.text
            assert await engine.unfinished() == []

    asyncio.run(asyncio.wait_for(main(), 60))
    assert rows(file, "SELECT state FROM requests") == [(2,)]


def test_closing_the_asynchronous_engine_keeps_what_runs(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "j"
    prompts = ["the cat", "a dog"]
    wanted = LLM(path, num_threads=1).generate(prompts, ENDLESS)

    async def begun() -> None:
        engine = AsyncLLM(path, num_threads=1, journal=file)
        streams = [engine.stream(prompt, ENDLESS) for prompt in prompts]
        for stream in streams:
            await anext(stream)
        engine.close()

    async def recovered() -> list[RequestOutput]:
        async with AsyncLLM(path, num_threads=1, journal=file) as engine:
            other = engine.stream([3, 4], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
            found = await engine.recover()
            assert [token async for part in other for token in part.token_ids] == expected_greedy([3, 4], 5)
            return found

    asyncio.run(asyncio.wait_for(begun(), 60))
    same(asyncio.run(asyncio.wait_for(recovered(), 60)), wanted)


def test_a_smaller_engine_refuses_and_keeps(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "j"
    llm = LLM(path, num_threads=1, journal=file)
    llm.engine.add([5] * 40, ENDLESS)
    llm.close()
    llm = LLM(path, num_threads=1, num_pages=5, journal=file)
    with pytest.raises(RequestError, match="needs 10 pages"):
        llm.resume("request-0")
    (output,) = llm.recover()
    assert "needs 10 pages" in str(output.error)
    llm.close()
    (output,) = LLM(path, num_threads=1, journal=file).recover()
    assert output.outputs[0].token_ids == expected_greedy([5] * 40, 60)


def test_journals_that_cannot_serve_are_refused_and_left_alone(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "j"
    llm = LLM(path, num_threads=1, journal=file)
    with pytest.raises(JournalError, match="has it open"):
        LLM(path, num_threads=1, journal=file)
    code = f"from echoc.runtime.llm import LLM; LLM({str(path)!r}, num_threads=1, journal={str(file)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "JournalError" in done.stderr and "another process" in done.stderr
    llm.engine.add([5], ENDLESS)
    llm.close()

    other = build_artifact(tmp_path, extra=b"x")
    with pytest.raises(JournalError, match=rf"is of requests to {path} \(manifest .*, this is {other}"):
        LLM(other, num_threads=1, journal=file)

    def refused(words: str, change: Callable[[Path], None]) -> None:
        copy = tmp_path / "copy"
        copy.write_bytes(file.read_bytes())
        change(copy)
        before = rows(copy, "SELECT * FROM sqlite_master") if "sense" in words else copy.read_bytes()
        with pytest.raises(JournalError, match=words):
            LLM(path, num_threads=1, journal=copy)
        assert before == (rows(copy, "SELECT * FROM sqlite_master") if "sense" in words else copy.read_bytes())

    def holds(copy: Path, data: bytes) -> None:
        copy.write_bytes(data)

    def sql(text: str) -> Callable[[Path], None]:
        def change(copy: Path) -> None:
            connection = sqlite3.connect(copy)
            connection.executescript(text)
            connection.close()

        return change

    refused("is no journal", lambda copy: holds(copy, b"a text of no database" * 400))
    refused("is damaged", lambda copy: holds(copy, copy.read_bytes()[:-4096]))
    refused("is a journal of layout 9", sql("PRAGMA user_version = 9"))
    refused("database of something else", sql("PRAGMA application_id = 7"))
    refused("request 0 makes no sense", sql("UPDATE requests SET request = '{}'"))
    refused("request 0 makes no sense", sql("UPDATE requests SET result = '[1]'"))
    refused("step 3 makes no sense", sql("INSERT INTO steps VALUES (3, x'0102', NULL)"))
    with pytest.raises(JournalError, match="is there such a folder"):
        LLM(path, num_threads=1, journal=tmp_path / "absent" / "j")
    with pytest.raises(JournalError, match="cannot be opened or made"):
        LLM(path, num_threads=1, journal=tmp_path)
    assert len(LLM(path, num_threads=1, journal=file).unfinished()) == 1


@pytest.mark.parametrize(
    ("pragma", "undo", "words"),
    [
        ("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1000000", "the disk is full: make room"),
        ("PRAGMA query_only = ON", "PRAGMA query_only = OFF", "let this user write the file"),
    ],
)
def test_a_disk_that_takes_nothing_stops_no_request(
    path: Path, tmp_path: Path, pragma: str, undo: str, words: str
) -> None:
    file = tmp_path / "j"
    llm = LLM(path, num_threads=1, journal=file)
    request = llm.engine.add([5, 6], replace(ENDLESS, max_tokens=400))
    llm.engine.step()
    connection = llm.journal._connection
    assert connection is not None
    connection.execute(pragma)
    with pytest.warns(RuntimeWarning, match=words) as warned:
        take(llm, 300)
    assert len(warned) == 1
    assert request.error is None and words in str(llm.journal.fault)
    with pytest.raises(JournalError, match=f"not taken.*{words}"):
        llm.generate([1, 2], ENDLESS)
    connection.execute(undo)
    llm.engine.step()
    assert llm.journal.fault is None
    llm.close()
    (recovered,) = LLM(path, num_threads=1, journal=file).unfinished()
    assert recovered.token_ids == [expected_greedy([5, 6], 302)]


def test_a_loss_that_cannot_be_written_is_told_at_the_end(path: Path, tmp_path: Path) -> None:
    llm = LLM(path, num_threads=1, journal=tmp_path / "j")
    llm.engine.add([5, 6], ENDLESS)
    llm.engine.step()
    llm.journal._connection.execute("PRAGMA query_only = ON")  # type: ignore[union-attr]
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        llm.engine.step()
    with pytest.warns(RuntimeWarning, match="closed without"):
        llm.close()
    with pytest.raises(JournalError, match="is closed"):
        llm.generate([1], ENDLESS)
    (entry,) = LLM(path, num_threads=1, journal=tmp_path / "j").unfinished()
    assert len(entry.token_ids[0]) == 1


def test_without_a_journal_there_is_nothing_to_go_on_with(path: Path) -> None:
    llm = LLM(path, num_threads=1)
    with pytest.raises(RequestError, match="journal=PATH"):
        llm.recover()
    with pytest.raises(RequestError, match="journal=PATH"):
        llm.unfinished()


def test_several_threads_share_a_journal(path: Path, tmp_path: Path) -> None:
    llm = LLM(path, num_threads=1, journal=tmp_path / "j")
    found: dict[int, list[int]] = {}

    def one(first: int) -> None:
        found[first] = llm.generate([first], ENDLESS)[0].outputs[0].token_ids

    threads = [threading.Thread(target=one, args=(first,)) for first in range(5, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {first: expected_greedy([first], 60) for first in range(5, 9)}
    assert llm.unfinished() == []


RESUMING = """
import json, sys
from echoc.runtime.llm import LLM
llm = LLM(sys.argv[1], num_pages=100, max_num_batched_tokens=16, journal=sys.argv[2])
print(json.dumps([[o.token_ids for o in output.outputs] for output in llm.recover()]))
"""


def faulty(manifest: Any) -> None:
    """Steps of 17 tokens or more run into a fault in their second launch."""
    for variant in manifest["variants"]:
        if variant["max_tokens"] == 64:
            variant["launches"][1]["kernel"] = "toy_fault"


def test_a_fault_of_a_kernel_leaves_the_requests_to_the_next_process(
    gpu: Driver, gpu_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    artifact, file = gpu_artifact(faulty), tmp_path / "j"
    llm = LLM(artifact, num_pages=100, journal=file)
    kinds: list[dict[str, Any]] = [{"temperature": 0.0}, {}, {"n": 2, "seed": 3}, {"presence_penalty": 0.5}]
    prompts = [[5, 6], [7], [8, 9, 10], [11], [1] * 20]
    params = [SamplingParams(max_tokens=30, ignore_eos=True, **kind) for kind in kinds]
    requests = [llm.engine.add(prompt, each) for prompt, each in zip(prompts, params, strict=False)]
    for _ in range(9):
        llm.engine.step()
    made = [len(completion.sequence.tokens) for request in requests for completion in request.completions]
    assert min(made) > 5
    requests.append(llm.engine.add(prompts[-1], params[0]))
    while llm.engine.has_work:
        llm.engine.step()
    for request in requests:
        assert isinstance(request.error, DeviceError)
        assert "toy_append, toy_fault, toy_logits" in str(request.error)
    llm.close()
    done = subprocess.run(
        [sys.executable, "-c", RESUMING, str(artifact), str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    gpu.reset()
    wanted = LLM(gpu_artifact(), num_pages=100).generate(prompts, [*params, params[0]])
    assert json.loads(done.stdout) == [[o.token_ids for o in output.outputs] for output in wanted]


@pytest.mark.parametrize("status", [46, 709, 999])  # taken by another, its context destroyed, gone without a name
def test_a_device_that_is_taken_away_leaves_the_requests(
    gpu: Driver, gpu_artifact: Callable[..., Path], tmp_path: Path, status: int
) -> None:
    artifact, file = gpu_artifact(), tmp_path / "j"
    llm = LLM(artifact, num_pages=100, journal=file)
    requests = [llm.engine.add([5 + i], ENDLESS) for i in range(3)]
    take(llm, 9)
    gpu.fail("cuGraphLaunch", status)
    while llm.engine.has_work:
        llm.engine.step()
    for request in requests:
        assert isinstance(request.error, DeviceError) and f"FAKE_ERROR_{status}" in str(request.error)
    llm.close()
    gpu.reset()
    again = LLM(artifact, num_pages=100, journal=file)
    assert all(len(entry.token_ids[0]) > 3 for entry in again.unfinished())
    assert [output.outputs[0].token_ids for output in again.recover()] == [
        expected_greedy([5 + i], 60) for i in range(3)
    ]
