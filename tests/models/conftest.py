"""Checkpoints and artifacts that the tests of this folder share: each is made once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_models import Checkpoint, save

import echoc


@dataclass(frozen=True)
class Compiled:
    """A checkpoint and an artifact made of it."""

    checkpoint: Checkpoint
    path: Path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """`checkpoint("llama", dtype=..., shard=..., config entries)`."""
    made: dict[str, Checkpoint] = {}

    def get(family: str, **options: Any) -> Checkpoint:
        key = repr((family, sorted(options.items(), key=str)))
        if key not in made:
            made[key] = save(tmp_path_factory.mktemp(family), family, **options)
        return made[key]

    return get


@pytest.fixture(scope="session")
def compiled(
    checkpoint: Callable[..., Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Compiled]:
    """`compiled("llama", "int8", target=..., group=..., kv_dtype=..., checkpoint's options)`."""
    made: dict[str, Compiled] = {}

    def get(
        family: str,
        weights_dtype: str = "f32",
        target: str = "cpu",
        group: int = 32,
        kv_dtype: str | None = None,
        **options: Any,
    ) -> Compiled:
        key = repr((family, weights_dtype, target, group, kv_dtype, sorted(options.items(), key=str)))
        if key not in made:
            source = checkpoint(family, **options)
            path = tmp_path_factory.mktemp("artifacts") / f"{family}.echo"
            echoc.compile(
                source.folder, target=target, weights_dtype=weights_dtype, group=group, kv_dtype=kv_dtype, output=path
            )
            made[key] = Compiled(source, path)
        return made[key]

    return get
