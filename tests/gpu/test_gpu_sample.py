"""Tokens chosen on the device are those that the CPU's sampler chooses, whatever is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from interpreter import launch

from echoc import _native
from echoc.compiler.ir.types import dim_value
from echoc.compiler.targets.gpu import sample
from echoc.compiler.targets.gpu.render import Device
from echoc.runtime.sampling import SamplingParams

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a few hundred logits take several blocks."""
    monkeypatch.setattr(sample, "PART", 64)
    monkeypatch.setattr(sample, "BLOCK", 128)


def record(params: SamplingParams, seed: int, stream: int, draw: int, row: int) -> Array:
    return params.record(seed=seed, stream=stream, draw=draw, row=row)


def memory(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def device_tokens(logits: Array, records: list[Array], feed: int = 0, positions: Array | None = None) -> list[Array]:
    """What the kernels leave in sampled, tokens and positions."""
    rows, count = logits.shape
    draws, parts = len(records), sample.parts(count)
    held = {
        "logits": memory(logits.astype(np.float32)),
        "peaks": memory(np.full(rows * parts, np.nan, np.float32)),
        "places": memory(np.full(rows * parts, 1 << 30, np.int32)),
        "params": memory(np.stack(records)),
        "tokens": memory(np.full(draws, -7, np.int32)),
        "positions": memory(np.zeros(draws, np.int32) if positions is None else positions),
        "sampled": memory(np.full(draws, -7, np.int32)),
    }
    symbols = {"num_rows": rows, "num_draws": draws, "feed": feed}
    peaks, chosen = sample.peaks(count, Device("cuda")), sample.sample(count, Device("cuda"))
    launch(peaks, [held[name] for name in ("logits", "peaks", "places")], symbols)
    launch(chosen, list(held.values()), symbols)
    return [held[name].numpy().view(np.int32) for name in ("sampled", "tokens", "positions")]


def cpu_token(logits: Array, params: SamplingParams, seed: int, stream: int, draw: int) -> int:
    spec = params.native(seed=seed, end_tokens=[], bad_sequences=[])
    sampler = _native.Sampler(spec, np.array([1], np.int32)).fork(stream)
    for _ in range(draw):
        sampler.accept(0)
    return int(_native.sample([sampler], logits[None].astype(np.float32), [0])[0][0])


def test_the_highest_logit_wins_and_of_equals_the_first() -> None:
    generator = np.random.default_rng(0)
    logits = np.round(generator.standard_normal((12, 300)) * 2).astype(np.float32)
    logits[3, 17] = np.nan
    logits[4, 299] = np.inf
    logits[5] = -np.inf
    logits[6, :200] = -np.inf
    greedy = SamplingParams(temperature=0)
    found = device_tokens(logits, [record(greedy, 1, 0, 0, row) for row in range(12)])[0]
    wanted = [cpu_token(row, greedy, 1, 0, 0) for row in logits]
    assert found.tolist() == wanted
    assert wanted[3:6] == [-1, -1, -2]


CASES = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.8, "min_p": 0.1},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 299},
    {"top_k": 1 << 31, "temperature": 1e300},
    {"top_p": 0.05},
    {"top_p": 0.9},
    {"top_p": 0.98, "temperature": 2.5},
    {"top_p": 0.9995, "temperature": 3.0},  # more than the 256 tokens that are drawn from by weight
    {"top_k": 20, "top_p": 0.8, "temperature": 0.6, "min_p": 0.01},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_draws_are_those_of_the_cpu(case: dict[str, Any], ties: bool) -> None:
    generator = np.random.default_rng(len(str(case)))
    logits = (generator.standard_normal((6, 300)) * 3).astype(np.float32)
    if ties:
        logits = np.round(logits)
    logits[2, 50:280] = -np.inf
    params = SamplingParams(**case)
    seed = 0xFEDCBA9876543210
    asked = [(i % 6, i % 3, i * 7) for i in range(8)]  # rows, streams, draws
    found = device_tokens(logits, [record(params, seed, stream, draw, row) for row, stream, draw in asked])[0]
    wanted = [cpu_token(logits[row], params, seed, stream, draw) for row, stream, draw in asked]
    assert found.tolist() == wanted


@pytest.mark.parametrize(("case", "draws"), [({}, 200), ({"top_k": 6, "top_p": 0.95}, 50)], ids=str)
def test_draws_follow_the_distribution(case: dict[str, Any], draws: int) -> None:
    logits = np.array([[1.5, -0.5, 0.3, 2.0, -1.0, 0.9, 0.0, 1.1, -3.0, 0.5]], np.float32)
    params = SamplingParams(**case)
    found = device_tokens(logits, [record(params, 5, 0, draw, 0) for draw in range(draws)])[0]
    weights = np.exp(logits[0].astype(np.float64))
    order = np.argsort(-weights)
    kept = order[: case.get("top_k", 10)]
    if "top_p" in case:
        sums = np.cumsum(weights[kept]) / weights[kept].sum()
        kept = kept[: int(np.searchsorted(sums, case["top_p"])) + 1]
    assert set(found.tolist()) <= set(kept.tolist())
    expected = weights[kept] / weights[kept].sum() * found.size
    counts = np.array([(found == token).sum() for token in kept])
    assert ((counts - expected) ** 2 / expected).sum() < 35  # chi-square: beyond the 1e-4 quantile of 9 degrees


def test_the_next_step_is_fed() -> None:
    generator = np.random.default_rng(4)
    logits = generator.standard_normal((3, 200)).astype(np.float32)
    logits[1, 3] = np.nan
    params = SamplingParams(temperature=1.3, top_k=30)
    positions = np.array([11, 5, 0], np.int32)
    records = [record(params, 9, 0, 2 - positions[row], row) for row in range(3)]
    sampled, tokens, after = device_tokens(logits, records, feed=1, positions=positions.copy())
    wanted = [cpu_token(row, params, 9, 0, 2) for row in logits]
    assert sampled.tolist() == wanted and wanted[1] == -1
    assert tokens.tolist() == [wanted[0], 0, wanted[2]]
    assert after.tolist() == [12, 6, 1]


def test_grids_cover_rows_and_parts() -> None:
    symbols = {"num_rows": 3, "num_draws": 5, "feed": 0}
    kernel = sample.peaks(300, Device("rocm", 64))
    assert [-(-dim_value(size, symbols) // tile) for size, tile in kernel.grid] == [3, 5]
    assert sample.sample(300, Device("rocm", 64)).symbols == ("feed",)
