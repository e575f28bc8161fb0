"""The signal of the example: a sine that now and then becomes a square wave of the same period and amplitude."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PERIOD = 12
NOISE = 0.05


def waves(seed: int, segments: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A signal [steps, 1] and what it is at each step, [steps, 2]: (1, 0) a sine, (0, 1) a square wave.

    Segments of 60 to 120 steps take turns, the first one a sine; the phase goes on.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(60, 121, segments)
    square = np.repeat(np.arange(segments) % 2, lengths)
    phase = 2 * np.pi * (np.arange(len(square)) / PERIOD + rng.random())
    clean = np.where(square == 1, np.where(np.sin(phase) >= 0, 1.0, -1.0), np.sin(phase))
    signal = clean + NOISE * rng.standard_normal(len(square))
    return signal[:, None], np.stack([1.0 - square, square], axis=1)
