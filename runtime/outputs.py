"""What a request gives back."""

from dataclasses import dataclass, field

from echoc.errors import EchoError


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural log-probability of a token under the unmodified distribution; rank 1 is the likeliest token."""

    logprob: float
    rank: int
    decoded_token: str | None = None


Logprobs = dict[int, Logprob]


@dataclass(slots=True)
class CompletionOutput:
    """One of a request's n outputs.

    finish_reason: "stop" (an end token or stop string, which stop_reason names; None for the model's own end token),
    "length", "abort" or "error".
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[Logprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A request's prompt and its outputs. prompt_logprobs[0] is None: nothing comes before the first token.

    `error` is why the request failed, or None; `num_cached_tokens` of the prompt were found in the prefix cache.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[Logprobs | None] | None = None
    finished: bool = True
    error: EchoError | None = None
    num_cached_tokens: int = 0


@dataclass(slots=True)
class Increment:
    """What one step added to output `index` of a request; str() is its text."""

    request_id: str
    index: int
    text: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: EchoError | None = None

    def __str__(self) -> str:
        return self.text
