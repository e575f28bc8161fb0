"""ONNX Runtime GenAI as a peer, through its generator with token ids."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from echoc.bench.peers.worker import Meter


class OnnxRuntimeGenAi:
    """A built model; one generator per request, as its API wants."""

    def __init__(self, options: dict[str, Any], meter: Meter) -> None:
        import onnxruntime_genai

        self.api, self.meter = onnxruntime_genai, meter
        config = self.api.Config(str(options["model"]))
        session = {"intra_op_num_threads": int(options["threads"])}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = self.api.Model(config)
        self.vocab_size = int(options["vocab_size"])
        self.held: tuple[tuple[int, int, int], Any] | None = None
        self.random = np.random.default_rng(int(options.get("seed", 0)))

    def describe(self) -> dict[str, Any]:
        """Version."""
        return {"version": self.api.__version__}

    def _generator(self, sequences: int, length: int) -> Any:
        """Greedy, `length` tokens whatever the model says."""
        params = self.api.GeneratorParams(self.model)
        params.set_search_options(batch_size=sequences, max_length=length, min_length=length, do_sample=False)
        return self.api.Generator(self.model, params)

    def _tokens(self, rows: int, count: int) -> np.ndarray:
        return self.random.integers(0, self.vocab_size, (rows, count), dtype=np.int32)

    def prefill(self, num_tokens: int) -> None:
        """Times one pass over a fresh prompt and the choice of its first token."""
        generator, tokens = self._generator(1, num_tokens + 1), self._tokens(1, num_tokens)
        with self.meter:
            generator.append_tokens(tokens)
            generator.generate_next_token()

    def decode(self, context: int, num_tokens: int) -> None:
        """Times greedy steps of one sequence."""
        self.batched(1, context, num_tokens)

    def batched(self, sequences: int, context: int, num_tokens: int) -> None:
        """Times greedy steps of several sequences, after their first token.

        The context is computed once. One sequence goes back to it each time. Several can't (the library forbids it):
        theirs grows, from two runs short of `context` to two runs beyond it, and is then computed anew.
        """
        slack = 0 if sequences == 1 else 2 * num_tokens
        start, key = max(context - slack, 1), (sequences, context, num_tokens)
        spent = self.held is not None and sequences > 1 and self.held[1].token_count() > context + slack
        if self.held is not None and (self.held[0] != key or spent):
            self.held = None
        if self.held is None:
            generator = self._generator(sequences, context + slack + num_tokens + 2)
            generator.append_tokens(self._tokens(sequences, start))
            generator.generate_next_token()
            self.held = (key, generator)
        generator = self.held[1]
        if sequences == 1:
            generator.rewind_to(context)
            generator.append_tokens(self._tokens(1, 1))
            generator.generate_next_token()
        with self.meter:
            for _ in range(num_tokens):
                generator.generate_next_token()


def open_engine(options: dict[str, Any], meter: Meter) -> OnnxRuntimeGenAi:
    """Options: model (folder of the builder), vocab_size, threads, seed."""
    return OnnxRuntimeGenAi(options, meter)
