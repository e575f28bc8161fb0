"""Tiny models of transformers as step programs on the reference device, and models that cannot be stepped."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from echoc.compiler.api import _context_length
from echoc.compiler.importers.huggingface import export_causal_lm
from echoc.compiler.importers.huggingface.convert import causal_band, prompt_program
from echoc.compiler.ir import DType, Membrane, Rule
from echoc.compiler.ir.interpret import run_rule
from echoc.compiler.pipeline import language_model_passes, run_passes
from echoc.compiler.weights import Weights
from echoc.errors import CompileError

LENGTH = 19
COMMON = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA_LIKE = COMMON | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
CONFIGS = {
    "gemma2": LLAMA_LIKE | {"sliding_window": 6},
    "gpt_oss": LLAMA_LIKE | {"sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
    "bloom": COMMON | {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "lfm2": LLAMA_LIKE
    | {"layer_types": ["conv", "full_attention"], "conv_L_cache": 4, "block_auto_adjust_ff_dim": False},
    "doge": LLAMA_LIKE | {"keep_window_size": 64},
    "mpt": COMMON | {"d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 64, "expansion_ratio": 2},
    "gpt_neo": COMMON
    | {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64, "window_size": 5,
        "attention_types": [[["global", "local"], 1]], "intermediate_size": 48,
    },
}  # fmt: skip


def config(model_type: str) -> Any:
    return transformers.CONFIG_MAPPING[model_type](**CONFIGS[model_type])


@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_a_step_program_in_chunks_gives_the_logits_of_the_whole_prompt(model_type: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(model_type), attn_implementation="eager").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(4, 96, (1, LENGTH))
    with torch.no_grad():
        wanted = model(tokens).logits[0].numpy()
    exported = export_causal_lm(tmp_path)
    skin = run_passes(prompt_program(exported, 64), language_model_passes(DType.F32)).skin

    def source(name: str) -> np.ndarray:
        reference = exported.parameters[name]
        assert reference is not None
        return reference.read()

    weights = Weights(skin, source, exported.buffers)
    states: dict[str, Any] = {s.name: np.full((8, 4, *s.type.shape), np.nan, np.float32) for s in skin.states}
    found = []
    for begin, end in itertools.pairwise((0, 7, 8, 9, LENGTH)):
        place = np.arange(end - begin, dtype=np.int32)
        ports = {"tokens": tokens[0, begin:end].numpy(), "positions": begin + place, "sequences": 0 * place}
        ports |= {"rows": place, "block_table": np.array([[5, 2, 7, 0, 1]], np.int32)}
        outputs, states = run_rule(skin, skin.rule("step"), ports, weights.value, states)
        found.append(outputs["logits"])
    error = np.abs(np.concatenate(found) - wanted).max() / np.abs(wanted).max()
    assert error < 1e-5


def test_a_model_that_sees_the_future_is_refused_by_name() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    exported = export_causal_lm(transformers.CONFIG_MAPPING["bert"](**COMMON, **sizes, is_decoder=False))
    with pytest.raises(CompileError, match=r"refused attention.*not causal"):
        run_passes(prompt_program(exported, 64), language_model_passes(DType.F32))


def test_the_context_length_ends_where_the_trace_does() -> None:
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=4096), max_tokens=100)
    assert _context_length(model, None) == 100
    assert _context_length(model, 60) == 60
    with pytest.raises(CompileError, match="at most 100"):
        _context_length(model, 101)
    model.max_tokens = 1 << 20
    assert _context_length(model, None) == 4096
    assert _context_length(model, 8192) == 8192


TRIANGLE = np.tril(np.ones((20, 20), bool))


@pytest.mark.parametrize(
    "table",
    [
        TRIANGLE[None, None], TRIANGLE ^ np.tril(TRIANGLE, -5), TRIANGLE.astype(np.float32)[None], ~TRIANGLE,
        np.eye(9, dtype=np.float32),
    ],
)  # fmt: skip
def test_stored_bands_become_comparisons(table: np.ndarray) -> None:
    node = causal_band(table)
    assert node is not None
    outputs, _ = run_rule(Membrane("bands"), Rule("mask", (("mask", node),)), {})
    np.testing.assert_array_equal(outputs["mask"], table)
    assert outputs["mask"].dtype == table.dtype


def test_other_tables_stay_weights() -> None:
    dotted = TRIANGLE.copy()
    dotted[12, 3] = False
    for table in (dotted, np.ones((20, 20)), np.zeros((20, 20)), TRIANGLE[:5, :5], np.ones(20), 2.0 * TRIANGLE):
        assert causal_band(table) is None
