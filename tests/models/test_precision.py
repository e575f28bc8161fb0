"""Weights in every format, checkpoints in every form, older CPU levels: errors against transformers in f32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import Checkpoint, load, random_tokens, relative_error

import echoc
from echoc import _native
from echoc.runtime.artifact import Artifact

TOKENS = random_tokens(61, seed=4)
BF16 = torch.bfloat16


def logits(path: Any, tokens: list[int], split: int = 40) -> Any:
    """Read in two chunks and, at the end, token by token."""
    with echoc.load(path, num_pages=16, num_threads=2).create() as instance:
        parts = [instance.step(tokens[:split], rows="all"), instance.step(tokens[split:-4], rows="all")]
        parts += [instance.step([token], rows="all") for token in tokens[-4:]]
    return np.concatenate(parts)


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_bf16_is_no_worse_than_that_of_transformers(compiled: Callable[..., Any], family: str) -> None:
    model = compiled(family, "bf16", dtype=BF16)
    exact = model.checkpoint.logits(TOKENS)
    rounded = Checkpoint(model.checkpoint.folder, load(model.checkpoint.folder, BF16)).logits(TOKENS)
    assert rms(logits(model.path, TOKENS) - exact) <= 1.5 * rms(rounded - exact)


def stored(path: Any, formats: Collection[str]) -> dict[str, Any]:
    """The values of the weights that an artifact holds in these formats, by their names in the checkpoint."""
    artifact = Artifact(path)
    blobs = artifact.tensors("weights.safetensors")
    found = {}
    for spec in artifact.manifest.raw["weights"]:
        if spec["format"] in formats:
            n, k = spec["shape"]
            packed = blobs[spec["name"]][: spec["nbytes"]]
            values = _native.unpack(spec["format"], spec["group"], packed.copy(), spec["interleave"], n, k)
            found |= dict(zip(spec["sources"], values, strict=True))
    return found


def dequantised(path: Any, checkpoint: Checkpoint) -> Checkpoint:
    """The model with the weights that the artifact stores."""
    model = copy.deepcopy(checkpoint.model)
    state = model.state_dict()
    values = stored(path, ("f8", "i8", "i4"))
    state |= {name: torch.tensor(value) for name, value in values.items()}
    replaced = len(values)
    assert replaced == 7 * 3 + 1
    model.load_state_dict(state)
    return Checkpoint(checkpoint.folder, model)


@pytest.mark.parametrize(("weights_dtype", "group"), [("fp8", 32), ("int8", 32), ("int4", 32), ("int4", 64)])
def test_quantised_weights_mean_what_unpacking_says(
    compiled: Callable[..., Any], weights_dtype: str, group: int
) -> None:
    """Only the rounding of activations is left between the artifact and the unpacked model: to 8 bits a group, with a
    power of two for its scale, or to bf16 for floats."""
    model = compiled("llama", weights_dtype, group=group, tie_word_embeddings=False, intermediate_size=128)
    found = logits(model.path, TOKENS)
    unpacked = dequantised(model.path, model.checkpoint).logits(TOKENS)
    exact = model.checkpoint.logits(TOKENS)
    activations, both = rms(found - unpacked) / rms(exact), rms(found - exact) / rms(exact)
    assert activations < 0.045
    if weights_dtype == "int4":
        assert activations < both / 3
    assert 0 < both < {"fp8": 0.15, "int8": 0.05, "int4": 0.6}[weights_dtype]


@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_checkpoints_of_every_float_type(compiled: Callable[..., Any], dtype: torch.dtype, tied: bool) -> None:
    model = compiled("llama", dtype=dtype, tie_word_embeddings=tied)
    assert relative_error(logits(model.path, TOKENS), model.checkpoint.logits(TOKENS)) < 1e-4


def test_shards_are_one_checkpoint(compiled: Callable[..., Any], checkpoint: Callable[..., Any]) -> None:
    whole, sharded = compiled("llama"), compiled("llama", shard="100KB")
    assert len(list(sharded.checkpoint.folder.glob("model-*.safetensors"))) > 3
    np.testing.assert_array_equal(logits(sharded.path, TOKENS), logits(whole.path, TOKENS))
    assert Artifact(sharded.path).read("weights.safetensors") == Artifact(whole.path).read("weights.safetensors")


@pytest.mark.parametrize(("weights_dtype", "tolerance"), [("f32", 1e-4), ("bf16", 0.02), ("int8", 0.05)])
def test_avx2_code_runs_and_agrees(compiled: Callable[..., Any], weights_dtype: str, tolerance: float) -> None:
    changes = {"tie_word_embeddings": False, "intermediate_size": 128} if weights_dtype == "int8" else {}
    older = compiled("llama", weights_dtype, target="cpu:x86-64-v3", **changes)
    assert not any(f.startswith(("avx512", "amx")) for f in Artifact(older.path).manifest.features)
    native = compiled("llama", weights_dtype, **changes)
    assert relative_error(logits(older.path, TOKENS), logits(native.path, TOKENS)) < tolerance
    formats = ("f32", "bf16", "bf16c", "i8")
    held = [stored(model.path, formats) for model in (older, native)]
    assert held[0].keys() == held[1].keys() != set()
    for name, values in held[0].items():
        np.testing.assert_array_equal(values, held[1][name])


def test_groups_of_experts_in_bf16_keep_their_routing(compiled: Callable[..., Any]) -> None:
    """Routers are never rounded: the experts chosen are those of f32, so errors stay those of bf16."""
    model = compiled("qwen3_moe", "bf16", dtype=BF16)
    exact = model.checkpoint.logits(TOKENS)
    assert rms(logits(model.path, TOKENS) - exact) / rms(exact) < 0.03
