import json
from pathlib import Path

import numpy as np
import pytest

from echoc.bench import checkpoints
from echoc.bench.checkpoints import TensorSpec, find_config, make_checkpoint, random_chunks, round_to_bf16
from echoc.bench.floors import read_headers
from echoc.errors import EchoError


def test_rounding_to_bf16_is_to_nearest_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -2.5, 1.0 + 2**-8 + 2**-20], dtype=np.float32)
    back = (round_to_bf16(values).astype(np.uint32) << 16).view(np.float32)
    assert back.tolist() == [1.0, 1.0, 1.015625, -2.5, 1.0078125]


def test_matrices_are_random_and_repeatable() -> None:
    spec = TensorSpec("a.weight", (300, 200))
    first = np.concatenate(list(random_chunks(spec, seed=1, index=2)))
    values = (first.astype(np.uint32) << 16).view(np.float32)
    assert first.size == 60000
    assert abs(values.std() - 0.02) < 0.001
    assert np.array_equal(first, np.concatenate(list(random_chunks(spec, seed=1, index=2))))
    assert not np.array_equal(first, np.concatenate(list(random_chunks(spec, seed=1, index=3))))


def test_norms_are_one_and_biases_zero() -> None:
    assert set(next(random_chunks(TensorSpec("l.norm.weight", (8,)), 0, 0)).tolist()) == {0x3F80}
    assert set(next(random_chunks(TensorSpec("l.q.bias", (8,)), 0, 0)).tolist()) == {0}


def test_chunks_cover_a_large_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHUNK_ELEMENTS", 7)
    sizes = [chunk.size for chunk in random_chunks(TensorSpec("a", (3, 6)), 0, 0)]
    assert sizes == [7, 7, 4]


def test_a_checkpoint_is_a_readable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [TensorSpec("embed.weight", (10, 4)), TensorSpec("norm.weight", (4,))]
    monkeypatch.setattr(checkpoints, "state_specs", lambda _config: specs)
    folder = make_checkpoint("qwen3-0.6b", tmp_path / "model")
    assert read_headers(folder) == {"embed.weight": (10, 4), "norm.weight": (4,)}
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "state_specs", lambda _config: [TensorSpec("a", (1 << 40, 1 << 10))])
    with pytest.raises(EchoError, match="GB free"):
        make_checkpoint("qwen3-0.6b", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "state_specs", lambda _config: [TensorSpec("a", (2, 2))])
    monkeypatch.setattr(checkpoints, "random_chunks", fail)
    with pytest.raises(KeyboardInterrupt):
        make_checkpoint("qwen3-0.6b", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_shape_lists_the_known() -> None:
    with pytest.raises(EchoError, match=r"llama-3\.2-1b, qwen3-0\.6b"):
        find_config("qwen99")
