"""The faces: LLM, streaming, chat, and the asynchronous twin, over a hand-made artifact."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toy_model import build_artifact, expected_greedy
from toy_text import CHAT_TEMPLATE, EOS, tokenizer_json

import echoc
from echoc.errors import ArtifactError, DeviceError, RequestError
from echoc.runtime.async_llm import AsyncLLM
from echoc.runtime.llm import LLM
from echoc.runtime.sampling import SamplingParams
from echoc.runtime.tokenizer import Tokenizer

TOKENIZER = Tokenizer(tokenizer_json(), "toy")
GREEDY = SamplingParams(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    members = {
        "tokenizer.json": tokenizer_json().encode(),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
        "generation_config.json": b'{"temperature": 0.5, "top_k": 20, "eos_token_id": [0]}',
    }
    return build_artifact(tmp_path_factory.mktemp("toy"), **members)


@pytest.fixture(scope="module")
def llm(path: Path) -> LLM:
    return LLM(path, num_pages=200, num_threads=1)


def expected(prompt: str, count: int = 40) -> list[int]:
    return expected_greedy(TOKENIZER.encode(prompt), count, [EOS])


def test_texts_and_token_ids_are_prompts(llm: LLM) -> None:
    (one,) = llm.generate("the cat", GREEDY)
    assert one.prompt == "the cat"
    assert one.prompt_token_ids == TOKENIZER.encode("the cat")
    assert one.outputs[0].token_ids == expected("the cat")
    assert one.outputs[0].text == TOKENIZER.decode(expected("the cat"))
    assert one.finished
    assert [o.outputs[0].token_ids for o in llm.generate(["the cat", "a dog"], GREEDY)] == [
        expected("the cat"),
        expected("a dog"),
    ]
    (ids,) = llm.generate(TOKENIZER.encode("a dog"), GREEDY)
    assert ids.outputs[0].token_ids == expected("a dog")
    both = llm.generate([TOKENIZER.encode("a dog"), "the cat"], [GREEDY, SamplingParams(temperature=0, max_tokens=3)])
    assert [o.outputs[0].token_ids for o in both] == [expected("a dog"), expected("the cat", 3)]


def test_prompts_may_be_mappings_and_nothing_else(llm: LLM) -> None:
    outputs = llm.generate([{"prompt": "the cat"}, {"prompt_token_ids": TOKENIZER.encode("a dog")}], GREEDY)
    assert [o.outputs[0].token_ids for o in outputs] == [expected("the cat"), expected("a dog")]
    for bad in ({"text": "x"}, [b"bytes"], [[1.5]], [["a"]], [None], {"prompt": 5}):
        with pytest.raises(RequestError, match="wanted"):
            llm.generate(bad, GREEDY)  # type: ignore[arg-type]
    good, refused = llm.generate(["the cat", 5], GREEDY)  # type: ignore[list-item]
    assert good.outputs[0].token_ids == expected("the cat")
    assert "a prompt is 5, wanted" in str(refused.error)
    assert not llm.engine.requests


def test_the_models_own_settings_are_the_default(llm: LLM) -> None:
    params = llm.default_sampling_params(max_tokens=3)
    assert (params.temperature, params.top_k, params.max_tokens) == (0.5, 20, 3)
    assert llm.model.eos_token_ids == [0]


def test_a_stop_string_ends_the_text(llm: LLM) -> None:
    text = TOKENIZER.decode(expected_greedy(TOKENIZER.encode("the cat"), 40))
    stop = text[12:15]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop=stop)
    output = llm.generate("the cat", params)[0].outputs[0]
    assert output.text == text[: text.find(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)


def test_bad_words_never_occur(llm: LLM) -> None:
    for seed in range(20):
        params = SamplingParams(seed=seed, max_tokens=40, bad_words=["e", "th"], ignore_eos=True)
        tokens = llm.generate("the cat", params)[0].outputs[0].token_ids
        assert not {TOKENIZER.encode("e")[0], TOKENIZER.encode("th")[0]} & set(tokens)


def test_a_failing_request_leaves_the_others(llm: LLM) -> None:
    outputs = llm.generate(["the cat", "", [1] * 600, "a dog"], GREEDY)
    assert [output.error is None for output in outputs] == [True, False, False, True]
    assert [outputs[i].outputs[0].token_ids for i in (0, 3)] == [expected("the cat"), expected("a dog")]
    assert "is empty" in str(outputs[1].error)
    assert "context of 512" in str(outputs[2].error)


def test_when_all_fail_the_first_error_is_raised(llm: LLM) -> None:
    with pytest.raises(RequestError, match="is empty"):
        llm.generate("", GREEDY)
    with pytest.raises(RequestError, match="no prompt"):
        llm.generate([], GREEDY)
    with pytest.raises(RequestError, match="2 prompts and 1 sampling"):
        llm.generate(["a", "b"], [GREEDY])
    assert not llm.engine.requests


def test_a_stream_adds_up(llm: LLM) -> None:
    increments = list(llm.stream("the cat", GREEDY))
    assert [token for increment in increments for token in increment.token_ids] == expected("the cat")
    assert "".join(map(str, increments)) == TOKENIZER.decode(expected("the cat"))
    assert [increment.finish_reason for increment in increments].count(None) == len(increments) - 1


def test_streams_may_interleave_and_be_left(llm: LLM) -> None:
    first, second = llm.stream("the cat", GREEDY), llm.stream("a dog", GREEDY)
    tokens = next(first).token_ids + next(second).token_ids
    assert tokens == [expected("the cat")[0], expected("a dog")[0]]
    first.close()  # type: ignore[attr-defined]
    assert len(llm.engine.requests) == 1
    rest = [token for increment in second for token in increment.token_ids]
    assert rest == expected("a dog")[1:]
    assert not llm.engine.requests
    assert llm.engine.pool.num_sequences == 0


def test_a_stream_raises_its_requests_error(path: Path) -> None:
    llm = LLM(path, num_pages=3)
    with pytest.raises(RequestError, match="page pool") as caught:
        for _ in llm.stream("the cat", SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)):
            pass
    produced = caught.value.output.outputs[0].token_ids
    assert produced == expected_greedy(TOKENIZER.encode("the cat"), 100)[: len(produced)]


def test_chat_goes_through_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi <b>"}]
    assert llm.model.render_chat(messages) == "<bos>user:hi <b>;assistant:"
    assert llm.model.render_chat(messages, add_generation_prompt=False) == "<bos>user:hi <b>;"
    (output,) = llm.chat([{"role": "user", "content": "hi"}], GREEDY)
    prompt = TOKENIZER.encode("<bos>user:hi;assistant:")
    assert output.prompt_token_ids == prompt
    assert prompt[0] == 1
    assert output.outputs[0].token_ids == expected_greedy(prompt, 40, [EOS])
    assert len(llm.chat([[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]], GREEDY)) == 2


def test_a_conversation_that_the_template_refuses(llm: LLM) -> None:
    with pytest.raises(RequestError, match="no role robot"):
        llm.chat([{"role": "robot", "content": "hi"}])
    with pytest.raises(RequestError, match="no messages"):
        llm.chat([])
    with pytest.raises(RequestError, match="wanted a mapping"):
        llm.chat([{"content": "hi"}])


def test_a_template_cannot_leave_its_sandbox() -> None:
    from echoc.runtime.chat import render_chat

    with pytest.raises(RequestError, match="does not take"):
        render_chat("{{ messages.__class__.__mro__[1].__subclasses__() }}", [{"role": "user", "content": "x"}])


def test_without_a_tokenizer_token_ids_serve(tmp_path: Path) -> None:
    llm = LLM(build_artifact(tmp_path), num_pages=64)
    output = llm.generate([5, 6, 7], SamplingParams(temperature=0, max_tokens=9, logprobs=1))[0].outputs[0]
    assert output.token_ids == expected_greedy([5, 6, 7], 9, [EOS])
    assert output.text == ""
    with pytest.raises(RequestError, match="no tokenizer"):
        llm.generate("text")
    with pytest.raises(RequestError, match="no chat template"):
        llm.chat([{"role": "user", "content": "x"}])


def test_no_page_at_all_is_refused(path: Path) -> None:
    with pytest.raises(DeviceError, match="one page of 4 tokens takes 32"):
        LLM(path, kv_cache_bytes=31)
    assert LLM(path, kv_cache_bytes=64 * 32).engine.pool.num_pages == 64


def test_the_package_offers_its_names(path: Path) -> None:
    assert echoc.LLM is LLM
    assert echoc.SamplingParams is SamplingParams
    assert set(echoc.__all__) <= set(dir(echoc))
    with pytest.raises(ArtifactError, match="no artifact at"):
        echoc.load(path.with_name("absent.echo"))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = echoc.absent


def test_importing_the_runtime_brings_nothing_heavy() -> None:
    code = (
        "import sys, echoc.runtime.llm, echoc.runtime.async_llm, echoc.runtime.program\n"
        "heavy = ('torch', 'transformers', 'tokenizers', 'jinja2', 'rich', 'triton', 'safetensors')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_asynchronous_requests_share_steps(path: Path) -> None:
    async def one(engine: AsyncLLM, prompt: str) -> list[int]:
        return [token async for increment in engine.stream(prompt, GREEDY) for token in increment.token_ids]

    async def main() -> list[list[int]]:
        async with AsyncLLM(path, num_pages=200) as engine:
            texts = ["the cat", "a dog", "and then", "in the end"]
            found = await asyncio.gather(*(one(engine, text) for text in texts))
            assert found == [expected(text) for text in texts]
            last = None
            async for output in engine.generate("the cat", SamplingParams(n=2, seed=4, max_tokens=9)):
                last = output
            assert last is not None
            assert last.finished
            assert len(last.outputs) == 2
            with pytest.raises(RequestError, match="is empty"):
                await one(engine, "")
            chunks = [increment.text async for increment in engine.chat([{"role": "user", "content": "hi"}], GREEDY)]
            assert "".join(chunks) == TOKENIZER.decode(expected("<bos>user:hi;assistant:"))
        return found

    asyncio.run(asyncio.wait_for(main(), 60))


def test_leaving_an_asynchronous_stream_cancels_its_request(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)

    async def main() -> None:
        async with AsyncLLM(path, num_pages=200) as engine:
            step = engine.llm.model.stepper.step

            def slow_step(**arrays: Any) -> Any:  # no request ends before it is left
                time.sleep(0.002)
                return step(**arrays)

            monkeypatch.setattr(engine.llm.model.stepper, "step", slow_step)
            stream = engine.stream("the cat", endless)
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]

            begun = asyncio.Event()

            async def follow() -> None:
                async for _ in engine.stream("a dog", endless, request_id="dog"):
                    begun.set()

            task = asyncio.create_task(follow())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            aborted = engine.stream("the end", endless, request_id="end")
            await anext(aborted)
            await engine.abort("end")
            assert [i.finish_reason async for i in aborted][-1] == "abort"
            while engine.llm.engine.requests:
                await asyncio.sleep(0.001)
            assert engine.llm.engine.pool.num_sequences == 0

    asyncio.run(asyncio.wait_for(main(), 60))


def test_closing_the_asynchronous_engine_ends_its_thread(path: Path) -> None:
    engine = AsyncLLM(path, num_pages=20)
    engine.close()
    assert not engine._thread.is_alive()

    async def late() -> None:
        async for _ in engine.stream("x"):
            pass

    with pytest.raises(DeviceError, match="closed"):
        asyncio.run(late())
