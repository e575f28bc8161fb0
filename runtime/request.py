"""A request while the engine works on it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from echoc import _native
from echoc.errors import EchoError
from echoc.runtime import scheduler
from echoc.runtime.outputs import CompletionOutput, Increment, Logprobs, RequestOutput
from echoc.runtime.pages import IntArray
from echoc.runtime.sampling import SamplingParams
from echoc.runtime.tokenizer import Detokenizer


@dataclass(eq=False, slots=True)
class Completion:
    """One of a request's outputs while it is made."""

    index: int
    sequence: scheduler.Sequence
    sampler: _native.Sampler
    detokenizer: Detokenizer | None
    logprobs: list[Logprobs] | None
    seed: int = 0
    record: IntArray | None = None  # with which a device is asked for its tokens, once it was
    cumulative_logprob: float = 0.0
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(eq=False, slots=True)
class Request:
    """A request in the engine. `listener` is called with every increment, in the thread that steps the engine."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    listener: Callable[[Increment], None] | None = None
    completions: list[Completion] = field(default_factory=list)
    prompt_logprobs: list[Logprobs | None] | None = None
    error: EchoError | None = None
    max_new_tokens: int = 0
    end_tokens: frozenset[int] = frozenset()
    num_cached_tokens: int = 0

    @property
    def number(self) -> int:
        """Its place in the order of arrivals."""
        return self.completions[0].sequence.key[0]

    @property
    def finished(self) -> bool:
        return self.error is not None or all(c.finish_reason is not None for c in self.completions)

    def output(self) -> RequestOutput:
        """What there is by now."""
        outputs = [
            CompletionOutput(
                index=c.index,
                text="" if c.detokenizer is None else c.detokenizer.text,
                token_ids=c.sequence.tokens[c.sequence.num_prompt :],
                cumulative_logprob=None if c.logprobs is None else c.cumulative_logprob,
                logprobs=c.logprobs,
                finish_reason=c.finish_reason,
                stop_reason=c.stop_reason,
            )
            for c in self.completions
        ]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=outputs,
            prompt_logprobs=self.prompt_logprobs,
            finished=self.finished,
            error=self.error,
            num_cached_tokens=self.num_cached_tokens,
        )

    def so_far(self) -> list[Increment]:
        """What there is by now as one increment of each output that has begun."""
        return [
            Increment(
                request_id=self.request_id,
                index=c.index,
                text="" if c.detokenizer is None else c.detokenizer.text if c.finish_reason else c.detokenizer.take(),
                token_ids=c.sequence.tokens[c.sequence.num_prompt :],
                logprobs=None if c.logprobs is None else list(c.logprobs),
                finish_reason=c.finish_reason,
                stop_reason=c.stop_reason,
                error=self.error,
            )
            for c in self.completions
            if c.finish_reason is not None or len(c.sequence.tokens) > c.sequence.num_prompt
        ]
