"""The engine over a toy model whose logits depend on all of its pages: scheduling must never change an output."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import PAGE_SIZE, VOCAB_SIZE, ToyStepper, expected_greedy, expected_logits

from echoc import _native
from echoc.errors import RequestError
from echoc.runtime.engine import Engine
from echoc.runtime.outputs import Increment
from echoc.runtime.pages import PagePool
from echoc.runtime.request import Request
from echoc.runtime.sampling import SamplingParams

EOS = 0


def make_engine(num_pages: int = 256, *, prefix_cache: bool = True, **options: Any) -> Engine:
    stepper = ToyStepper(num_pages)
    pool = PagePool(num_pages, PAGE_SIZE, prefix_cache=prefix_cache)
    return Engine(stepper, pool, eos_token_ids=[EOS], **options)


def drain(engine: Engine, limit: int = 5000) -> None:
    for _ in range(limit):
        if not engine.has_work:
            return
        engine.step()
    raise AssertionError("the engine does not come to an end")


def reference(prompt: Sequence[int], params: SamplingParams, index: int = 0) -> list[int]:
    """One output without pages, batches or an engine."""
    assert params.seed is not None or params.greedy
    ends = set(params.stop_token_ids or ()) | (set() if params.ignore_eos else {EOS})
    spec = params.native(seed=params.seed or 0, end_tokens=sorted(ends), bad_sequences=[])
    sampler = _native.Sampler(spec, np.array(prompt, dtype=np.int32)).fork(index)
    tokens = list(prompt)
    while len(tokens) - len(prompt) < (params.max_tokens or 0):
        token = _native.sample([sampler], expected_logits(tokens)[None], [0])[0][0]
        tokens.append(token)
        if token in ends and len(tokens) - len(prompt) >= params.min_tokens:
            break
    return tokens[len(prompt) :]


def assert_right(request: Request) -> None:
    output = request.output()
    assert output.error is None
    assert len(output.outputs) == request.params.n
    for completion in output.outputs:
        wanted = reference(request.prompt_token_ids, request.params, completion.index)
        assert completion.token_ids == wanted, f"output {completion.index} of {request.request_id}"
        ended = completion.token_ids[-1] in request.end_tokens and len(wanted) >= request.params.min_tokens
        assert completion.finish_reason == ("stop" if ended else "length")


def assert_clean(engine: Engine) -> None:
    """Nothing is left behind once all is done."""
    assert engine.pool.num_sequences == 0
    assert engine.pool.num_available == engine.pool.num_pages
    assert not engine.requests
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting


def prompts(count: int, seed: int = 0, longest: int = 60) -> list[list[int]]:
    """Prompts of many lengths, of which half begin alike."""
    random = np.random.default_rng(seed)
    common = random.integers(1, VOCAB_SIZE, longest).tolist()
    out = []
    for i in range(count):
        tokens = random.integers(1, VOCAB_SIZE, int(random.integers(1, longest))).tolist()
        shared = int(random.integers(0, longest - len(tokens) + 1)) if i % 2 else 0
        out.append(common[:shared] + tokens)
    return out


def mixed_params(i: int) -> SamplingParams:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": i},
        {"top_k": 7, "seed": i, "n": 3},
        {"top_p": 0.8, "seed": i, "repetition_penalty": 1.3, "frequency_penalty": 0.2},
        {"min_p": 0.1, "seed": i, "min_tokens": 12},
    ]
    return SamplingParams(**({"max_tokens": 5 + 7 * (i % 5)} | kinds[i % len(kinds)]))


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("budget", [1, 3, 7, 64])
@pytest.mark.parametrize("num_pages", [26, 40, 400])
def test_outputs_are_those_of_the_model_alone(num_pages: int, budget: int, prefix_cache: bool) -> None:
    engine = make_engine(num_pages, prefix_cache=prefix_cache, max_num_batched_tokens=budget, max_num_seqs=9)
    requests = [engine.add(prompt, mixed_params(i)) for i, prompt in enumerate(prompts(14))]
    drain(engine)
    for request in requests:
        assert_right(request)
    assert_clean(engine)


def test_a_small_pool_preempts_and_a_large_one_does_not() -> None:
    small, large = make_engine(26, max_num_seqs=9), make_engine(400, max_num_seqs=9)
    for engine in (small, large):
        for prompt in prompts(8):
            engine.add(prompt, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
        drain(engine)
    assert small.scheduler.num_preemptions > 0
    assert large.scheduler.num_preemptions == 0


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_traffic_gives_the_same_outputs(data: st.DataObject) -> None:
    """Requests arrive, and some are cancelled, at any time, under any pool and budget."""
    num_pages = data.draw(st.integers(6, 40), "pages")
    engine = make_engine(
        num_pages,
        prefix_cache=data.draw(st.booleans(), "prefix cache"),
        max_num_batched_tokens=data.draw(st.integers(1, 64), "budget"),
        max_num_seqs=data.draw(st.integers(1, 12), "sequences"),
    )
    longest = num_pages * PAGE_SIZE // 2
    arriving = prompts(data.draw(st.integers(1, 10), "requests"), data.draw(st.integers(0, 99), "seed"), longest)
    requests, aborted = [], set()
    for i, prompt in enumerate(arriving):
        params = mixed_params(i)
        params.max_tokens = min(params.max_tokens or 1, num_pages * PAGE_SIZE - len(prompt))
        params.min_tokens = min(params.min_tokens, params.max_tokens)
        requests.append(engine.add(prompt, params))
        for _ in range(data.draw(st.integers(0, 4), "steps between")):
            engine.step()
        if data.draw(st.integers(0, 5), "abort") == 0:
            victim = requests[data.draw(st.integers(0, i), "victim")]
            if not victim.finished:
                aborted.add(victim.request_id)
            engine.abort(victim.request_id)
    drain(engine)
    for request in requests:
        if request.request_id not in aborted:
            assert_right(request)
            continue
        for completion in request.output().outputs:
            wanted = reference(request.prompt_token_ids, request.params, completion.index)
            assert completion.token_ids == wanted[: len(completion.token_ids)]
    assert_clean(engine)


def test_a_shared_prefix_is_computed_once() -> None:
    engine = make_engine()
    prefix = list(range(1, 41))
    first = engine.add([*prefix, 50], SamplingParams(temperature=0, max_tokens=4))
    drain(engine)
    second = engine.add([*prefix, 60], SamplingParams(temperature=0, max_tokens=4))
    drain(engine)
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 40)
    assert_right(first)
    assert_right(second)


def test_salts_keep_prefixes_apart() -> None:
    engine = make_engine()
    found = []
    for salt in ("a", "b", "a"):
        request = engine.add(list(range(1, 30)), SamplingParams(temperature=0, max_tokens=1, cache_salt=salt))
        drain(engine)
        found.append(request.num_cached_tokens)
    assert found == [0, 0, 28]


def test_forks_share_the_prompt() -> None:
    engine = make_engine(num_pages=40)
    request = engine.add(list(range(1, 90)), SamplingParams(n=6, seed=3, max_tokens=8, ignore_eos=True))
    while len(request.completions) == 1:
        engine.step()
    used = engine.pool.num_pages - engine.pool.num_available
    assert used <= 23 + 6  # the prompt's 23 pages once, and at most one tail per output
    drain(engine)
    assert_right(request)
    assert len({tuple(c.token_ids) for c in request.output().outputs}) > 1
    assert engine.scheduler.num_preemptions == 0


def test_more_outputs_than_places_wait_for_theirs() -> None:
    engine = make_engine(max_num_seqs=2)
    request = engine.add([5, 6, 7], SamplingParams(n=5, seed=3, max_tokens=9))
    drain(engine)
    assert_right(request)


def test_one_that_outgrows_the_pool_fails_alone() -> None:
    engine = make_engine(num_pages=8)  # 32 tokens
    short = engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    long = engine.add([4, 5, 6], SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))
    later = engine.add([7, 8, 9], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    drain(engine)
    assert_right(short)
    assert_right(later)
    assert isinstance(long.error, RequestError)
    assert "does not fit into the page pool" in str(long.error)
    output = long.output().outputs[0]
    assert output.finish_reason == "error"
    assert output.token_ids == expected_greedy([4, 5, 6], 60)[: len(output.token_ids)]
    assert_clean(engine)


def test_outputs_of_one_request_that_outgrow_the_pool_together_take_turns() -> None:
    engine = make_engine(num_pages=8)
    request = engine.add([4, 5, 6], SamplingParams(n=3, seed=1, max_tokens=20, ignore_eos=True))
    drain(engine)
    assert_right(request)
    assert engine.scheduler.num_preemptions > 0


def test_refusals_say_why() -> None:
    engine = make_engine(num_pages=8)
    params = SamplingParams()
    for prompt, words in (
        ([], "the prompt is empty"),
        ("", "the prompt is empty"),
        ("text", "no tokenizer"),
        ([VOCAB_SIZE], f"the vocabulary has 0..{VOCAB_SIZE - 1}"),
        ([-1], "the prompt has token -1"),
        ([1] * 33, "needs 9 pages of 4 tokens, the page pool has 8"),
        ([1] * 512, "leaves no room for output in the model's context of 512"),
    ):
        with pytest.raises(RequestError, match=words):
            engine.add(prompt, params)
    with pytest.raises(RequestError, match="has no tokenizer: use stop_token_ids"):
        engine.add([1], SamplingParams(stop="x"))
    engine.add([1], params, request_id="twice")
    with pytest.raises(RequestError, match="running already"):
        engine.add([1], params, request_id="twice")
    drain(engine)
    assert_clean(engine)


def test_logits_that_are_not_finite_fail_one_request() -> None:
    engine = make_engine()
    engine.stepper.poison = {90}  # type: ignore[attr-defined]
    good = engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=9))
    bad = engine.add([1, 2, 90], SamplingParams(temperature=0, max_tokens=9))
    drain(engine)
    assert_right(good)
    assert "not finite" in str(bad.error)
    assert_clean(engine)


def test_banning_everything_fails_one_request() -> None:
    engine = make_engine()
    good = engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=9))
    bad = engine.add([1, 2, 3], SamplingParams(banned_token_ids=list(range(VOCAB_SIZE))))
    drain(engine)
    assert_right(good)
    assert "every token is banned" in str(bad.error)
    assert_clean(engine)


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on() -> None:
    engine = make_engine()
    engine.stepper.fail_at = 2  # type: ignore[attr-defined]
    lost = engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    drain(engine)
    assert "the device went away" in str(lost.error)
    assert len(lost.output().outputs[0].token_ids) == 2
    later = engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    drain(engine)
    assert_right(later)
    assert_clean(engine)


def test_stop_tokens_and_ignored_ends() -> None:
    free = expected_greedy([5, 6], 30)
    stop = free[10]
    engine = make_engine()
    request = engine.add([5, 6], SamplingParams(temperature=0, max_tokens=30, stop_token_ids=[stop], ignore_eos=True))
    drain(engine)
    output = request.output().outputs[0]
    assert output.token_ids == free[: free.index(stop) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)


def test_the_context_bounds_the_output() -> None:
    engine = make_engine()
    prompt = [1] * 505
    request = engine.add(prompt, SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
    drain(engine)
    output = request.output().outputs[0]
    assert output.token_ids == expected_greedy(prompt, 7)
    assert output.finish_reason == "length"


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


@pytest.mark.parametrize("budget", [3, 64])
@pytest.mark.parametrize("prompt_length", [1, 2, 45])
def test_logprobs_of_prompt_and_output(prompt_length: int, budget: int) -> None:
    engine = make_engine(max_num_batched_tokens=budget)
    prompt = prompts(1, longest=46)[0] * 45
    prompt = prompt[:prompt_length]
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=3, ignore_eos=True)
    for _ in range(2):  # the second time the prefix is cached, but its logits are wanted all the same
        request = engine.add(prompt, params)
        drain(engine)
        output = request.output()
        assert output.prompt_logprobs is not None
        assert len(output.prompt_logprobs) == prompt_length
        assert output.prompt_logprobs[0] is None
        tokens = prompt + output.outputs[0].token_ids
        entries = output.prompt_logprobs[1:] + (output.outputs[0].logprobs or [])
        assert len(entries) == len(tokens) - 1
        total = 0.0
        for position, entry in enumerate(entries, start=1):
            wanted = log_softmax(expected_logits(tokens[:position]))
            assert entry is not None
            assert entry[tokens[position]].logprob == pytest.approx(wanted[tokens[position]], abs=1e-4)
            best = np.argsort(-wanted)[: 3 if position < prompt_length else 2]
            assert set(entry) == {tokens[position], *best.tolist()}
            assert entry[int(best[0])].rank == 1
            total += entry[tokens[position]].logprob if position >= prompt_length else 0.0
        assert output.outputs[0].cumulative_logprob == pytest.approx(total, abs=1e-4)


def test_increments_add_up_and_end_once() -> None:
    engine = make_engine()
    seen: list[Increment] = []
    request = engine.add([3, 4], SamplingParams(n=2, seed=5, max_tokens=7), listener=seen.append)
    drain(engine)
    for completion in request.output().outputs:
        mine = [increment for increment in seen if increment.index == completion.index]
        assert [token for increment in mine for token in increment.token_ids] == completion.token_ids
        assert [increment.finish_reason for increment in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == completion.finish_reason


def test_a_listener_may_cancel_its_own_request() -> None:
    engine = make_engine()
    others = engine.add([9, 9], SamplingParams(temperature=0, max_tokens=9))
    request = engine.add(
        [3, 4], SamplingParams(n=3, seed=5, max_tokens=50), request_id="x", listener=lambda _: engine.abort("x")
    )
    drain(engine)
    assert request.finished
    assert {c.finish_reason for c in request.completions} == {"abort"}
    assert_right(others)
    assert_clean(engine)


def test_unseeded_requests_repeat_from_run_to_run_but_not_within_one() -> None:
    runs = []
    for _ in range(2):
        engine = make_engine(seed=11)
        requests = [engine.add([1, 2, 3], SamplingParams(max_tokens=12, ignore_eos=True)) for _ in range(2)]
        drain(engine)
        runs.append([request.output().outputs[0].token_ids for request in requests])
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


def test_decoding_goes_on_while_a_long_prompt_is_read() -> None:
    engine = make_engine(max_num_batched_tokens=8)
    first = engine.add([1, 2], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    engine.step()
    engine.add([5] * 200, SamplingParams(temperature=0, max_tokens=1))
    before = len(first.completions[0].sequence.tokens)
    for _ in range(10):
        engine.step()
    assert len(first.completions[0].sequence.tokens) == before + 10


def test_the_earliest_request_is_never_preempted() -> None:
    engine = make_engine(num_pages=20, max_num_seqs=8)
    requests = [
        engine.add([i + 1] * 9, SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)) for i in range(6)
    ]
    order: list[str] = []
    while engine.has_work:
        order.extend(request.request_id for request in engine.step())
    assert requests[0].completions[0].sequence.preemptions == 0
    assert order == [request.request_id for request in requests]
    for request in requests:
        assert_right(request)
