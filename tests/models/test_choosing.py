"""Steps that hand out the best logits alone give the tokens of steps that hand out all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny_models import random_tokens

from echoc import LLM, SamplingParams

# The tie of llama's weights, gemma2's softcap of the logits and gpt2's odd formats all ride on the last product.
MODELS = [
    ("llama", "f32", "f32"), ("llama", "bf16", "bf16"), ("llama", "int8", "bf16"), ("llama", "int4", "bf16"),
    ("llama", "fp8", "bf16"), ("gemma2", "f32", "f32"), ("gpt2", "f32", "f32"), ("qwen3_moe", "f32", "f32"),
]  # fmt: skip
WANTED = [
    SamplingParams(temperature=0, max_tokens=10),
    SamplingParams(temperature=0.9, top_k=1, seed=3, max_tokens=10, ignore_eos=True),
    SamplingParams(temperature=1.3, top_k=12, seed=4, max_tokens=10, ignore_eos=True),
    SamplingParams(temperature=2.0, top_k=64, top_p=0.7, min_p=0.05, seed=5, max_tokens=10, n=3, ignore_eos=True),
    SamplingParams(temperature=0, max_tokens=10, min_tokens=4),
]


class Counted:
    """A chooser that counts its steps."""

    def __init__(self, chooser: Any) -> None:
        self.chooser, self.most, self.steps = chooser, chooser.most, 0

    def choose(self, *arguments: Any) -> Any:
        self.steps += 1
        return self.chooser.choose(*arguments)


def run(path: Any, params: list[SamplingParams], *, chooses: bool, **options: Any) -> tuple[list[Any], int]:
    """The tokens of every output, and how many steps handed out the best logits alone."""
    llm = LLM(path, **{"num_pages": 200, "max_num_seqs": 16, **options})
    assert llm.model.stepper.chooser is not None
    counted = Counted(llm.model.stepper.chooser)
    llm.engine._chooser = counted if chooses else None
    outputs = llm.generate([random_tokens(4 + 5 * i, seed=i) for i in range(len(params))], params)
    assert not any(output.error for output in outputs)
    return [[(c.token_ids, c.finish_reason) for c in output.outputs] for output in outputs], counted.steps


@pytest.mark.parametrize(("family", "weights_dtype", "kv_dtype"), MODELS)
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_same_tokens_are_chosen(
    compiled: Callable[..., Any], family: str, weights_dtype: str, kv_dtype: str, deterministic: bool
) -> None:
    path = compiled(family, weights_dtype, kv_dtype=kv_dtype).path
    for num_threads in (1, 2, 3):
        params = [WANTED[:1], WANTED[2:3], WANTED * 2][num_threads % 3]
        options: dict[str, Any] = {"num_threads": num_threads, "deterministic": deterministic}
        wanted, none = run(path, params, chooses=False, **options)
        found, steps = run(path, params, chooses=True, **options)
        assert found == wanted
        assert none == 0
        assert steps > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"logprobs": 0}, {"prompt_logprobs": 1}, {"logit_bias": {3: 1.0}}, {"banned_token_ids": [4]},
        {"allowed_token_ids": [5, 6]}, {"repetition_penalty": 1.1}, {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 65},
        {"temperature": 1.0, "top_p": 0.9},
    ],
)  # fmt: skip
def test_what_needs_all_logits_gets_them(compiled: Callable[..., Any], changes: dict[str, Any]) -> None:
    """One request that needs them is enough; the others go on with the best alone once it has ended."""
    path = compiled("llama", "f32", kv_dtype="f32").path
    asking = SamplingParams(**{"temperature": 0, "max_tokens": 4, "ignore_eos": True, "seed": 1, **changes})
    _, steps = run(path, [asking], chooses=True)
    assert steps == (3 if "prompt_logprobs" in changes else 0)
    _, steps = run(path, [asking, SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)], chooses=True)
    assert steps == (8 if "prompt_logprobs" in changes else 5)


@pytest.mark.parametrize(("family", "weights_dtype", "kv_dtype"), MODELS)
def test_candidates_are_the_best_logits(
    compiled: Callable[..., Any], family: str, weights_dtype: str, kv_dtype: str
) -> None:
    """Of each row as many as are wanted of it, bit by bit those of a step that stores all, in rows read at once."""
    llm = LLM(compiled(family, weights_dtype, kv_dtype=kv_dtype).path, num_pages=64, num_threads=2)
    program, stepper, pool = llm.model.program, llm.model.stepper, llm.model.program.pool
    assert stepper.chooser is not None
    for count in (1, 2, 5, 9, 40):
        tokens = np.array(random_tokens(count, seed=count), np.int32)
        handle = pool.create(np.empty(0, np.int32), use_cache=False)[0]
        assert pool.append(handle, tokens) == []
        batch = pool.batch([handle], [0], [tokens], all_rows=True)
        logits = stepper.step(**batch).copy()
        wanted = np.array([(1, 5, 64, 0, 17)[i % 5] for i in range(count)], np.int32)
        found = stepper.chooser.choose(batch, wanted)
        for row, number in enumerate(wanted):
            best = sorted(zip(-logits[row], range(logits.shape[1]), strict=True))[:number]
            assert found.best(row)[0][:number] == [(token, float(-value)) for value, token in best]
        pool.release(handle)
    assert program.device.counters()[0]["steps"] == 2
