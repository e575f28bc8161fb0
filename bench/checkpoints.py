"""Checkpoints with random weights in the exact shape of a published model, for timing where weights can't travel.

Speed depends on shapes and formats only, so a config is enough: `shapes/*.json` are Hugging Face configs, and
`make_checkpoint` writes `config.json` and `model.safetensors` (bf16) that every engine reads like a real model.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from echoc.errors import EchoError

SHAPES = Path(__file__).with_name("shapes")
CHUNK_ELEMENTS = 1 << 22  # 16 MiB of f32 at a time keeps the writer's memory small
STANDARD_DEVIATION = 0.02


@dataclass(frozen=True)
class TensorSpec:
    """Name and shape of one tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return int(np.prod(self.shape, dtype=np.int64))


def shape_presets() -> dict[str, Path]:
    """The configs in `shapes/`, by name."""
    return {path.stem: path for path in sorted(SHAPES.glob("*.json"))}


def find_config(name_or_path: str) -> Path:
    """A preset's config, or the path of a config file or of a folder that holds one."""
    presets = shape_presets()
    if name_or_path in presets:
        return presets[name_or_path]
    path = Path(name_or_path)
    path = path / "config.json" if path.is_dir() else path
    if path.is_file():
        return path
    raise EchoError(
        f"no model shape {name_or_path!r}: wanted one of {', '.join(presets)}, a config.json, or a folder with one"
    )


def state_specs(config_path: Path) -> list[TensorSpec]:
    """The tensors a checkpoint of this config holds, as transformers names them; tied copies appear once.

    Builds the model without memory on torch's meta device, so any architecture of transformers will do.
    """
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise EchoError(
            f"making a checkpoint needs torch and transformers ({error}): install echoc[compile]"
        ) from error
    config = AutoConfig.from_pretrained(str(config_path))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    specs, seen = [], set()
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            specs.append(TensorSpec(name, tuple(tensor.shape)))
    return specs


def round_to_bf16(values: np.ndarray) -> np.ndarray:
    """f32 values to the bits of the nearest bf16 (ties to even), as u16 of the same shape. Finite values only."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def random_chunks(spec: TensorSpec, seed: int, index: int) -> Iterator[np.ndarray]:
    """The bf16 bits of one tensor in chunks: matrices normal with deviation 0.02, norms 1, other vectors 0."""
    remaining = spec.num_elements
    generator = np.random.Generator(np.random.Philox(key=[seed, index]))
    while remaining > 0:
        count = min(remaining, CHUNK_ELEMENTS)
        if len(spec.shape) >= 2:
            values = generator.standard_normal(count, dtype=np.float32) * np.float32(STANDARD_DEVIATION)
        else:
            values = np.full(count, 1.0 if "norm" in spec.name or "ln" in spec.name else 0.0, dtype=np.float32)
        yield round_to_bf16(values)
        remaining -= count


def safetensors_header(specs: list[TensorSpec]) -> bytes:
    """The length-prefixed header of a safetensors file of bf16 tensors in the given order, padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        end = offset + 2 * spec.num_elements
        header[spec.name] = {"dtype": "BF16", "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def make_checkpoint(shape: str, folder: Path, seed: int = 0) -> Path:
    """Writes a random bf16 checkpoint of `shape` (preset, config file or folder) into `folder`; returns the folder.

    Streams: memory stays at a few chunks. The weights file appears under its name only when it is whole.
    """
    config_path = find_config(shape)
    specs = state_specs(config_path)
    folder.mkdir(parents=True, exist_ok=True)
    needed = 2 * sum(spec.num_elements for spec in specs)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EchoError(f"{folder} has {free / 1e9:.1f} GB free, the checkpoint of {shape} needs {needed / 1e9:.1f} GB")
    partial = folder / "model.safetensors.partial"
    try:
        with partial.open("wb") as file:
            file.write(safetensors_header(specs))
            for index, spec in enumerate(specs):
                for chunk in random_chunks(spec, seed, index):
                    file.write(chunk.tobytes())
        os.replace(partial, folder / "model.safetensors")
    finally:
        partial.unlink(missing_ok=True)
    if config_path.resolve() != (folder / "config.json").resolve():
        shutil.copyfile(config_path, folder / "config.json")
    return folder
