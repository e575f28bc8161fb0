"""The native sampler: what each parameter does, checked against numpy and by counting draws."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoc import _native
from echoc.errors import RequestError
from echoc.runtime.sampling import SamplingParams

VOCAB = 50
CHI_SQUARE_999 = 85.4  # the 99.9% point of chi-square with 49 degrees of freedom


def make(params: SamplingParams, *, seed: int = 1, prompt: Sequence[int] = (), end: Sequence[int] = ()) -> Any:
    spec = params.native(seed=seed if params.seed is None else params.seed, end_tokens=end, bad_sequences=[])
    return _native.Sampler(spec, np.array(prompt, dtype=np.int32))


def draw(sampler: Any, logits: np.ndarray) -> int:
    return int(_native.sample([sampler], logits[None].astype(np.float32), [0])[0][0])


def draws(params: SamplingParams, logits: np.ndarray, count: int = 4000) -> np.ndarray:
    """The counts of `count` draws from unchanging logits."""
    sampler = make(params)
    rows = logits[None].astype(np.float32)
    tokens = [_native.sample([sampler], rows, [0])[0][0] for _ in range(count)]
    return np.bincount(tokens, minlength=len(logits))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def random_logits(seed: int = 0, size: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size) * 1.5


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    kept = expected > 0
    assert counts[~kept].sum() == 0
    return float(((counts - expected)[kept] ** 2 / expected[kept]).sum())


def test_philox_gives_the_published_words() -> None:
    # Known answers of the Random123 distribution, philox4x32-10.
    ones = 0xFFFFFFFF
    assert _native.philox(0, [0, 0, 0, 0]) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert _native.philox(ones << 32 | ones, [ones] * 4) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert _native.philox(0x299F31D0 << 32 | 0xA4093822, pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_greedy_takes_the_first_of_equals() -> None:
    logits = np.zeros(VOCAB)
    logits[[7, 31]] = 2.0
    assert draw(make(SamplingParams(temperature=0)), logits) == 7


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = random_logits()
    counts = draws(SamplingParams(temperature=temperature), logits)
    probabilities = softmax(logits / temperature)
    common = probabilities * counts.sum() >= 1  # rarer tokens are pooled, as the test asks for
    pooled = np.append(counts[common], counts[~common].sum())
    assert chi_square(pooled, np.append(probabilities[common], probabilities[~common].sum())) < CHI_SQUARE_999


def test_draws_over_a_large_vocabulary_follow_the_softmax() -> None:
    logits = np.repeat(random_logits(3), 2000)  # 100000 tokens, in 50 groups of equal ones
    counts = draws(SamplingParams(), logits).reshape(VOCAB, -1).sum(axis=1)
    assert chi_square(counts, softmax(random_logits(3))) < CHI_SQUARE_999


def test_top_k_keeps_the_k_best() -> None:
    logits = random_logits()
    best = np.argsort(-logits)[:5]
    limited = np.full(VOCAB, -np.inf)
    limited[best] = logits[best]
    assert chi_square(draws(SamplingParams(top_k=5), logits), softmax(limited)) < CHI_SQUARE_999


def test_top_p_keeps_the_smallest_nucleus() -> None:
    logits = random_logits()
    order = np.argsort(-logits)
    size = int(np.searchsorted(np.cumsum(softmax(logits)[order]), 0.7)) + 1
    nucleus = np.full(VOCAB, -np.inf)
    nucleus[order[:size]] = logits[order[:size]]
    counts = draws(SamplingParams(top_p=0.7), logits)
    assert np.flatnonzero(counts).tolist() == sorted(order[:size].tolist())
    assert chi_square(counts, softmax(nucleus)) < CHI_SQUARE_999


def test_top_p_looks_beyond_its_first_candidates() -> None:
    counts = draws(SamplingParams(top_p=0.9), np.zeros(5000), count=6000)
    assert counts[:4500].sum() == 6000
    assert np.count_nonzero(counts) > 3000


def test_min_p_is_relative_to_the_best() -> None:
    logits = random_logits()
    kept = softmax(logits) >= 0.2 * softmax(logits).max()
    counts = draws(SamplingParams(min_p=0.2), logits)
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(kept))


def test_filters_combine_in_order() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05]))
    counts = draws(SamplingParams(top_k=3, top_p=0.8), logits)
    # Of the best three, renormalised to 0.47, 0.35, 0.18, the first two reach 0.8.
    assert np.flatnonzero(counts).tolist() == [0, 1]


def test_bans_bias_and_allowed_tokens() -> None:
    logits = random_logits()
    best, second = np.argsort(-logits)[:2].tolist()
    assert draw(make(SamplingParams(temperature=0, banned_token_ids=[best])), logits) == second
    assert draw(make(SamplingParams(temperature=0, logit_bias={11: 50.0})), logits) == 11
    assert draw(make(SamplingParams(temperature=0, allowed_token_ids=[3])), logits) == 3
    assert np.flatnonzero(draws(SamplingParams(allowed_token_ids=[3, 9]), logits, 200)).tolist() == [3, 9]


def test_bad_sequences_ban_their_last_token_in_place() -> None:
    spec = SamplingParams(temperature=0).native(seed=0, end_tokens=[], bad_sequences=[[4, 5]])
    sampler = _native.Sampler(spec, np.array([4], dtype=np.int32))
    logits = np.zeros(VOCAB)
    logits[5], logits[4], logits[6] = 3, 2, 1
    assert draw(sampler, logits) == 5  # the prompt's 4 is not the output's
    sampler.accept(4)
    assert draw(sampler, logits) == 4


def test_end_tokens_wait_for_min_tokens() -> None:
    sampler = make(SamplingParams(temperature=0, min_tokens=2), end=[9])
    logits = np.zeros(VOCAB)
    logits[9], logits[8] = 2, 1
    assert [draw(sampler, logits) for _ in range(3)] == [8, 8, 9]


def test_penalties_follow_their_formulas() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=0.5)
    sampler = make(params, prompt=[1])
    logits = np.array([1.0, 1.9, 1.2, -5.0])
    # 1.9 / 1.5 = 1.27 in the prompt; once written it is 1.27 - 0.25 - 0.5 = 0.52, then 1.2 wins, and so on.
    assert draw(sampler, logits) == 1
    assert draw(sampler, logits) == 2
    assert draw(sampler, logits) == 0
    assert draw(sampler, np.array([-1.0, -1.2, -9.0, -0.95])) == 3


def test_a_draw_depends_on_seed_and_position_only() -> None:
    logits = random_logits()
    straight = make(SamplingParams(seed=5))
    tokens = [draw(straight, logits) for _ in range(10)]
    resumed = make(SamplingParams(seed=5))
    for token in tokens[:6]:
        resumed.accept(token)
    assert [draw(resumed, logits) for _ in range(4)] == tokens[6:]
    other = make(SamplingParams(seed=6))
    assert [draw(other, logits) for _ in range(10)] != tokens
    stream = make(SamplingParams(seed=5)).fork(1)
    assert [draw(stream, logits) for _ in range(10)] != tokens


def test_logprobs_are_the_raw_log_softmax() -> None:
    logits = random_logits(7)
    sampler = make(SamplingParams(temperature=0.5, logprobs=4, banned_token_ids=[int(np.argmax(logits))]))
    token, entry = _native.sample([sampler], logits[None].astype(np.float32), [0])[0]
    assert entry is not None
    logprob, rank, top = entry
    expected = np.log(softmax(logits))
    assert logprob == pytest.approx(expected[token], abs=1e-5)
    assert rank == 1 + int((logits > logits[token]).sum())
    assert [t for t, _ in top] == np.argsort(-logits)[:4].tolist()
    np.testing.assert_allclose([value for _, value in top], np.sort(expected)[::-1][:4], atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_reported(bad: float, temperature: float) -> None:
    logits = random_logits()
    logits[17] = bad
    assert draw(make(SamplingParams(temperature=temperature)), logits) == -1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_left_is_reported(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, banned_token_ids=list(range(VOCAB)))
    assert draw(make(params), random_logits()) == -2


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([1e-4, 0.1, 1.0, 50.0]),
    top_k=st.integers(-1, 70),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    scale=st.sampled_from([0.0, 1.0, 1e4, 1e30]),
)
def test_every_draw_is_a_kept_token(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, scale: float
) -> None:
    logits = np.random.default_rng(seed % 1000).normal(size=VOCAB) * scale
    logits[::3] = -np.inf
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    token = draw(make(params), logits)
    assert token >= 0
    assert np.isfinite(logits[token])
    if top_k > 0:
        assert (logits > logits[token]).sum() < top_k


@pytest.mark.parametrize(
    "values",
    [
        {"n": 0},
        {"n": True},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"top_k": -2},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"presence_penalty": 3},
        {"frequency_penalty": -3},
        {"max_tokens": 0},
        {"min_tokens": -1},
        {"min_tokens": 5, "max_tokens": 4},
        {"logprobs": -1},
        {"prompt_logprobs": "all"},
        {"seed": 1.0},
        {"seed": 1 << 64},
        {"stop": [""]},
        {"stop": 5},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": ["a"]},
        {"logit_bias": {1: float("inf")}},
        {"logit_bias": {1: 101}},
        {"logit_bias": [1]},
        {"bad_words": "word"},
        {"allowed_token_ids": []},
        {"ignore_eos": 1},
    ],
)
def test_absurd_values_are_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(values))):
        SamplingParams(**values)


def test_token_ids_outside_of_the_vocabulary_are_refused() -> None:
    for values in ({"logit_bias": {99: 1.0}}, {"banned_token_ids": [50]}, {"stop_token_ids": [50]}, {"logprobs": 51}):
        with pytest.raises(RequestError, match="the vocabulary has 50 tokens"):
            SamplingParams(**values).check_vocabulary(VOCAB)  # type: ignore[arg-type]


@pytest.mark.parametrize("top_p", [0.3, 0.95, 0.999])
def test_a_wide_nucleus_is_exact(top_p: float) -> None:
    logits = np.random.default_rng(5).normal(size=20000).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    size = int(np.searchsorted(np.cumsum(softmax(logits.astype(np.float64))[order]), top_p)) + 1
    counts = draws(SamplingParams(top_p=top_p), logits, 3000)
    drawn = np.flatnonzero(counts)
    assert set(drawn) <= set(order[: size + 1])
    assert counts[order[: size // 2]].sum() / 3000 == pytest.approx(
        softmax(logits.astype(np.float64))[order[: size // 2]].sum() / top_p, abs=0.04
    )
