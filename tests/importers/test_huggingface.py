"""The front half of the importer: tracing, masks, experts, checkpoints and their damage."""

from __future__ import annotations

import json
import resource
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from echoc.compiler.importers.huggingface import Checkpoint, ExportedModel, export_causal_lm, load_config
from echoc.compiler.importers.huggingface.attention import MaskKind, recognise_mask
from echoc.compiler.importers.huggingface.lengths import admissible_length
from echoc.errors import CompileError

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def save(config: Any, folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder, **options)
    return model


def run(exported: ExportedModel, tokens: Any) -> Any:
    values = []
    for binding in exported.bindings:
        if binding.kind == "parameter":
            reference = exported.parameters[binding.name]
            assert reference is not None
            values.append(torch.from_numpy(reference.read()))
        elif binding.kind == "buffer":
            values.append(torch.from_numpy(exported.buffers[binding.name]))
        else:
            values.append(tokens if binding.name == "input_ids" else torch.arange(tokens.shape[1])[None])
    with torch.no_grad():
        return torch.fx.Interpreter(exported.program.graph_module).run(*values)[0]


def assert_same_logits(model: Any, exported: ExportedModel, length: int = 21) -> None:
    tokens = torch.randint(3, 96, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
    actual = run(exported, tokens)
    assert actual.dtype == torch.float32
    assert float((actual - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def targets(exported: ExportedModel) -> list[str]:
    return [str(node.target) for node in exported.program.graph.nodes]


CONFIGS = {
    "tied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "window": lambda: transformers.MistralConfig(**SMALL, sliding_window=5),
    "softcap": lambda: transformers.Gemma2Config(**SMALL, head_dim=8, sliding_window=5, attn_logit_softcapping=3.0),
    "sinks": lambda: transformers.GptOssConfig(**SMALL, head_dim=8, num_local_experts=4, sliding_window=5),
    "experts": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4, sliding_window=None),
    "by hand": lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=96),
    "positions table": lambda: transformers.GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=5,
        vocab_size=96, max_position_embeddings=64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CONFIGS))
def test_traced_graph_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    model = save(CONFIGS[name](), tmp_path)
    assert_same_logits(model, export_causal_lm(tmp_path))


def test_attention_and_experts_are_single_operators(tmp_path: Path) -> None:
    exported = export_causal_lm(CONFIGS["experts"]())
    names = targets(exported)
    assert names.count("echoc.attention.default") == 2
    assert names.count("echoc.experts_linear.default") == 4
    assert not any("arange" in name or ("softmax" in name and "attention" in name) for name in names)
    assert all(reference is None for reference in exported.parameters.values())


def test_window_and_soft_cap_are_attributes() -> None:
    nodes = [
        n for n in export_causal_lm(CONFIGS["softcap"]()).program.graph.nodes if "echoc.attention" in str(n.target)
    ]
    windows, softcaps = [n.args[6] for n in nodes], [n.args[7] for n in nodes]
    assert windows == [5, 0]
    assert softcaps == [3.0, 3.0]
    assert all(n.args[4] is None and n.args[8] is True for n in nodes)


def test_a_table_of_positions_bounds_the_length() -> None:
    assert export_causal_lm(CONFIGS["positions table"]()).max_tokens < 64 + 1
    assert export_causal_lm(CONFIGS["tied"]()).max_tokens >= 1 << 20


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda m: m.causal_mask_function, MaskKind(causal=True)),
        (lambda m: m.bidirectional_mask_function, MaskKind(causal=False)),
        (lambda m: m.sliding_window_causal_mask_function(5), MaskKind(causal=True, window=5)),
        (lambda m: m.sliding_window_causal_mask_function(6), None),
        (lambda m: m.sliding_window_bidirectional_mask_function(5), None),
        (lambda m: m.chunked_causal_mask_function(5, torch.zeros(1, dtype=torch.int64)), None),
        (lambda m: m.and_masks(m.causal_mask_function, lambda b, h, q, k: k > 2), None),
        (lambda m: m.or_masks(m.causal_mask_function, m.causal_mask_function), None),
    ],
)
def test_only_exact_masks_are_known_by_name(build: Any, expected: MaskKind | None) -> None:
    from transformers import masking_utils

    assert recognise_mask(build(masking_utils), 5) == expected


LENGTH = "L['input_ids'].size()[1]"


@pytest.mark.parametrize(
    ("guards", "expected"),
    [
        ([f"2 <= {LENGTH} and {LENGTH} <= 2048"], 2048),
        ([f"{LENGTH} != 256"], 255),
        ([f"min(64, {LENGTH}) == {LENGTH}"], 64),
        ([f"({LENGTH}*min(64, 64*{LENGTH})) == (64*{LENGTH})"], 5000),
        ([f"{LENGTH} <= 100", f"{LENGTH} != 50"], 49),
        ([f"({LENGTH} % 8) == 0"], None),
        ([f"8 < {LENGTH}"], None),
        ([f"Max(1, {LENGTH}) < 9"], None),
    ],
)
def test_guards_are_tried_for_every_length(guards: list[str], expected: int | None) -> None:
    message = "".join(f"\n  - Not all values of S satisfy the generated guard {guard}." for guard in guards) + "\n"
    assert admissible_length(message, 5000) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sharded_checkpoints_of_every_float_type(dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).to(getattr(torch, dtype)).eval()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    exported = export_causal_lm(tmp_path)
    for name, parameter in model.named_parameters():
        reference = exported.parameters[name]
        assert reference is not None
        np.testing.assert_array_equal(reference.read(), parameter.detach().float().numpy())
    assert_same_logits(model.float(), exported)


def test_tied_weights_that_differ_in_the_checkpoint_are_not_tied(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SMALL, tie_word_embeddings=False)
    model = save(config, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    assert_same_logits(model, export_causal_lm(tmp_path))


def test_large_models_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = transformers.LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=4, vocab_size=128256,
                                      num_attention_heads=64, num_key_value_heads=8)  # fmt: skip
    exported = export_causal_lm(config)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sum(int(np.prod(shape)) for shape in exported.shapes.values()) > 5e9
    assert grown * (1024 if sys.platform == "linux" else 1) < 1 << 30


def tiny_checkpoint(folder: Path) -> Path:
    save(transformers.LlamaConfig(**SMALL), folder)
    return folder / "model.safetensors"


def rewrite_header(path: Path, change: Any) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def rename(header: dict[str, Any]) -> None:
    header["other"] = header.pop("model.norm.weight")


def reshape(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["shape"] = [8, 4]


def retype(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["dtype"] = "F8_E4M3"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "neither model.safetensors"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), "truncated"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(200)), "not a safetensors file"),
        (lambda path: path.write_bytes(b""), "not a safetensors file"),
        (lambda path: rewrite_header(path, rename), "lacks model.norm.weight"),
        (lambda path: rewrite_header(path, reshape), r"model.norm.weight has shape \[8, 4\]"),
    ],
)
def test_damaged_checkpoints_are_named(damage: Any, message: str, tmp_path: Path) -> None:
    damage(tiny_checkpoint(tmp_path))
    with pytest.raises(CompileError, match=message):
        export_causal_lm(tmp_path)


def test_unknown_dtype_is_named_when_the_weight_is_read(tmp_path: Path) -> None:
    rewrite_header(tiny_checkpoint(tmp_path), retype)
    with pytest.raises(CompileError, match="F8_E4M3"):
        Checkpoint(tmp_path).tensors["model.norm.weight"].array()


def test_missing_shard_is_named(tmp_path: Path) -> None:
    save(transformers.LlamaConfig(**SMALL), tmp_path, max_shard_size="20KB")
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(CompileError, match=victim.name):
        export_causal_lm(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config.json"),
        ("{", "not readable JSON"),
        ("[]", "names no model_type"),
        ('{"model_type": "no_such_model"}', "transformers refuses"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "transformers refuses"),
        ('{"model_type": "vit"}', "no causal language model"),
        ('{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}', "quantised"),
    ],
)
def test_foreign_folders_are_named(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CompileError, match=message):
        export_causal_lm(tmp_path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="is not a folder"):
        load_config(tmp_path / "absent")
