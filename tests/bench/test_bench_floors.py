import json
import struct
from pathlib import Path

import pytest
from bench_machines import LIMITS, QWEN3

from echoc.bench.floors import floor_of, read_headers, shape_of, shape_of_manifest
from echoc.bench.workloads import Workload
from echoc.errors import EchoError


@pytest.mark.parametrize(("dtype", "gigabytes"), [("bf16", 1.19), ("int8", 0.63), ("int4", 0.335)])
def test_bytes_a_token_of_qwen3(dtype: str, gigabytes: float) -> None:
    assert QWEN3.weight_bytes(dtype) / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_decode_is_bound_by_reading() -> None:
    floor = floor_of(Workload("decode", context=512, num_tokens=4), QWEN3, "bf16", LIMITS)
    kv = 2 * 28 * 8 * 128 * 2 * (513 + 514 + 515 + 516)
    assert floor.bound == "read"
    assert floor.num_bytes == pytest.approx(4 * QWEN3.weight_bytes("bf16") + kv)
    assert floor.seconds == pytest.approx(floor.num_bytes / 50e9)


def test_prefill_is_bound_by_the_dot_product() -> None:
    floor = floor_of(Workload("prefill", context=512), QWEN3, "bf16", LIMITS)
    attention = 4 * 28 * 16 * 128 * 512 * 513 / 2
    assert floor.bound == "dot_bf16"
    assert floor.operations == pytest.approx(2 * 440401920 * 512 + 2 * 151936 * 1024 + attention)
    assert floor.seconds == pytest.approx(floor.operations / 400e9)


def test_int4_prefill_may_use_the_int8_dot_product() -> None:
    assert LIMITS.dot_peak("int4") == ("dot_int8", 800e9)
    assert LIMITS.dot_peak("f32") == ("fma_f32", 200e9)


def test_batched_decode_reads_weights_once_and_every_cache() -> None:
    one = floor_of(Workload("decode", 512, 1), QWEN3, "int4", LIMITS)
    eight = floor_of(Workload("batched", 512, 1, 8), QWEN3, "int4", LIMITS)
    assert eight.num_bytes - one.num_bytes == pytest.approx(7 * QWEN3.kv_bytes(513))
    assert eight.operations == pytest.approx(8 * one.operations)


def test_contexts_that_differ_are_read_each_at_its_length() -> None:
    mixed = floor_of(Workload("batched", 100, 1, 3, 300), QWEN3, "int4", LIMITS)
    equal = floor_of(Workload("batched", 200, 1, 3), QWEN3, "int4", LIMITS)
    assert mixed == equal  # 100 + 200 + 300


def test_unknown_dtype_is_named() -> None:
    with pytest.raises(EchoError, match="int5"):
        QWEN3.weight_bytes("int5")
    with pytest.raises(EchoError, match="int5"):
        LIMITS.dot_peak("int5")


def write_checkpoint(folder: Path, tensors: dict[str, list[int]], **config: object) -> None:
    defaults = {
        "vocab_size": 100,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    (folder / "config.json").write_text(json.dumps(defaults | config))
    entries = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    header = json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def test_shape_from_a_checkpoint(tmp_path: Path) -> None:
    tensors = {"embed.weight": [100, 16], "lm_head.weight": [100, 16], "a.weight": [8, 16], "norm.weight": [16]}
    write_checkpoint(tmp_path, tensors)
    shape = shape_of(tmp_path)
    assert (shape.block_weights, shape.head_weights) == (128, 1600)
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (2, 4, 2, 4)


def test_experts_count_by_the_share_visited(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"l.experts.gate_up": [8, 16, 4]}, num_experts=8, num_experts_per_tok=2)
    assert shape_of(tmp_path).block_weights == 8 * 16 * 4 // 4


def test_shape_from_a_manifest() -> None:
    manifest = {
        "model": {"vocab_size": 100},
        "weights": [
            {"shape": [100, 16], "interleave": 1, "experts": 1},
            {"shape": [8, 16], "interleave": 2, "experts": 1},
            {"shape": [16]},
        ],
        "states": [{"kind": "pages", "shape": [2, 4], "page_size": 16, "bytes_per_page": 16 * 2 * (4 + 4)}] * 4,
    }
    shape = shape_of_manifest(manifest)
    assert (shape.block_weights, shape.head_weights, shape.layers) == (256, 1600, 2)
    assert (shape.kv_heads, shape.head_dim) == (2, 4)
    assert shape.kv_bytes(10) == 2 * 2 * 2 * (4 + 4) * 10  # a byte a value, and a scale for each head


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(EchoError, match="cut short"):
        read_headers(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EchoError, match="no safetensors"):
        read_headers(tmp_path)
    with pytest.raises(EchoError, match=r"config\.json"):
        shape_of(tmp_path)
