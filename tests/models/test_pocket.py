"""The pocket model's perplexity on held-out text, in every weight format: what quantisation may cost."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer

import echoc
from echoc import LLM, SamplingParams

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


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "int8", "int4"])
def test_single_tokens_are_read_as_well_as_prompts(
    artifacts: dict[str, Path], windows: list[list[int]], dtype: str
) -> None:
    """One token a step takes other kernels than a prompt does."""
    prompt, single = (perplexity(artifacts[dtype], windows, budget) for budget in (None, 1))
    assert single == pytest.approx(prompt, rel=0.003)
