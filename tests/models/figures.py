"""Prints how far compiled models are from transformers: `python tests/models/figures.py [FAMILY ...]`.

For each family a tiny random checkpoint; errors are the largest difference as a share of the largest logit (f32), and
root mean squares against f32 arithmetic on the same weights, beside those of transformers' own bf16 (bf16).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from tiny_models import CONFIGS, Checkpoint, Floats, load, random_tokens, relative_error, save

import echoc
from echoc import LLM, SamplingParams

TOKENS = random_tokens(61, seed=4)


def read(path: Path, chunks: list[int], **options: bool) -> Floats:
    """Logits of TOKENS, read in chunks."""
    with echoc.load(path, num_pages=64, num_threads=2, **options).create() as instance:
        ends = np.cumsum(chunks)
        rows = [instance.step(TOKENS[end - size : end], rows="all") for size, end in zip(chunks, ends, strict=True)]
    return np.concatenate(rows)


def ragged(path: Path, model: Checkpoint) -> float:
    """The largest error of five sequences in two steps, prompts and single tokens mixed."""
    program = echoc.load(path, num_pages=64, num_threads=2)
    sequences = [random_tokens(length, seed=length) for length in (3, 31, 17, 40, 9)]
    cuts = (1, 30, 5, 39, 8)
    instances = [program.create() for _ in sequences]
    steps = [
        program.advance(instances, [s[:c] for s, c in zip(sequences, cuts, strict=True)], rows="all"),
        program.advance(instances, [s[c:] for s, c in zip(sequences, cuts, strict=True)], rows="all"),
    ]
    borders = [np.cumsum(cuts)[:-1], np.cumsum([len(s) - c for s, c in zip(sequences, cuts, strict=True)])[:-1]]
    parts = [np.split(rows, border) for rows, border in zip(steps, borders, strict=True)]
    found = [np.concatenate(pair) for pair in zip(*parts, strict=True)]
    return max(relative_error(f, model.logits(s)) for f, s in zip(found, sequences, strict=True))


def forked(path: Path, model: Checkpoint) -> float:
    """The largest error of two forks of a sequence, cut inside a page."""
    first = echoc.load(path, num_pages=64, num_threads=2).create()
    first.step(TOKENS[:21])
    second = first.fork()
    tails = [TOKENS[21:40], random_tokens(19, seed=5)]
    found = [instance.step(tail, rows="all") for instance, tail in zip((first, second), tails, strict=True)]
    return max(relative_error(f, model.logits(TOKENS[:21] + tail)[21:]) for f, tail in zip(found, tails, strict=True))


def preempted(path: Path, model: Checkpoint) -> tuple[float, int]:
    """The largest error of a log-probability in nats, and how often a request lost its pages."""
    llm = LLM(path, num_pages=12)
    prompts = [random_tokens(18 + 3 * i, seed=i) for i in range(6)]
    params = SamplingParams(temperature=0.7, seed=3, max_tokens=50, ignore_eos=True, logprobs=0)
    worst = 0.0
    for prompt, result in zip(prompts, llm.generate(prompts, params), strict=True):
        output = result.outputs[0]
        wanted = model.logprobs(prompt + output.token_ids)[len(prompt) - 1 : -1]
        for token, entry, row in zip(output.token_ids, output.logprobs or [], wanted, strict=True):
            worst = max(worst, abs(entry[token].logprob - float(row[token])))
    return worst, llm.engine.scheduler.num_preemptions


def rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def f32_line(folder: Path, family: str) -> str:
    model = save(folder / "f32", family)
    path = folder / "f32.echo"
    echoc.compile(model.folder, weights_dtype="f32", output=path)
    exact = model.logits(TOKENS)
    modes = {"prefill": [61], "tokens": [1] * 61, "chunks": [7, 1, 1, 20, 32]}
    errors = {name: relative_error(read(path, chunks), exact) for name, chunks in modes.items()}
    nats, count = preempted(path, model)
    errors |= {"ragged": ragged(path, model), "forks": forked(path, model)}
    text = "  ".join(f"{name} {error:.1e}" for name, error in errors.items())
    return f"{family:<12} f32   {text}  preempted ({count}x) {nats:.1e} nats"


def bf16_line(folder: Path, family: str) -> str:
    model = save(folder / "bf16", family, dtype=torch.bfloat16)
    path = folder / "bf16.echo"
    echoc.compile(model.folder, weights_dtype="bf16", output=path)
    exact = model.logits(TOKENS)
    theirs = rms(Checkpoint(model.folder, load(model.folder, torch.bfloat16)).logits(TOKENS) - exact)
    modes = {"prefill": [61], "tokens": [1] * 61}
    ours = {name: rms(read(path, chunks) - exact) for name, chunks in modes.items()}
    text = "  ".join(f"{name} {error / rms(exact):.2e} (x{error / theirs:.2f})" for name, error in ours.items())
    return f"{family:<12} bf16  {text}  transformers {theirs / rms(exact):.2e}"


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for family in sys.argv[1:] or CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            print(f32_line(Path(folder), family), flush=True)
            print(bf16_line(Path(folder), family), flush=True)


if __name__ == "__main__":
    main()
