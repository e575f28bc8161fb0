"""Resident memory while serving: at most the packed weights, the KV pool and 150 MB."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import echoc

SERVE = """
import sys
from echoc import LLM, SamplingParams

llm = LLM(sys.argv[1], num_pages=600)
prompts = [[3 + (7 * i + j) % 240 for j in range(200)] for i in range(32)]
params = SamplingParams(max_tokens=60, ignore_eos=True, temperature=0.8, seed=1, logprobs=5)
outputs = llm.generate(prompts, params)
assert all(output.outputs[0].text for output in outputs)
with open("/proc/self/status") as file:
    resident = next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024
manifest = llm.model.artifact.manifest
print(resident - sum(weight.nbytes for weight in manifest.weights) - 600 * manifest.page_bytes)
"""


def large_tokenizer(path: Path) -> None:
    """A byte-level BPE of 150 000 tokens, as the larger families have them."""
    generator = random.Random(0)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = []
    while len(tokens) < 150_000:
        pair = generator.choice(tokens), generator.choice(tokens[: 256 + len(tokens) // 20])
        joined = "".join(pair)
        if joined not in vocabulary and len(joined) < 15:
            vocabulary[joined] = len(tokens)
            tokens.append(joined)
            merges.append(pair)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()  # type: ignore[attr-defined]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[attr-defined]
    tokenizer.save(str(path))


def test_serving_takes_little_more_than_weights_and_pages(checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama").folder, tmp_path / "model")
    large_tokenizer(folder / "tokenizer.json")
    path = tmp_path / "x.echo"
    echoc.compile(folder, weights_dtype="f32", output=path)
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150e6
