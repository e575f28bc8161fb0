"""What is timed: prefill of a prompt, decode after a context, and decode of several sequences at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from echoc.errors import EchoError

KINDS = ("prefill", "decode", "batched", "continuous")
PROMPT_TOKENS = (32, 256)  # of the requests of a continuous run, drawn evenly
OUTPUT_TOKENS = (16, 64)


@dataclass(frozen=True)
class Workload:
    """One thing to time.

    `kind`: "prefill", "decode", "batched" or "continuous". `context`: tokens of the prompt (prefill) or held before
    decoding starts. `num_tokens`: decode steps timed (0 for prefill). `sequences`: rows decoded, or prompts given, at
    once. `longest`: the contexts of a batch lie evenly between `context` and it (0: all are `context`).
    Continuous: `requests` are (prompt, output) lengths in tokens, all there from the start; at most `sequences` are
    worked on at once and the next one enters when one ends. `context` and `num_tokens` are their means, for the reader.
    """

    kind: str
    context: int
    num_tokens: int = 0
    sequences: int = 1
    longest: int = 0
    requests: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EchoError(f"workload kind {self.kind!r}: wanted {', '.join(KINDS)}")
        if (self.kind == "continuous") != bool(self.requests):
            raise EchoError(
                f"workload {self.kind} with {len(self.requests)} requests: continuous has some, others none"
            )
        if self.context < 1 or self.sequences < 1:
            raise EchoError(f"workload {self.kind}: context {self.context} and sequences {self.sequences} must be >= 1")
        if self.longest and (self.kind != "batched" or self.longest < self.context):
            raise EchoError(
                f"workload {self.kind}: contexts of {self.context} to {self.longest}: a batch takes them, least first"
            )
        if self.kind != "prefill" and self.num_tokens < 1:
            raise EchoError(f"workload {self.kind}: {self.num_tokens} tokens to decode, wanted at least 1")

    @property
    def label(self) -> str:
        """Short name for tables."""
        if self.kind == "prefill":
            return f"prefill {self.context}" if self.sequences == 1 else f"prefill {self.sequences} x {self.context}"
        if self.kind == "decode":
            return f"decode {self.num_tokens} after {self.context}"
        if self.kind == "continuous":
            return f"{len(self.requests)} requests, {self.sequences} at once"
        context = f"{self.context} to {self.longest}" if self.longest else str(self.context)
        return f"decode {self.num_tokens} x {self.sequences} after {context}"

    @property
    def contexts(self) -> list[int]:
        """Tokens that each sequence holds before decoding starts."""
        span, parts = max(self.longest - self.context, 0), max(self.sequences - 1, 1)
        return [self.context + span * row // parts for row in range(self.sequences)]

    @property
    def tokens(self) -> int:
        """Tokens that the timed part handles, for tokens/s; prompts and outputs of a continuous run."""
        if self.requests:
            return sum(prompt + output for prompt, output in self.requests)
        return (self.context if self.kind == "prefill" else self.num_tokens) * self.sequences

    def as_dict(self) -> dict[str, Any]:
        """JSON form; `Workload(**form)` with tuples of requests is the workload again."""
        return asdict(self) | {"requests": [list(pair) for pair in self.requests]}

    def request(self) -> tuple[str, dict[str, Any]]:
        """Operation and arguments for an engine process (peers/worker.py)."""
        if self.kind == "continuous":
            return "continuous", {"sequences": self.sequences, "requests": [list(pair) for pair in self.requests]}
        if self.kind == "prefill":
            several = {"sequences": self.sequences} if self.sequences > 1 else {}
            return "prefill", {"num_tokens": self.context, **several}
        if self.kind == "decode":
            return "decode", {"context": self.context, "num_tokens": self.num_tokens}
        mixed = {"longest": self.longest} if self.longest else {}
        return "batched", {"sequences": self.sequences, "context": self.context, "num_tokens": self.num_tokens, **mixed}


def make_workloads(
    prefill: Sequence[int],
    decode_tokens: int,
    contexts: Sequence[int],
    batches: Sequence[int],
    prompts: int = 1,
    mixed: tuple[int, int] | None = None,
    continuous: int = 0,
    seed: int = 0,
) -> list[Workload]:
    """All workloads of a run: each prefill length for `prompts` at once, then decode at each context alone and for each
    batch size, there with contexts from `mixed[0]` to `mixed[1]` if they are given; then `continuous` sequences at
    once, fed from half as many requests again."""
    workloads = [Workload("prefill", length, sequences=prompts) for length in prefill]
    if decode_tokens:
        workloads += [Workload("decode", context, decode_tokens) for context in contexts]
        spans = [mixed] if mixed else [(context, 0) for context in contexts]
        workloads += [
            Workload("batched", low, decode_tokens, batch, high)
            for batch in batches
            if batch > 1
            for low, high in spans
        ]
    if continuous:
        workloads.append(continuous_workload(continuous, continuous + continuous // 2, seed))
    if not workloads:
        raise EchoError("nothing to time: pass a prefill length, or decode tokens and a context length")
    return workloads


def continuous_workload(sequences: int, num_requests: int, seed: int) -> Workload:
    """Requests with prompts of 32 to 256 and outputs of 16 to 64 tokens, drawn by `seed`: prefill and decode mix."""
    draw = random.Random(seed)
    requests = tuple((draw.randint(*PROMPT_TOKENS), draw.randint(*OUTPUT_TOKENS)) for _ in range(num_requests))
    prompts, outputs = (sum(column) // num_requests for column in zip(*requests, strict=True))
    return Workload("continuous", prompts, outputs, sequences, requests=requests)
