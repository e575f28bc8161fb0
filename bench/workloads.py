"""What is timed: prefill of a prompt, decode after a context, and decode of several sequences at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echoc.errors import EchoError


@dataclass(frozen=True)
class Workload:
    """One thing to time.

    `kind`: "prefill", "decode" or "batched". `context`: tokens of the prompt (prefill) or held before decoding
    starts. `num_tokens`: decode steps timed (0 for prefill). `sequences`: rows decoded, or prompts given, at once.
    `longest`: the contexts of a batch lie evenly between `context` and it (0: all are `context`).
    """

    kind: str
    context: int
    num_tokens: int = 0
    sequences: int = 1
    longest: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("prefill", "decode", "batched"):
            raise EchoError(f"workload kind {self.kind!r}: wanted prefill, decode or batched")
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
        context = f"{self.context} to {self.longest}" if self.longest else str(self.context)
        return f"decode {self.num_tokens} x {self.sequences} after {context}"

    @property
    def contexts(self) -> list[int]:
        """Tokens that each sequence holds before decoding starts."""
        span, parts = max(self.longest - self.context, 0), max(self.sequences - 1, 1)
        return [self.context + span * row // parts for row in range(self.sequences)]

    @property
    def tokens(self) -> int:
        """Tokens that the timed part handles, for tokens/s."""
        return (self.context if self.kind == "prefill" else self.num_tokens) * self.sequences

    def request(self) -> tuple[str, dict[str, int]]:
        """Operation and arguments for an engine process (peers/worker.py)."""
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
) -> list[Workload]:
    """All workloads of a run: each prefill length for `prompts` at once, then decode at each context alone and for each
    batch size, there with contexts from `mixed[0]` to `mixed[1]` if they are given."""
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
    if not workloads:
        raise EchoError("nothing to time: pass a prefill length, or decode tokens and a context length")
    return workloads
