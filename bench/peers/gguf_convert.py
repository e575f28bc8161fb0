"""Writes a GGUF file from a Hugging Face checkpoint folder, for llama.cpp as a peer. Runs where `gguf` is installed.

Run as a script: `python gguf_convert.py FOLDER OUTPUT TYPE` with TYPE one of F32, BF16, Q8_0, Q4_0: all matrices get
that type (as llama-quantize --pure), vectors stay f32. Another TYPE is a file type of llama.cpp, such as Q4_K_M, by
its own quantiser. The file carries no vocabulary: prompts are token ids.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

# Hugging Face model types whose GGUF architecture has another name. Others are looked up under their own.
ARCHITECTURES = {"mistral": "llama", "smollm3": "smollm3", "gemma3_text": "gemma3", "phi3": "phi3"}
# Architectures whose rotary embedding pairs neighbours (x0, x1) where transformers pairs halves (x0, x[d/2]).
INTERLEAVED_ROPE = {"llama"}
QUANT_ROWS = 4096  # rows quantised at a time: bounds memory


class Checkpoint:
    """The tensors of a folder's safetensors files, mapped."""

    def __init__(self, folder: Path) -> None:
        self.entries: dict[str, tuple[np.ndarray, str, list[int]]] = {}
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"no safetensors file in {folder}")
        for path in files:
            self._index(path)

    def _index(self, path: Path) -> None:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        length = int(data[:8].view("<u8")[0])
        header: dict[str, Any] = json.loads(bytes(data[8 : 8 + length]))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                span = data[8 + length + begin : 8 + length + end]
                self.entries[name] = (span, entry["dtype"], entry["shape"])

    def read(self, name: str) -> np.ndarray:
        """One tensor as f32."""
        span, dtype, shape = self.entries[name]
        if dtype == "BF16":
            return (span.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        kinds = {"F32": np.float32, "F16": np.float16}
        if dtype not in kinds:
            raise ValueError(f"tensor {name} is {dtype}: wanted F32, F16 or BF16")
        return span.view(kinds[dtype]).astype(np.float32).reshape(shape)


def quantise(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """f32 [N, K] to the rows of a GGUF type, in blocks of rows."""
    if kind == gguf.GGMLQuantizationType.F32:
        return values
    blocks = [gguf.quants.quantize(values[at : at + QUANT_ROWS], kind) for at in range(0, len(values), QUANT_ROWS)]
    return np.concatenate(blocks)


def interleave_heads(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorders the rows of a query or key projection from half pairs to neighbour pairs, head by head."""
    rows = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, 2, rows, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama3_rope_factors(config: dict[str, Any], head_dim: int) -> np.ndarray | None:
    """Divisors of the rotary frequencies [head_dim / 2] for Llama 3.1's scaling, or None where it is not used.

    Source: rope_type "llama3" of the Llama 3.1 model card: wavelengths above the low-frequency bound are divided by
    `factor`, those below the high-frequency bound stay, those between are interpolated.
    """
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "llama3":
        return None
    base = float(config.get("rope_theta", 10000.0))
    wavelength = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    turns = scaling["original_max_position_embeddings"] / wavelength
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: np.ndarray = 1.0 / ((1.0 - smooth) / factor + smooth)
    return factors.astype(np.float32)


def write_header(writer: gguf.GGUFWriter, config: dict[str, Any], head_dim: int) -> None:
    """The hyperparameters that llama.cpp reads, from the Hugging Face config."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads", config["num_attention_heads"]))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-5))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def convert(folder: Path, output: Path, kind_name: str) -> None:
    """Converts `folder` to `output`, all matrices in GGUF type `kind_name`."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = gguf.GGMLQuantizationType[kind_name]
    architecture = ARCHITECTURES.get(config["model_type"], config["model_type"])
    ids = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in ids:
        raise ValueError(f"gguf {architecture!r} is no architecture of llama.cpp")
    checkpoint = Checkpoint(folder)
    names = gguf.get_tensor_name_map(ids[architecture], config["num_hidden_layers"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    heads = {
        ".q_proj.": config["num_attention_heads"],
        ".k_proj.": config.get("num_key_value_heads", config["num_attention_heads"]),
    }
    partial = output.with_name(output.name + ".partial")
    writer = gguf.GGUFWriter(str(partial), architecture, use_temp_file=True)
    write_header(writer, config, head_dim)
    factors = llama3_rope_factors(config, head_dim)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    for name in checkpoint.entries:
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"tensor {name} has no place in GGUF architecture {architecture}")
        values = checkpoint.read(name)
        part = next((part for part in heads if part in name), None)
        if part is not None and architecture in INTERLEAVED_ROPE:
            values = interleave_heads(values, heads[part])
        if values.ndim < 2:
            writer.add_tensor(target, values)
        else:
            writer.add_tensor(target, quantise(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, output)


def requantise(folder: Path, output: Path, file_type: str) -> None:
    """Converts `folder` to `output` by way of BF16, through llama.cpp's own quantiser."""
    import llama_cpp

    number = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}", None)
    if number is None:
        raise ValueError(f"{file_type!r} is no type of a GGUF file: wanted F32, BF16, Q8_0, Q4_0 or one like Q4_K_M")
    plain, partial = output.with_name(output.name + ".plain"), output.with_name(output.name + ".partial")
    convert(folder, plain, "BF16")
    try:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = number
        if llama_cpp.llama_model_quantize(str(plain).encode(), str(partial).encode(), ctypes.byref(params)) != 0:
            raise RuntimeError(f"llama.cpp cannot quantise {plain} to {file_type}")
        os.replace(partial, output)
    finally:
        plain.unlink()


if __name__ == "__main__":
    plain_types = ("F32", "BF16", "Q8_0", "Q4_0")
    (convert if sys.argv[3] in plain_types else requantise)(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
