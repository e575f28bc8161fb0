"""`weights="random:SEED"`: an artifact of a configuration alone, its weights drawn at load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import random_tokens

import echoc

TOKENS = random_tokens(20)


def logits(path: Path) -> Any:
    with echoc.load(path, num_pages=4).create() as instance:
        return instance.step(TOKENS, rows="all")


@pytest.mark.parametrize("weights_dtype", ["f32", "int4"])
def test_a_seed_is_a_model(checkpoint: Callable[..., Any], tmp_path: Path, weights_dtype: str) -> None:
    config = tmp_path / "config.json"
    folder = checkpoint("llama", tie_word_embeddings=False, hidden_size=128).folder
    config.write_bytes((folder / "config.json").read_bytes())

    def make(name: str, weights: str, source: Path = config) -> Path:
        path = tmp_path / f"{name}.echo"
        echoc.compile(source, weights=weights, weights_dtype=weights_dtype, output=path)
        return path

    first, again, other = make("first", "random:7"), make("again", "random:7"), make("other", "random:8")
    assert first.read_bytes() == again.read_bytes()
    np.testing.assert_array_equal(logits(first), logits(again))
    assert np.isfinite(logits(first)).all()
    assert np.abs(logits(first) - logits(other)).max() > 1e-3
    # the folder's weights are not looked at
    np.testing.assert_array_equal(logits(first), logits(make("folder", "random:7", folder)))


def test_the_file_holds_no_matrices(checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    """Five times the layers make the file no larger than their launch lists and small vectors are."""
    sizes = {}
    for layers in (1, 5):
        folder = checkpoint("llama", num_hidden_layers=layers, hidden_size=128, intermediate_size=1024).folder
        path = tmp_path / f"{layers}.echo"
        echoc.compile(folder, weights="random:1", weights_dtype="f32", output=path)
        sizes[layers] = path.stat().st_size
    matrices = 4 * 4 * (3 * 128 * 1024 + 2 * 128 * 64 + 2 * 128 * 32)
    assert sizes[5] - sizes[1] < matrices / 20
