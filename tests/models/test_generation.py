"""What `LLM` generates is what transformers would have, alone, forked, batched and preempted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import random_tokens

from echoc import LLM, SamplingParams

TOLERANCE = 1e-3  # of a log-probability in nats; logits are a few tens


def check_logprobs(model: Any, prompt: list[int], output: Any) -> None:
    """Every token's log-probability is the reference's for the same text."""
    wanted = model.checkpoint.logprobs(prompt + output.token_ids)[len(prompt) - 1 : -1]
    assert len(output.logprobs) == len(output.token_ids) > 0
    for token, entry, row in zip(output.token_ids, output.logprobs, wanted, strict=True):
        assert entry[token].logprob == pytest.approx(float(row[token]), abs=TOLERANCE)


def test_greedy_text_is_that_of_transformers(compiled: Callable[..., Any]) -> None:
    model = compiled("llama", tie_word_embeddings=False, spread=0.3)
    prompts = [random_tokens(length, seed=length) for length in (5, 40, 1)]
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    outputs = LLM(model.path, num_pages=256).generate(prompts, params)
    for prompt, output in zip(prompts, outputs, strict=True):
        wanted = model.checkpoint.model.generate(
            torch.tensor([prompt]), max_new_tokens=200, min_new_tokens=200, do_sample=False, eos_token_id=None
        )[0, len(prompt) :].tolist()
        assert output.outputs[0].token_ids == wanted
        assert len(set(wanted)) > 60


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_three_outputs_of_one_prompt(compiled: Callable[..., Any], family: str) -> None:
    model = compiled(family)
    prompt = random_tokens(23, seed=5)
    params = SamplingParams(n=3, temperature=1.0, seed=11, max_tokens=40, ignore_eos=True, logprobs=2)
    outputs = LLM(model.path, num_pages=64).generate([prompt], params)[0].outputs
    assert len({tuple(output.token_ids) for output in outputs}) == 3
    for output in outputs:
        check_logprobs(model, prompt, output)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_preempted_requests_lose_nothing(compiled: Callable[..., Any], family: str) -> None:
    """Six requests in a pool that holds two: all finish with the text that a large pool gives them."""
    model = compiled(family)
    prompts = [random_tokens(18 + 3 * i, seed=i) for i in range(6)]
    params = SamplingParams(temperature=0.7, seed=3, max_tokens=50, ignore_eos=True, logprobs=0)
    small, large = LLM(model.path, num_pages=12), LLM(model.path, num_pages=200)
    crowded, alone = small.generate(prompts, params), large.generate(prompts, params)
    assert small.engine.scheduler.num_preemptions > 0
    assert large.engine.scheduler.num_preemptions == 0
    for prompt, one, other in zip(prompts, crowded, alone, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        check_logprobs(model, prompt, one.outputs[0])


def test_a_shared_prefix_changes_nothing(compiled: Callable[..., Any]) -> None:
    model = compiled("llama")
    common = random_tokens(40, seed=9)
    llm = LLM(model.path, num_pages=64)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=0)
    for seed in range(3):
        prompt = common + random_tokens(5, seed=seed)
        output = llm.generate([prompt], params)[0]
        assert (output.num_cached_tokens >= 32) == (seed > 0)
        check_logprobs(model, prompt, output.outputs[0])


def test_prompt_logprobs(compiled: Callable[..., Any]) -> None:
    model = compiled("qwen3_moe")
    prompt = random_tokens(37, seed=2)
    output = LLM(model.path, num_pages=16).generate([prompt], SamplingParams(max_tokens=1, prompt_logprobs=0))[0]
    wanted = model.checkpoint.logprobs(prompt)
    assert output.prompt_logprobs[0] is None
    for i in range(1, len(prompt)):
        assert output.prompt_logprobs[i][prompt[i]].logprob == pytest.approx(wanted[i - 1, prompt[i]], abs=TOLERANCE)


def test_models_side_by_side(compiled: Callable[..., Any]) -> None:
    """Several artifacts in one process, each with its own kernels."""
    models = [compiled(family, *dtype) for family, *dtype in (("llama",), ("gemma2",), ("llama", "bf16"), ("gpt_oss",))]
    prompt = random_tokens(20)
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    alone = [LLM(model.path, num_pages=8).generate([prompt], params)[0].outputs[0].token_ids for model in models]
    together = [LLM(model.path, num_pages=8) for model in models]
    for llm, wanted in zip(together, alone, strict=True):
        assert llm.generate([prompt], params)[0].outputs[0].token_ids == wanted
