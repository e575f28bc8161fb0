"""Learns the readout of the ear and writes ear.npz: `python examples/membranes/echo_chamber/train.py`."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

import numpy as np
from waves import waves

from echoc.membranes.compound.topology import Membrane
from echoc.membranes.compound.trees import load_reservoir

HERE = Path(__file__).resolve().parent
WASHOUT = 50


def train(output: Path, segments: int = 60) -> float:
    """Writes the readout; returns the share of steps of a new signal that it names rightly."""
    topology = tomllib.loads((HERE / "echo_chamber.toml").read_text())
    parameters = {key: value for key, value in topology["membranes"]["ear"]["reservoir"].items() if key != "readout"}
    ear = load_reservoir(parameters, Membrane("ear"))
    ear.ridge = 1e-4
    ear.fit(*waves(1, segments), washout=WASHOUT)
    np.savez(output, readout=ear.readout)
    signal, target = waves(2, 20)
    found = ear.predict(signal)[WASHOUT:]
    return float(np.mean(found.argmax(axis=1) == target[WASHOUT:].argmax(axis=1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "ear.npz")
    output = parser.parse_args().output
    print(f"{train(output):.3f} of the steps of a new signal are named rightly; wrote {output}")


if __name__ == "__main__":
    main()
