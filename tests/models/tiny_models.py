"""Tiny random checkpoints of several families, as save_pretrained writes them, and what transformers says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

Floats = NDArray[np.float32]

COMMON = {"vocab_size": 250, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA_LIKE = COMMON | {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 48, "num_experts_per_tok": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE | {"num_hidden_layers": 3, "tie_word_embeddings": True},
    "gemma2": LLAMA_LIKE | {"sliding_window": 6, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0},
    "gpt2": COMMON | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "qwen3_moe": LLAMA_LIKE | EXPERTS | {"num_experts": 8, "norm_topk_prob": True, "decoder_sparse_step": 1},
    "gpt_oss": LLAMA_LIKE | {"sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": LLAMA_LIKE
    | EXPERTS
    | {
        "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32, "v_head_dim": 32,
    },
}  # fmt: skip
del CONFIGS["deepseek_v3"]["head_dim"]


@dataclass(frozen=True)
class Checkpoint:
    """A model folder and the transformers model, in f32 with the values that the folder stores."""

    folder: Path
    model: Any

    def logits(self, tokens: NDArray[Any] | list[int]) -> Floats:
        """f32 [len(tokens), vocabulary] of the whole sequence at once."""
        with torch.no_grad():
            result: Floats = self.model(torch.tensor(np.asarray(tokens))[None]).logits[0].float().numpy()
        return result

    def logprobs(self, tokens: list[int]) -> Floats:
        """Natural log-probabilities, one row per position."""
        result: Floats = torch.log_softmax(torch.tensor(self.logits(tokens)), -1).numpy()
        return result


def save(
    folder: Path,
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    shard: str | None = None,
    spread: float = 0.1,
    **changes: Any,
) -> Checkpoint:
    """Writes a checkpoint with weights spread widely enough that logits differ and attention is not uniform."""
    config = transformers.CONFIG_MAPPING[family](**(CONFIGS[family] | changes))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return Checkpoint(folder, load(folder, torch.float32))


def load(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' model, its parameters (not its tables of frequencies) in the given type."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def relative_error(found: Floats, wanted: Floats) -> float:
    """The largest difference, as a share of the largest magnitude."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def random_tokens(length: int, seed: int = 0) -> list[int]:
    """Token ids apart from the special ones."""
    return [int(t) for t in np.random.default_rng(seed).integers(3, 250, length)]
