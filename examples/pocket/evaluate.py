"""Perplexity of the pocket model, or of an artifact compiled from it, on held-out standard-library text.

    python examples/pocket/evaluate.py                                        # transformers, f32 and bf16
    python examples/pocket/evaluate.py --artifact bf16.echo int8.echo int4.echo    # compiled, through echoc.LLM

The text is whole files of this interpreter's standard library whose names keep them out of training (`corpus.py`).
Every token of it is a target once, in windows that begin with the tokenizer's first token; the
perplexity is per token.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from corpus import sample_held_out
from tokenizers import Tokenizer

HERE = Path(__file__).parent
Score = Callable[[list[list[int]]], float]  # windows of token ids -> sum of nats over all but each one's first token


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "model", help="Hugging Face folder (and tokenizer)")
    parser.add_argument("--artifact", type=Path, nargs="*", default=[], help="compiled artifacts to measure instead")
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"], help="dtypes of transformers to measure")
    parser.add_argument("--window", type=int, default=1024, help="tokens a window")
    parser.add_argument("--tokens", type=int, default=0, help="stop after this many tokens (0: all)")
    parser.add_argument("--bytes", type=int, default=128 * 1024, help="how much text to take, in whole files")
    return parser.parse_args()


def read_windows(args: argparse.Namespace) -> list[list[int]]:
    """The text in windows of at most `--window` token ids, each with the tokenizer's first token in front."""
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    windows: list[list[int]] = []
    for source in sample_held_out(args.bytes):
        ids = tokenizer.encode(source.text).ids
        step = args.window - 1
        windows += [ids[:1] + ids[i : i + step] for i in range(1, len(ids), step)]
    kept, total = [], 0
    for window in windows:
        if args.tokens and total >= args.tokens:
            break
        kept.append(window)
        total += len(window) - 1
    return kept


def transformers_score(folder: Path, dtype: str) -> Score:
    """Scores with plain transformers on the CPU; logits are taken to f32 before the loss."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    @torch.no_grad()
    def score(windows: list[list[int]]) -> float:
        nats = 0.0
        for window in windows:
            ids = torch.tensor([window])
            logits = model(ids).logits[0, :-1].float()
            nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        return nats

    return score


def artifact_score(path: Path) -> Score:
    """Scores a compiled artifact through its prompt log-probabilities."""
    import echoc

    llm = echoc.LLM(path)
    params = echoc.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)

    def score(windows: list[list[int]]) -> float:
        nats = 0.0
        for window, output in zip(windows, llm.generate(windows, params), strict=True):
            entries = output.prompt_logprobs or []
            if len(entries) != len(window):
                raise RuntimeError(f"{path}: asked for {len(window)} prompt log-probabilities, got {len(entries)}")
            nats -= sum(entry[token].logprob for token, entry in zip(window[1:], entries[1:], strict=True) if entry)
        return nats

    return score


def report(name: str, score: Score, windows: list[list[int]]) -> None:
    """Prints one line of JSON: what was measured, on how many tokens, the perplexity and the time it took."""
    start, tokens = time.perf_counter(), sum(len(window) - 1 for window in windows)
    nats = score(windows)
    record = {
        "measured": name,
        "tokens": tokens,
        "loss_nats_per_token": round(nats / tokens, 5),
        "perplexity_per_token": round(math.exp(nats / tokens), 5),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(record), flush=True)


def main() -> None:
    args = parse_arguments()
    windows = read_windows(args)
    if args.artifact:
        for path in args.artifact:
            report(str(path), artifact_score(path), windows)
    else:
        for dtype in args.dtype:
            report(f"transformers {dtype}", transformers_score(args.model, dtype), windows)


if __name__ == "__main__":
    main()
