"""echoc itself as an engine, through `echoc.LLM` and the engine inside it, with token-id prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from echoc.bench.peers.worker import Meter
    from echoc.runtime.engine import Request


class Own:
    """An artifact stepped by echoc's engine.

    The engine schedules by itself, so decoding is timed as whole engine steps, from the moment when every sequence
    has its first token: each step then gives one token to every sequence.
    """

    def __init__(self, options: dict[str, Any], meter: Meter) -> None:
        import echoc

        self.meter, self.params = meter, echoc.SamplingParams
        self.version = echoc.__version__
        self.path = str(options["model"])
        deterministic = bool(options.get("deterministic"))
        most: dict[str, Any] = {"max_num_seqs": int(options["max_num_seqs"])} if "max_num_seqs" in options else {}
        self.llm = echoc.LLM(self.path, num_threads=int(options["threads"]), deterministic=deterministic, **most)
        self.vocab_size = int(options["vocab_size"])
        self.random = np.random.default_rng(int(options.get("seed", 0)))
        self.contexts: dict[tuple[int, int, int], list[list[int]]] = {}

    def describe(self) -> dict[str, Any]:
        """Version and artifact."""
        return {"version": self.version, "model": self.path}

    def _prompts(self, sequences: int, length: int) -> list[list[int]]:
        rows = self.random.integers(0, self.vocab_size, (sequences, length))
        return [[int(token) for token in row] for row in rows]

    def _add(self, prompt: list[int], num_tokens: int) -> Request:
        params = self.params(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        return self.llm.engine.add(prompt, params)

    def prefill(self, num_tokens: int, sequences: int = 1) -> None:
        """Times fresh prompts up to their first tokens; random tokens never share a prefix."""
        requests = [self._add(prompt, 1) for prompt in self._prompts(sequences, num_tokens)]
        with self.meter:
            while not all(request.finished for request in requests):
                self.llm.engine.step()
        for request in requests:
            raise_failure(request)

    def decode(self, context: int, num_tokens: int) -> None:
        """Times greedy steps of one sequence."""
        self.batched(1, context, num_tokens)

    def batched(self, sequences: int, context: int, num_tokens: int, longest: int = 0) -> None:
        """Times greedy steps of several sequences, the last with a context of `longest` where that is given. The same
        contexts come back each time, from the prefix cache."""
        span, parts = max(longest - context, 0), max(sequences - 1, 1)
        key = (sequences, context, longest)
        if key not in self.contexts:
            lengths = [context + span * row // parts for row in range(sequences)]
            self.contexts[key] = [self._prompts(1, length)[0] for length in lengths]
        prompts = self.contexts[key]
        slack = 8 * sequences + 16  # the first sequences decode while the last are still in prefill
        requests = [self._add(prompt, num_tokens + slack) for prompt in prompts]
        try:
            while not all(request.finished or num_generated(request) for request in requests):
                self.llm.engine.step()
            before = [num_generated(request) for request in requests]
            with self.meter:
                for _ in range(num_tokens):
                    self.llm.engine.step()
            for request, count in zip(requests, before, strict=True):
                raise_failure(request)
                if num_generated(request) - count != num_tokens:
                    made = num_generated(request) - count
                    raise RuntimeError(f"{num_tokens} steps gave a sequence {made} tokens: it left the batch")
        finally:
            for request in requests:
                self.llm.engine.abort(request.request_id)

    def continuous(self, sequences: int, requests: list[list[int]]) -> None:
        """Times all requests, at most `sequences` at once, from the first prompt to the last token."""
        waiting = [(self._prompts(1, prompt)[0], output) for prompt, output in reversed(requests)]
        active: list[Request] = []
        done: list[Request] = []
        self.llm.engine.pool.drop_cache()  # no prompt comes back; pages that were used are used again
        with self.meter:
            while waiting or active:
                while waiting and len(active) < sequences:
                    active.append(self._add(*waiting.pop()))
                self.llm.engine.step()
                done += [request for request in active if request.finished]
                active = [request for request in active if not request.finished]
        for request in done:
            raise_failure(request)
        made = sum(num_generated(request) for request in done)
        if made != sum(output for _, output in requests):
            raise RuntimeError(f"{made} tokens came, {sum(output for _, output in requests)} were asked for")


def num_generated(request: Request) -> int:
    """Tokens that the request's one sequence has beyond its prompt."""
    if not request.completions:
        return 0
    sequence = request.completions[0].sequence
    return len(sequence.tokens) - sequence.num_prompt


def raise_failure(request: Request) -> None:
    """A request that failed makes the measurement fail."""
    if request.error is not None:
        raise request.error


def open_engine(options: dict[str, Any], meter: Meter) -> Own:
    """Options: model (artifact), vocab_size, threads, seed, deterministic."""
    return Own(options, meter)
