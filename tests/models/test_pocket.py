"""The pocket model's perplexity on held-out text, in every weight format: what quantisation may cost."""

from __future__ import annotations

import importlib.util
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import echoc
from echoc import LLM, SamplingParams, _native
from echoc.runtime.artifact import Artifact

POCKET = Path(__file__).resolve().parents[2] / "examples" / "pocket"
WINDOW = 512


def import_corpus() -> ModuleType:
    """examples/pocket/corpus.py, which says what is held out of this interpreter's library."""
    spec = importlib.util.spec_from_file_location("pocket_corpus", POCKET / "corpus.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pocket_corpus"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def windows() -> list[list[int]]:
    """Eight windows of different held-out files, each behind the tokenizer's first token."""
    tokenizer = Tokenizer.from_file(str(POCKET / "model" / "tokenizer.json"))
    sources = import_corpus().sample_held_out(128 * 1024)
    return [tokenizer.encode(source.text).ids[:WINDOW] for source in sources[:8]]


def perplexity(path: Path, windows: list[list[int]], max_num_batched_tokens: int | None = None) -> float:
    llm = LLM(path, num_pages=400, max_num_batched_tokens=max_num_batched_tokens)
    outputs = llm.generate(windows, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))
    nats, count = 0.0, 0
    for window, output in zip(windows, outputs, strict=True):
        entries = output.prompt_logprobs or []
        nats -= sum(entry[token].logprob for token, entry in zip(window[1:], entries[1:], strict=True) if entry)
        count += len(window) - 1
    assert count > 2500
    return math.exp(nats / count)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pocket")
    made = {dtype: folder / f"{dtype}.echo" for dtype in ("bf16", "fp8", "int8", "int4")}
    for dtype, path in made.items():
        echoc.compile(POCKET / "model", weights_dtype=dtype, output=path)
    return made


def test_quantised_weights_cost_little(artifacts: dict[str, Path], windows: list[list[int]]) -> None:
    bf16, fp8, int8, int4 = (perplexity(path, windows) for path in artifacts.values())
    assert 3 < bf16 < 12
    assert max(fp8, int8) <= bf16 * 1.005
    assert bf16 < int4 <= bf16 * 1.06


def unpacked(path: Path, folder: Path) -> Path:
    """A checkpoint in f32 of the weights that the artifact stores."""
    shutil.copytree(POCKET / "model", folder)
    state = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    artifact = Artifact(path)
    blobs = artifact.tensors("weights.safetensors")
    packed = [spec for spec in artifact.manifest.raw["weights"] if spec["format"] in ("i8", "i4")]
    assert len(packed) == 6 * 6 + 1
    for spec in packed:
        data = blobs[spec["name"]][: spec["nbytes"]].copy()
        values = _native.unpack(spec["format"], spec["group"], data, spec["interleave"], *spec["shape"])
        for source, value in zip(spec["sources"], values, strict=True):
            name = source.replace("lm_head", "model.embed_tokens")  # which are one
            assert state[name].shape == value.shape
            state[name] = torch.tensor(value)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_activations_cost_little(
    artifacts: dict[str, Path], windows: list[list[int]], tmp_path: Path, dtype: str
) -> None:
    """The same weights with activations in 8 bits and in f32."""
    exact = tmp_path / "exact.echo"
    echoc.compile(unpacked(artifacts[dtype], tmp_path / "model"), weights_dtype="f32", kv_dtype="bf16", output=exact)
    wanted = perplexity(exact, windows)
    for budget in (None, 1):
        cost = perplexity(artifacts[dtype], windows, budget) / wanted - 1
        print(f"{dtype} weights, activations in 8 bits, {budget or 'all'} tokens a step: {cost:+.3%} perplexity")
        assert cost < 0.003


@pytest.mark.parametrize(("dtype", "kv_dtype"), [("bf16", "int8"), ("bf16", "fp8"), ("int4", "int8")])
def test_keys_and_values_in_8_bits_cost_little(
    artifacts: dict[str, Path], windows: list[list[int]], tmp_path: Path, dtype: str, kv_dtype: str
) -> None:
    wide, narrow = tmp_path / "bf16.echo", tmp_path / "kv.echo"
    echoc.compile(POCKET / "model", weights_dtype=dtype, kv_dtype="bf16", output=wide)
    echoc.compile(POCKET / "model", weights_dtype=dtype, kv_dtype=kv_dtype, output=narrow)
    for budget in (None, 1):
        cost = perplexity(narrow, windows, budget) / perplexity(wide, windows, budget) - 1
        print(
            f"{dtype} weights, keys and values in {kv_dtype}, {budget or 'all'} tokens a step: {cost:+.3%} perplexity"
        )
        assert cost < 0.005


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "int8", "int4"])
def test_single_tokens_are_read_as_well_as_prompts(
    artifacts: dict[str, Path], windows: list[list[int]], dtype: str
) -> None:
    """One token a step takes other kernels than a prompt does."""
    prompt, single = (perplexity(artifacts[dtype], windows, budget) for budget in (None, 1))
    assert single == pytest.approx(prompt, rel=0.003)
