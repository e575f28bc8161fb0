"""transformers as a peer: eager PyTorch with scaled-dot-product attention and the library's own cache."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echoc.bench.peers.worker import Meter

DTYPES = {"f32": "float32", "bf16": "bfloat16"}


class Transformers:
    """A checkpoint folder loaded by AutoModelForCausalLM."""

    def __init__(self, options: dict[str, Any], meter: Meter) -> None:
        import torch
        import transformers

        if options["weights_dtype"] not in DTYPES:
            raise ValueError(f"transformers has no {options['weights_dtype']} weights here: wanted f32 or bf16")
        torch.set_num_threads(int(options["threads"]))
        self.torch, self.meter = torch, meter
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            options["model"], dtype=getattr(torch, DTYPES[options["weights_dtype"]]), attn_implementation="sdpa"
        ).eval()
        self.cache_class = transformers.DynamicCache
        self.vocab_size = int(self.model.config.vocab_size)
        self.generator = torch.Generator().manual_seed(int(options.get("seed", 0)))
        self.filled: tuple[tuple[int, int], Any] | None = None

    def describe(self) -> dict[str, Any]:
        """Version, weight bytes and attention."""
        size = sum(tensor.nbytes for tensor in self.model.parameters())
        return {"version": self.version, "weight_bytes": size, "attention": "sdpa"}

    def _tokens(self, rows: int, count: int) -> Any:
        return self.torch.randint(0, self.vocab_size, (rows, count), generator=self.generator)

    def _forward(self, tokens: Any, cache: Any) -> Any:
        """The next greedy tokens [rows, 1]."""
        result = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return result.logits[:, -1:].argmax(-1)

    def prefill(self, num_tokens: int) -> None:
        """Times one pass over a fresh prompt."""
        tokens = self._tokens(1, num_tokens)
        with self.torch.inference_mode(), self.meter:
            self._forward(tokens, self.cache_class())

    def decode(self, context: int, num_tokens: int) -> None:
        """Times greedy steps of one sequence."""
        self.batched(1, context, num_tokens)

    def batched(self, sequences: int, context: int, num_tokens: int) -> None:
        """Times greedy steps of several sequences; the context is computed once and copied."""
        with self.torch.inference_mode():
            if self.filled is None or self.filled[0] != (sequences, context):
                fresh = self.cache_class()
                self._forward(self._tokens(sequences, context), fresh)
                self.filled = ((sequences, context), fresh)
            cache = copy.deepcopy(self.filled[1])
            tokens = self._tokens(sequences, 1)
            with self.meter:
                for _ in range(num_tokens):
                    tokens = self._forward(tokens, cache)


def open_engine(options: dict[str, Any], meter: Meter) -> Transformers:
    """Options: model (checkpoint folder), weights_dtype, threads, seed."""
    return Transformers(options, meter)
