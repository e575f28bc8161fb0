"""Compiles the topology, plays a signal to it, and prints what its membranes write to their ports.

python examples/membranes/echo_chamber/run.py [--artifact echo_chamber.echo]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from waves import waves

from echoc.membranes.compound import compile
from echoc.runtime.compound import CompoundProgram

HERE = Path(__file__).resolve().parent


def play(artifact: Path, seed: int = 3, segments: int = 4) -> list[tuple[int, str]]:
    """Plays a signal that no readout was learnt from; returns (step, text) for every text."""
    run = CompoundProgram(artifact).create(seed=seed)
    run.on_crossing = report
    signal, kinds = waves(seed, segments)
    heard = []
    print(
        "the signal becomes a square wave at step",
        *(t + 1 for t in range(1, len(kinds)) if kinds[t, 1] > kinds[t - 1, 1]),
    )
    for step, outputs in run.run({"signal": signal}):
        if "text" in outputs:
            heard.append((step, outputs["text"]))
    print("steps taken by each membrane:", run.activity())
    return heard


def report(step: int, membrane: str, port: str, value: Any) -> None:
    """What crosses the boundary of the mind and of the voice."""
    if membrane in ("mind", "voice"):
        print(
            f"step {step}: {membrane}.{port} gives\n{value}"
            if port == "text"
            else f"step {step}: {membrane}.{port} gives {value}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--artifact", type=Path, help="compiled before; default: compile now")
    given = parser.parse_args().artifact
    with tempfile.TemporaryDirectory() as folder:
        artifact = given
        if artifact is None:
            artifact = Path(folder) / "echo_chamber.echo"
            compile(HERE / "echo_chamber.toml", output=artifact)
        play(artifact)


if __name__ == "__main__":
    main()
