"""The floor of a workload: the least time the machine's own limits allow for the bytes and the arithmetic it needs."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from echoc.bench.probes import Limits
from echoc.bench.workloads import Workload
from echoc.errors import EchoError

# Bits a weight, scales included: groups of 32 with one f16 scale, as in Q8_0 and Q4_0; those of rows do not count.
WEIGHT_BITS = {"f32": 32.0, "bf16": 16.0, "fp8": 8.0, "int8": 8.5, "int4": 4.5}
KV_BYTES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "int8": 1.0, "fp8": 1.0}
OWN_NARROW_KV = frozenset({"echoc", "openvino"})  # engines that choose 8 bits themselves


@dataclass(frozen=True)
class ModelShape:
    """What the floors need to know of a model.

    `block_weights`: elements of the matrices every token is multiplied with (active experts only), the output head
    excepted. `head_weights`: elements of the output head. `layers`, `heads`, `kv_heads`, `head_dim`: attention.
    `kv_value_bytes`: of a key's or value's element, its share of scales included; 2 for bf16 and f16.
    """

    block_weights: int
    head_weights: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    kv_value_bytes: float = 2.0

    def weight_bytes(self, weights_dtype: str) -> float:
        """Bytes of weights that one decoded token has to read."""
        return (self.block_weights + self.head_weights) * weight_bits(weights_dtype) / 8

    def kv_bytes(self, context: int) -> float:
        """Bytes of keys and values that one token at this context length has to read."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_value_bytes * context

    def with_kv(self, kv_dtype: str | None) -> ModelShape:
        """The shape with keys and values in this dtype; 8-bit ones have an f32 scale for each token and head."""
        if kv_dtype is None:
            return self
        if kv_dtype not in KV_BYTES:
            raise EchoError(f"unknown KV cache dtype {kv_dtype!r}: wanted one of {', '.join(KV_BYTES)}")
        scale = 4 / self.head_dim if KV_BYTES[kv_dtype] == 1 and self.head_dim else 0.0
        return dataclasses.replace(self, kv_value_bytes=KV_BYTES[kv_dtype] + scale)

    def as_dict(self) -> dict[str, int | float]:
        """Plain numbers for the report."""
        return asdict(self)


def lightest_kv(weights_dtype: str) -> str | None:
    """The narrowest keys and values that an engine chooses itself: int8 with integer weights; None: 16 bits."""
    return "int8" if weights_dtype in ("int8", "int4") else None


@dataclass(frozen=True)
class Floor:
    """Least seconds for a workload, with the bytes and operations behind them and which of the two binds."""

    seconds: float
    num_bytes: float
    operations: float
    bound: str  # "read" or the name of the dot instruction
    rate: float  # bytes/s or operations/s of the limit that binds

    def as_dict(self) -> dict[str, float | str]:
        """Plain values for the report."""
        return asdict(self)


def weight_bits(weights_dtype: str) -> float:
    """Bits of one weight in this format, scales included."""
    if weights_dtype not in WEIGHT_BITS:
        raise EchoError(f"unknown weights dtype {weights_dtype!r}: wanted one of {', '.join(WEIGHT_BITS)}")
    return WEIGHT_BITS[weights_dtype]


def floor_of(workload: Workload, shape: ModelShape, weights_dtype: str, limits: Limits) -> Floor:
    """The floor of one workload on a machine with these limits.

    Prefill multiplies every prompt token with the blocks and the last one with the head; causal attention adds
    4 * heads * head_dim operations for each of the length * (length + 1) / 2 pairs a layer. A decode step reads all
    weights once and the keys and values of each sequence. The larger of reading time and arithmetic time binds.
    """
    name, dot_rate = limits.dot_peak(weights_dtype)
    num_bytes, operations = cost_of(workload, shape, weights_dtype)
    reading, computing = num_bytes / limits.read_all, operations / dot_rate
    if reading >= computing:
        return Floor(reading, num_bytes, operations, "read", limits.read_all)
    return Floor(computing, num_bytes, operations, name, dot_rate)


def cost_of(workload: Workload, shape: ModelShape, weights_dtype: str) -> tuple[float, float]:
    """Bytes that a workload reads and operations it makes at least, as `floor_of` says."""
    length, steps, sequences = workload.context, workload.num_tokens, workload.sequences
    pair_operations = 4.0 * shape.layers * shape.heads * shape.head_dim
    if workload.kind == "prefill":
        operations = 2.0 * shape.block_weights * length + 2.0 * shape.head_weights
        operations += pair_operations * length * (length + 1) / 2
        return shape.weight_bytes(weights_dtype), operations * sequences
    if workload.kind == "continuous":
        return _cost_of_requests(workload, shape, weights_dtype)
    contexts = sum(held + step + 1 for held in workload.contexts for step in range(steps))
    operations = 2.0 * (shape.block_weights + shape.head_weights) * sequences * steps
    operations += pair_operations * contexts
    return steps * shape.weight_bytes(weights_dtype) + shape.kv_bytes(contexts), operations


def _cost_of_requests(workload: Workload, shape: ModelShape, weights_dtype: str) -> tuple[float, float]:
    """Of a continuous run: weights are read once for as many steps as the outputs need with every place taken."""
    outputs = sum(output for _, output in workload.requests)
    passed = sum(prompt + output - 1 for prompt, output in workload.requests)
    pairs = sum((prompt + output - 1) * (prompt + output) / 2 for prompt, output in workload.requests)
    held = sum(prompt + at + 1 for prompt, output in workload.requests for at in range(output - 1))
    steps = max(-(-outputs // workload.sequences), max(output for _, output in workload.requests))
    operations = 2.0 * shape.block_weights * passed + 2.0 * shape.head_weights * outputs
    operations += 4.0 * shape.layers * shape.heads * shape.head_dim * pairs
    return steps * shape.weight_bytes(weights_dtype) + shape.kv_bytes(held), operations


def read_headers(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a folder's safetensors files, from the headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 0 < length <= path.stat().st_size:
                raise EchoError(f"{path} is no safetensors file or is cut short: its header claims {length} bytes")
            try:
                header: dict[str, Any] = json.loads(file.read(length))
            except ValueError as error:
                raise EchoError(f"{path} has an unreadable safetensors header: {error}") from error
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    if not shapes:
        raise EchoError(f"{folder} holds no safetensors weights: wanted a Hugging Face checkpoint folder")
    return shapes


def shape_of(folder: Path) -> ModelShape:
    """The shape of a checkpoint, from its config and the headers of its weights.

    Expert matrices count by the share of experts that a token visits.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EchoError(f"{folder}/config.json cannot be read ({error}): wanted a checkpoint folder") from error
    config = config.get("text_config", config)
    vocab, hidden = int(config["vocab_size"]), int(config.get("hidden_size") or config["n_embd"])
    experts = int(config.get("num_local_experts") or config.get("num_experts") or 1)
    visited = int(config.get("num_experts_per_tok") or 1) if experts > 1 else 1
    total = 0.0
    for name, tensor in read_headers(folder).items():
        if len(tensor) < 2 or tensor[0] == vocab or tensor[-1] == vocab or ".wpe." in name or "embed_pos" in name:
            continue
        count = 1
        for extent in tensor:
            count *= extent
        total += count * visited / experts if ".experts." in name else count
    heads = int(config.get("num_attention_heads") or config["n_head"])
    return ModelShape(
        block_weights=int(total),
        head_weights=vocab * hidden,
        layers=int(config.get("num_hidden_layers") or config["n_layer"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
    )


def shape_of_manifest(manifest: dict[str, Any]) -> ModelShape:
    """The shape as far as an artifact's manifest tells it: packed matrices and paged states.

    The number of query heads is not in the manifest; the floor counts attention arithmetic for the key heads alone,
    which is less than the truth and keeps it a floor.
    """
    vocab = int(manifest["model"]["vocab_size"])
    block, head = 0, 0
    for weight in manifest.get("weights", []):
        extents = [int(extent) for extent in weight["shape"]]
        if len(extents) != 2:
            continue
        count = extents[0] * extents[1] * int(weight.get("interleave", 1)) * int(weight.get("experts", 1))
        if extents[0] == vocab:
            head = count
        else:
            block += count
    pages = [state for state in manifest.get("states", []) if state.get("kind") == "pages"]
    kv_heads, head_dim = (int(extent) for extent in pages[0]["shape"]) if pages else (0, 0)
    values = sum(math.prod(map(int, state["shape"])) * int(state["page_size"]) for state in pages)
    per_value = sum(int(state["bytes_per_page"]) for state in pages) / values if values else 2.0
    return ModelShape(block, head, len(pages) // 2, kv_heads, kv_heads, head_dim, per_value)
