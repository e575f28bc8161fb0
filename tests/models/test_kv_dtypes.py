"""Keys and values in every format, end to end: errors against transformers in f32, forks, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import random_tokens, relative_error

import echoc
from echoc.compiler.ir import DType
from echoc.compiler.kv_format import kv_format
from echoc.compiler.targets.backends import backend
from echoc.errors import CompileError
from echoc.runtime.artifact import Artifact, kv_dtypes

TOKENS = random_tokens(61, seed=8)
BOUNDS = {"f32": 2e-5, "f16": 2e-3, "bf16": 1e-2, "int8": 2e-2, "fp8": 6e-2}  # of the largest logit


@pytest.fixture(scope="module")
def artifacts(compiled: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`artifacts("llama", "int8")`: f32 weights, so that only keys and values are rounded."""
    made: dict[tuple[str, str], Path] = {}

    def get(family: str, kv_dtype: str) -> Path:
        if (family, kv_dtype) not in made:
            made[family, kv_dtype] = tmp_path_factory.mktemp("kv") / f"{family}_{kv_dtype}.echo"
            folder = compiled(family).checkpoint.folder
            echoc.compile(folder, weights_dtype="f32", kv_dtype=kv_dtype, output=made[family, kv_dtype])
        return made[family, kv_dtype]

    return get


def logits(path: Path, deterministic: bool = False) -> Any:
    """Read in two chunks and, at the end, token by token."""
    program = echoc.load(path, num_pages=16, num_threads=2, deterministic=deterministic)
    with program.create() as instance:
        parts = [instance.step(part, rows="all") for part in (TOKENS[:40], TOKENS[40:-4])]
        parts += [instance.step([token], rows="all") for token in TOKENS[-4:]]
    return np.concatenate(parts)


@pytest.mark.parametrize("kv_dtype", list(BOUNDS))
@pytest.mark.parametrize("deterministic", [False, True])
def test_logits_lose_what_the_format_loses(
    compiled: Callable[..., Any], artifacts: Callable[..., Path], kv_dtype: str, deterministic: bool
) -> None:
    wanted = compiled("llama").checkpoint.logits(TOKENS)
    bound = BOUNDS[kv_dtype] if deterministic else max(BOUNDS[kv_dtype], BOUNDS["bf16"] * (kv_dtype != "f32"))
    assert relative_error(logits(artifacts("llama", kv_dtype), deterministic), wanted) < bound


@pytest.mark.parametrize(("family", "kv_dtype"), [("gemma2", "int8"), ("gemma2", "fp8"), ("gpt_oss", "int8")])
def test_windows_caps_and_sinks_over_8_bits(
    compiled: Callable[..., Any], artifacts: Callable[..., Path], family: str, kv_dtype: str
) -> None:
    wanted = compiled(family).checkpoint.logits(TOKENS)
    assert relative_error(logits(artifacts(family, kv_dtype)), wanted) < 2 * BOUNDS[kv_dtype]


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_forks_copy_codes_and_scales(artifacts: Callable[..., Path], kv_dtype: str) -> None:
    program = echoc.load(artifacts("llama", kv_dtype), num_pages=16, num_threads=1, deterministic=True)
    alone = [program.create() for _ in range(2)]
    ends = [TOKENS[20:24], TOKENS[30:34]]
    wanted = []
    for instance, end in zip(alone, ends, strict=True):
        instance.step(TOKENS[:20])
        wanted.append(instance.step(end))
    first = program.create()
    first.step(TOKENS[:20])
    second = first.fork()  # both write into the page that they share
    for instance, end, logits_ in zip((first, second), ends, wanted, strict=True):
        np.testing.assert_array_equal(instance.step(end), logits_)


def test_pages_shrink_with_the_format(artifacts: Callable[..., Path]) -> None:
    manifests = {kv: Artifact(artifacts("llama", kv)).manifest for kv in ("f32", "bf16", "int8", "fp8")}
    values = manifests["f32"].page_bytes // 4
    assert manifests["bf16"].page_bytes == 2 * values
    assert manifests["int8"].page_bytes == manifests["fp8"].page_bytes
    states = manifests["int8"].raw["states"]
    heads = sum(state["shape"][0] for state in states)
    assert manifests["int8"].page_bytes == values + heads * 16 * 4  # a scale for each head of each token
    assert all(state["scale_dtype"] == "f32" for state in states)


@pytest.mark.parametrize("target", ["cpu:cascadelake", "cpu:x86-64-v4", "cpu:x86-64-v3", "cuda:sm_90a"])
@pytest.mark.parametrize("weights_dtype", ["f32", "bf16", "fp8", "int8", "int4"])
def test_integer_weights_take_int8_where_it_is_faster(target: str, weights_dtype: str) -> None:
    chosen = kv_format(None, weights_dtype, backend(target).prefers_narrow_kv())
    narrow = target == "cpu:cascadelake" and weights_dtype in ("int8", "int4")
    wide = DType.F32 if weights_dtype == "f32" else DType.BF16
    for head_dims in ((32, 32), (64, 64), (48, 32), (192, 128)):
        assert chosen.of(*head_dims) is (DType.I8 if narrow else wide)
    for head_dims in ((16, 16), (64, 24), (80, 8), (63, 64)):
        assert chosen.of(*head_dims) is wide
    assert kv_format("fp8", weights_dtype, narrow).of(8, 8) is DType.F8


def test_small_heads_keep_the_wider_format(compiled: Callable[..., Any]) -> None:
    """The default with integer weights never fails: heads of 16 stay in bf16, whatever the machine."""
    assert kv_dtypes(Artifact(compiled("llama", "int8").path).manifest.raw) == ["bf16"]
    assert kv_dtypes(Artifact(compiled("llama", "int8", kv_dtype="int8").path).manifest.raw) == ["int8"]


def test_unknown_formats_are_refused(compiled: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"unknown KV cache dtype 'int4'; wanted one of f32, bf16, f16, int8, fp8"):
        echoc.compile(compiled("llama").checkpoint.folder, kv_dtype="int4", output=tmp_path / "x.echo")
