"""OpenVINO as a peer: its own stateful export of the checkpoint, stepped through the inference API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from echoc.bench.peers.worker import Meter


class OpenVino:
    """A compiled stateful model: the KV cache lives in the infer request."""

    def __init__(self, options: dict[str, Any], meter: Meter) -> None:
        import openvino

        self.meter, self.version = meter, openvino.__version__
        self.dtype = str(options["weights_dtype"])
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": int(options["threads"]),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32" if self.dtype == "f32" else "bf16",
        }
        model = core.read_model(Path(options["model"]) / "openvino_model.xml")
        self.inputs = {port.get_any_name() for port in model.inputs}
        self.compiled = core.compile_model(model, "CPU", settings)
        self.settings = {key: str(self.compiled.get_property(key)) for key in settings}
        self.vocab_size = int(options["vocab_size"])
        self.random = np.random.default_rng(int(options.get("seed", 0)))
        self.request = self.compiled.create_infer_request()
        self.tensor = openvino.Tensor
        self.filled: tuple[tuple[int, int], list[Any]] | None = None

    def describe(self) -> dict[str, Any]:
        """Version and the settings the plugin took."""
        return {"version": self.version, "settings": self.settings}

    def _tokens(self, rows: int, count: int) -> np.ndarray:
        return self.random.integers(0, self.vocab_size, (rows, count), dtype=np.int64)

    def _forward(self, tokens: np.ndarray, past: int) -> np.ndarray:
        """The next greedy tokens [rows, 1] after `past` cached ones."""
        rows, count = tokens.shape
        values = {
            "input_ids": tokens,
            "attention_mask": np.ones((rows, past + count), dtype=np.int64),
            "position_ids": np.tile(np.arange(past, past + count, dtype=np.int64), (rows, 1)),
            "beam_idx": np.arange(rows, dtype=np.int32),
        }
        self.request.infer({name: value for name, value in values.items() if name in self.inputs}, share_inputs=True)
        logits: np.ndarray = self.request.get_tensor("logits").data
        return np.asarray(logits[:, -1:].argmax(-1))

    def prefill(self, num_tokens: int) -> None:
        """Times one pass over a fresh prompt."""
        tokens = self._tokens(1, num_tokens)
        self.request.reset_state()
        with self.meter:
            self._forward(tokens, 0)

    def decode(self, context: int, num_tokens: int) -> None:
        """Times greedy steps of one sequence."""
        self.batched(1, context, num_tokens)

    def batched(self, sequences: int, context: int, num_tokens: int) -> None:
        """Times greedy steps of several sequences, after the prefill of one whose keys and values are kept for later
        and given to them all: the speed of decoding does not depend on what they are."""
        states = self.request.query_state()
        if self.filled is None or self.filled[0] != (sequences, context):
            self.filled = None
            self.request.reset_state()
            self._forward(self._tokens(1, context), 0)
            rows = [self.tensor(np.repeat(state.state.data, sequences, axis=0)) for state in states]
            self.filled = ((sequences, context), rows)
        for state, held in zip(states, self.filled[1], strict=True):
            state.state = held
        tokens = self._tokens(sequences, 1)
        self._forward(tokens, context)
        with self.meter:
            for step in range(num_tokens):
                tokens = self._forward(tokens, context + 1 + step)


def open_engine(options: dict[str, Any], meter: Meter) -> OpenVino:
    """Options: model (folder of the export), weights_dtype, vocab_size, threads, seed."""
    return OpenVino(options, meter)
