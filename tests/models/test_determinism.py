"""deterministic=True: bitwise the same, whatever else is in the batch, however prompts are cut, with any threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny_models import random_tokens

import echoc
from echoc import LLM, SamplingParams

TOKENS = random_tokens(47, seed=6)
MODELS = [
    ("llama", "f32", "f32"), ("llama", "bf16", "bf16"), ("llama", "int8", "bf16"), ("llama", "int4", "bf16"),
    ("llama", "fp8", "bf16"), ("llama", "bf16", "f16"), ("llama", "int8", "int8"), ("llama", "int4", "fp8"),
    ("gemma2", "f32", None), ("qwen3_moe", "f32", None),
]  # fmt: skip


def in_chunks(program: Any, sizes: list[int], others: list[list[int]]) -> Any:
    """Logits of TOKENS read in chunks of the given sizes beside other sequences, which come first in the step."""
    neighbours = [program.create() for _ in others]
    instance = program.create()
    found, start = [], 0
    for i, size in enumerate(sizes):
        beside = [tokens[5 * i : 5 * i + 5] for tokens in others]
        rows = program.advance([*neighbours, instance], [*beside, TOKENS[start : start + size]], rows="all")
        found.append(rows[5 * len(others) :])
        start += size
    for each in (*neighbours, instance):
        each.release()
    return np.concatenate(found)


@pytest.mark.parametrize(("family", "weights_dtype", "kv_dtype"), MODELS)
def test_logits_are_bitwise_the_same(
    compiled: Callable[..., Any], family: str, weights_dtype: str, kv_dtype: str | None
) -> None:
    path = compiled(family, weights_dtype, kv_dtype=kv_dtype).path
    wanted = None
    for num_threads in (1, 2, 5):
        program = echoc.load(path, num_pages=64, num_threads=num_threads, deterministic=True, prefix_cache=False)
        for sizes in ([47], [1] * 47, [16, 3, 28], [9, 38]):
            for others in ([], [random_tokens(300, seed=7)], [random_tokens(300, seed=s) for s in (8, 9, 10)]):
                found = in_chunks(program, sizes, others)
                wanted = found if wanted is None else wanted
                np.testing.assert_array_equal(found, wanted, err_msg=f"{num_threads} {sizes} {len(others)}")


def test_generation_is_bitwise_the_same(compiled: Callable[..., Any]) -> None:
    """Log-probabilities and tokens alone, in a crowd, in a crowded pool, and read three tokens at a time."""
    path = compiled("llama", "bf16").path
    prompts = [random_tokens(10 + 7 * i, seed=i) for i in range(5)]
    params = SamplingParams(temperature=0.8, seed=5, max_tokens=30, ignore_eos=True, logprobs=3)

    def run(given: list[list[int]], **options: Any) -> list[Any]:
        llm = LLM(path, deterministic=True, **{"num_pages": 100, **options})
        return [output.outputs[0] for output in llm.generate(given, params)]

    together = run(prompts)
    for options in ({"num_pages": 9}, {"max_num_batched_tokens": 3}, {"num_threads": 1, "max_num_seqs": 2}):
        for one, other in zip(run(prompts, **options), together, strict=True):
            assert (one.token_ids, one.logprobs) == (other.token_ids, other.logprobs)
    for prompt, other in zip(prompts, together, strict=True):
        (one,) = run([prompt])
        assert (one.token_ids, one.logprobs) == (other.token_ids, other.logprobs)


def test_the_same_requests_give_the_same_tokens_without_it(compiled: Callable[..., Any]) -> None:
    path = compiled("llama", "bf16").path
    prompts = [random_tokens(10 + 7 * i, seed=i) for i in range(5)]
    params = SamplingParams(temperature=0.8, max_tokens=30, ignore_eos=True, logprobs=1)
    runs = [LLM(path, num_pages=100).generate(prompts, params) for _ in range(2)]
    for one, other in zip(*runs, strict=True):
        assert (one.outputs[0].token_ids, one.outputs[0].logprobs) == (
            other.outputs[0].token_ids,
            other.outputs[0].logprobs,
        )
