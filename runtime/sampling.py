"""What a request asks for: sampling parameters under the names that vLLM's users know, checked when they are made."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from echoc import _native
from echoc.errors import RequestError

_GREEDY_BELOW = 1e-5  # temperatures below only differ from greedy by overflow
_MAX_LOGIT_BIAS = 100.0
_INT_MAX = (1 << 31) - 1
RECORD = 16  # numbers with which a GPU is asked for a token


@dataclass(kw_only=True)
class SamplingParams:
    """How the tokens of a request are chosen and when it ends. A bad value raises RequestError, which names the field.

    n: outputs per prompt. temperature: 0 is greedy. top_k: 0 or -1 is off. top_p, min_p: 1 and 0 are off; min_p is
    relative to the likeliest token's probability. repetition_penalty acts on tokens of prompt and output (1 is off),
    presence_penalty and frequency_penalty on the output's (0 is off). logit_bias is added per token id.
    banned_token_ids never occur, bad_words are strings that never occur; allowed_token_ids leaves only those.
    seed makes the draws repeatable whatever else the engine does. stop: strings that end the text, left out of it
    unless include_stop_str_in_output; stop_token_ids end it as well. No end before min_tokens, none later than
    max_tokens (None: the context). logprobs: so many likeliest tokens' log-probabilities per output token (0: only the
    sampled token's), prompt_logprobs the same for the prompt; both of the unmodified distribution.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    bad_words: Sequence[str] | None = None
    banned_token_ids: Sequence[int] | None = None
    allowed_token_ids: Sequence[int] | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True
    cache_salt: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _integer("n", self.n, 1, 4096)
        _number("temperature", self.temperature, 0, math.inf)
        _integer("top_k", self.top_k, -1, 1 << 31)
        _number("top_p", self.top_p, 0, 1, open_low=True)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, math.inf, open_low=True)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        _integer("min_tokens", self.min_tokens, 0, 1 << 31)
        for name, low in (("max_tokens", 1), ("logprobs", 0), ("prompt_logprobs", 0)):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), low, 1 << 31)
        if self.seed is not None:
            _integer("seed", self.seed, -(1 << 63), (1 << 64) - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens is {self.min_tokens}, more than max_tokens, which is {self.max_tokens}")
        self.stop = _strings("stop", [self.stop] if isinstance(self.stop, str) else self.stop)
        self.bad_words = _strings("bad_words", self.bad_words)
        for name in ("stop_token_ids", "banned_token_ids", "allowed_token_ids"):
            setattr(self, name, _token_ids(name, getattr(self, name)))
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids is empty, so no token could be chosen; leave it out or list some")
        self._check_bias()
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "detokenize"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is {getattr(self, name)!r}, wanted True or False")

    def _check_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias is {self.logit_bias!r}, wanted a mapping of token ids to numbers")
        for token, bias in self.logit_bias.items():
            _integer("logit_bias's token id", token, 0, (1 << 31) - 1)
            _number(f"logit_bias[{token}]", bias, -_MAX_LOGIT_BIAS, _MAX_LOGIT_BIAS)

    @property
    def greedy(self) -> bool:
        return self.temperature < _GREEDY_BELOW

    @property
    def stop_strings(self) -> list[str]:
        return list(self.stop or ())

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises RequestError for a token id or a count outside of the model's vocabulary."""
        named = {
            "logit_bias": self.logit_bias,
            "banned_token_ids": self.banned_token_ids,
            "allowed_token_ids": self.allowed_token_ids,
            "stop_token_ids": self.stop_token_ids,
        }
        for name, tokens in named.items():
            for token in tokens or ():
                if token >= vocab_size:
                    raise RequestError(f"{name} names token {token}, the vocabulary has {vocab_size} tokens")
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(self, name) or 0) > vocab_size:
                raise RequestError(f"{name} is {getattr(self, name)}, the vocabulary has {vocab_size} tokens")

    def native(self, *, seed: int, end_tokens: Sequence[int], bad_sequences: Sequence[Sequence[int]]) -> Any:
        """The native form, with what the engine adds: the seed, the tokens that end a text, bad words as tokens."""
        spec = _native.SamplingSpec()
        spec.temperature = 0.0 if self.greedy else self.temperature
        spec.top_k = min(max(self.top_k, 0), _INT_MAX)
        spec.top_p = self.top_p
        spec.min_p = self.min_p
        spec.repetition_penalty = self.repetition_penalty
        spec.presence_penalty = self.presence_penalty
        spec.frequency_penalty = self.frequency_penalty
        spec.min_tokens = self.min_tokens
        spec.logprobs = -1 if self.logprobs is None else self.logprobs
        spec.seed = seed & ((1 << 64) - 1)
        spec.logit_bias = [(int(token), float(bias)) for token, bias in (self.logit_bias or {}).items()]
        spec.banned = list(self.banned_token_ids or ())
        spec.allowed = list(self.allowed_token_ids or ())
        spec.bad_sequences = [list(sequence) for sequence in bad_sequences if sequence]
        spec.end_tokens = list(end_tokens)
        return spec

    @property
    def plain(self) -> bool:
        """Whether tokens are drawn from the logits as they are, and nothing but the token is wanted."""
        edits = (self.logit_bias, self.bad_words, self.banned_token_ids, self.allowed_token_ids)
        penalties = (self.repetition_penalty - 1, self.presence_penalty, self.frequency_penalty)
        return not any(edits) and not any(penalties) and self.logprobs is None and self.prompt_logprobs is None

    def record(self, *, seed: int, stream: int, draw: int, row: int) -> npt.NDArray[np.int32]:
        """i32 [16]: what the kernels that choose tokens on a GPU take (compiler/targets/gpu/sample.py)."""
        out = np.zeros(RECORD, np.int32)
        scale = np.float32(0)
        with np.errstate(divide="ignore", over="ignore"):
            if not self.greedy:
                scale = max(np.float32(1) / np.float32(self.temperature), np.finfo(np.float32).tiny)
            floor = np.log(np.float32(self.min_p))
        out[[1, 3, 4]] = np.array([scale, self.top_p, floor], np.float32).view(np.int32)
        out[[5, 6]] = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint32).view(np.int32)
        out[[0, 2, 7, 8]] = row, min(max(self.top_k, 0), _INT_MAX), stream, draw
        return out


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{name} is {value!r}, wanted a whole number from {low} to {high}")


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high or (open_low and value == low):
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise RequestError(
            f"{name} is {value!r}, wanted a number {'above' if open_low else 'of at least'} {low:g}{upper}"
        )


def _strings(name: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RequestError(f"{name} is {value!r}, wanted a list of strings")
    for item in value:
        if not isinstance(item, str) or not item:
            raise RequestError(f"{name} has {item!r}, wanted strings of at least one character")
    return list(value)


def _token_ids(name: str, value: Any) -> list[int] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RequestError(f"{name} is {value!r}, wanted a list of token ids")
    for token in value:
        _integer(f"{name}'s entry", token, 0, (1 << 31) - 1)
    return list(value)
