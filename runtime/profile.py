"""Seconds that each launch of an artifact takes. `python -m echoc.runtime.profile FILE` prints them as JSON.

One process measures one artifact, so that a search over schedules (echoc.compiler.tuning) sees each in a fresh one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from typing import Any

from echoc.errors import EchoError
from echoc.runtime.llm import LLM
from echoc.runtime.sampling import SamplingParams

STEPS = 8  # of decoding; the quickest of each launch counts


def profile(path: str, *, rows: int, prompt: int, threads: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Times the launches of a language model: decode of one row, decode of `rows` rows, and prefill of `prompt` tokens.

    Returns: {"phases": {"decode": [...], "batch": [...], "prefill": [...]}}, lists of {"kernel", "schedule", "seconds"}
        with the least seconds that the launch took in several steps.
    Raises: EchoError for an artifact that does not load or is no language model for a CPU.
    """
    llm = LLM(path, max_num_seqs=max(rows, 1), num_threads=threads)
    device = llm.model.program.device
    if not hasattr(device, "set_profiling"):
        raise EchoError(f"{path} is not for a CPU; only launches there are timed one by one")
    manifest = llm.model.program.manifest
    launches = [launch for variant in manifest.raw["variants"] for launch in variant["launches"]]
    vocabulary = int(manifest.model["vocab_size"])
    draw = random.Random(seed)

    def step(count: int, length: int) -> list[float]:
        """Seconds of every launch in one step over `count` prompts of `length` tokens, variants one after another."""
        prompts = [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(count)]
        before = [list(v["launch_seconds"]) for v in device.counters()]
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
        after = [v["launch_seconds"] for v in device.counters()]
        return [n - o for old, now in zip(before, after, strict=True) for n, o in zip(now, old, strict=True)]

    def phase(count: int, length: int, steps: int) -> list[dict[str, Any]]:
        quickest = [min(seconds) for seconds in zip(*(step(count, length) for _ in range(steps)), strict=True)]
        return [
            {"kernel": launch["kernel"], "schedule": launch["schedule"], "seconds": seconds}
            for launch, seconds in zip(launches, quickest, strict=True)
            if seconds > 0
        ]

    device.set_profiling(True)
    step(1, prompt)  # pages and weights are touched once
    return {"phases": {"decode": phase(1, 1, STEPS), "batch": phase(rows, 1, STEPS), "prefill": phase(1, prompt, 2)}}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    try:
        json.dump(
            profile(options.artifact, rows=options.rows, prompt=options.prompt, threads=options.threads), sys.stdout
        )
    except EchoError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
