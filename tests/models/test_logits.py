"""f32 artifacts give the logits of transformers, however the tokens reach them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny_models import CONFIGS, random_tokens, relative_error

import echoc

TOLERANCE = 1e-4
TOKENS = random_tokens(53)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest, compiled: Callable[..., Any]) -> Any:
    return compiled(request.param)


@pytest.fixture(scope="module")
def program(model: Any) -> Any:
    return echoc.load(model.path, num_pages=64, num_threads=2, prefix_cache=False)


@pytest.mark.parametrize("chunks", [[53], [1] * 53, [7, 1, 1, 20, 3, 21], [16, 16, 16, 5]])
def test_any_way_of_reading_a_sequence(model: Any, program: Any, chunks: list[int]) -> None:
    found = []
    with program.create() as instance:
        start = 0
        for size in chunks:
            found.append(instance.step(TOKENS[start : start + size], rows="all"))
            start += size
    assert relative_error(np.concatenate(found), model.checkpoint.logits(TOKENS)) < TOLERANCE


def test_ragged_batches(model: Any, program: Any) -> None:
    """Five sequences of different lengths, prompts and single tokens mixed in one step."""
    sequences = [random_tokens(length, seed=length) for length in (3, 31, 17, 40, 1)]
    cuts = [[1, 2], [30, 1], [5, 12], [33, 7], [1]]
    instances = [program.create() for _ in sequences]
    found: list[list[Any]] = [[] for _ in sequences]
    for step in range(2):
        taking = [i for i, cut in enumerate(cuts) if step < len(cut)]
        parts = [sequences[i][sum(cuts[i][:step]) : sum(cuts[i][: step + 1])] for i in taking]
        rows = program.advance([instances[i] for i in taking], parts, rows="all")
        for i, part in zip(taking, np.split(rows, np.cumsum([len(p) for p in parts])[:-1]), strict=True):
            found[i].append(part)
    for instance, tokens, parts in zip(instances, sequences, found, strict=True):
        instance.release()
        assert relative_error(np.concatenate(parts), model.checkpoint.logits(tokens)) < TOLERANCE


def test_forks_go_their_own_ways(model: Any, program: Any) -> None:
    """A sequence forked inside a page goes on in three ways, one of them forked again."""
    common = random_tokens(21, seed=1)
    tails = [random_tokens(18, seed=seed) for seed in (2, 3, 4)]
    first = program.create()
    first.step(common)
    forks = [first, first.fork(), first.fork()]
    found = [fork.step(tail[:9], rows="all") for fork, tail in zip(forks, tails, strict=True)]
    again = forks[2].fork()
    rows = program.advance([*forks, again], [tail[9:] for tail in [*tails, tails[0]]], rows="all")
    ends = np.split(rows, 4)
    for fork, tail, parts in zip(forks, tails, zip(found, ends[:3], strict=True), strict=True):
        fork.release()
        wanted = model.checkpoint.logits(common + tail)[21:]
        assert relative_error(np.concatenate(parts), wanted) < TOLERANCE
    again.release()
    wanted = model.checkpoint.logits(common + tails[2][:9] + tails[0][9:])[30:]
    assert relative_error(ends[3], wanted) < TOLERANCE
    assert program.pool.num_available == 64
