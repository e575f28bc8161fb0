"""Signals: what a caller gives, checked and as float64 arrays [time, channels]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ReservoirError

Array = NDArray[np.float64]


def as_series(signal: Any, name: str, channels: int | None = None) -> list[Array]:
    """One series [time, channels] (or [time]) or a list of them, as float64 arrays [time, channels].

    Raises: ReservoirError for no numbers, for shapes that do not fit, and for NaN or infinity, naming the series, the
    step and the channel.
    """
    several = isinstance(signal, list | tuple) and any(np.ndim(_shape(s, name)) >= 1 for s in signal)
    if several and all(np.ndim(s) == 1 and len(s) == (channels or 1) for s in signal):
        several = False  # the rows of one series
    parts = signal if several else [signal]
    if len(parts) == 0:
        raise ReservoirError(f"{name} holds no series; wanted at least one")
    return [_one(part, name, i if several else None, channels) for i, part in enumerate(parts)]


def _shape(value: Any, name: str) -> Any:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ReservoirError(f"{name} is no array of numbers: {error}") from None


def _one(value: Any, name: str, index: int | None, channels: int | None) -> Array:
    where = name if index is None else f"{name}, series {index}"
    array = _shape(value, where)
    if array.dtype.kind not in "biuf":
        raise ReservoirError(f"{where} holds {array.dtype} values; wanted real numbers")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise ReservoirError(f"{where} has shape {list(array.shape)}; wanted [time, channels] or [time]")
    if channels is not None and array.shape[1] != channels:
        raise ReservoirError(f"{where} has {array.shape[1]} channels; wanted {channels}")
    out = np.ascontiguousarray(array, dtype=np.float64)
    if not np.isfinite(out).all():
        step, channel = np.argwhere(~np.isfinite(out))[0]
        raise ReservoirError(
            f"{where} holds {out[step, channel]} at step {step}, channel {channel} (series {index or 0}); "
            "wanted finite numbers: cut or fill the gap"
        )
    return out


def check_pairs(inputs: Sequence[Array], targets: Sequence[Array]) -> None:
    """Raises ReservoirError unless there is one target series per input series, of its length."""
    if len(inputs) != len(targets):
        raise ReservoirError(f"found {len(inputs)} input series and {len(targets)} target series; wanted one for each")
    for i, (u, y) in enumerate(zip(inputs, targets, strict=True)):
        if len(u) != len(y):
            raise ReservoirError(f"series {i}: the inputs have {len(u)} steps and the targets {len(y)}; wanted as many")


def washouts(washout: int | Sequence[int], inputs: Sequence[Array]) -> list[int]:
    """The steps to leave out at the start of each series. Raises ReservoirError where nothing would be left."""
    given: list[Any] = list(washout) if isinstance(washout, list | tuple) else [washout] * len(inputs)
    if len(given) != len(inputs):
        raise ReservoirError(f"found {len(given)} washouts for {len(inputs)} series; wanted one number or one for each")
    for i, (steps, u) in enumerate(zip(given, inputs, strict=True)):
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 0:
            raise ReservoirError(f"the washout of series {i} is {steps!r}; wanted a number of steps, 0 or more")
        if steps >= len(u):
            raise ReservoirError(
                f"series {i} has {len(u)} steps and a washout of {steps}: nothing is left to learn from"
            )
    return [int(w) for w in given]


def number(value: Any, name: str, low: float, high: float) -> float:
    """A finite real number in low..high as a float. Raises ReservoirError."""
    try:
        out = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ReservoirError(f"{name} is {value!r}; wanted a number") from None
    if isinstance(value, str) or not low <= out <= high or not np.isfinite(out):
        raise ReservoirError(f"{name} is {value!r}; wanted {low:g} to {high:g}")
    return out


def count(value: Any, name: str, low: int = 1, high: int = 1 << 20) -> int:
    """A whole number in low..high. Raises ReservoirError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ReservoirError(f"{name} is {value!r}; wanted a whole number from {low} to {high}")
    return int(value)
