"""One layer of leaky-integrator units, and its meaning in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ReservoirError
from .signals import count, number
from .weights import draw, random_recurrent, scaled, short

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """x(t) = (1 - leak) x(t-1) + leak tanh(input [1; u(t)] + recurrent x(t-1) + feedback y(t-1)).

    `recurrent` [units, units], `input` [units, 1 + inputs] with the bias first, `feedback` [units, outputs] or
    [units, 0]. (Jaeger, GMD report 148, 2001; Lukosevicius, A practical guide to applying echo state networks, 2012.)
    """

    recurrent: Array
    input: Array
    feedback: Array
    leak: float

    @property
    def units(self) -> int:
        return len(self.recurrent)

    @property
    def matrix(self) -> Array:
        """All weights side by side, [units, units + 1 + inputs + outputs]: what multiplies [x; 1; u; y]."""
        return np.hstack([self.recurrent, self.input, self.feedback])


def random_layer(
    units: int,
    inputs: int,
    outputs: int,
    *,
    spectral_radius: float,
    leak: float,
    connectivity: float,
    input_scaling: float | Sequence[float],
    bias: float,
    feedback_scaling: float,
    input_connectivity: float,
    distribution: str,
    rng: np.random.Generator,
) -> Layer:
    """A layer with random weights. Raises ReservoirError for values out of range."""
    count(units, "the number of units", 1, 1 << 16)
    number(spectral_radius, "the spectral radius", 0, 1e6)
    number(connectivity, "the connectivity", 0, 1)
    number(input_connectivity, "the input connectivity", 0, 1)
    number(bias, "the bias", 0, 1e6)
    number(feedback_scaling, "the feedback scaling", -1e6, 1e6)
    if number(leak, "the leak", 0, 1) == 0:
        raise ReservoirError("the leak is 0: the state would never change; wanted above 0, up to 1")
    scaling = _scaling(input_scaling, inputs)
    recurrent = scaled(random_recurrent(units, connectivity, rng, distribution), spectral_radius)
    drive = draw(rng, (units, inputs), distribution) * scaling
    drive = np.where(rng.random((units, inputs)) < input_connectivity, drive, 0.0)
    offset = draw(rng, (units, 1), distribution) * bias
    feedback = draw(rng, (units, outputs), distribution) * feedback_scaling
    return Layer(short(recurrent), short(np.hstack([offset, drive])), short(feedback), float(leak))


def _scaling(given: float | Sequence[float], inputs: int) -> Array:
    values = np.atleast_1d(np.asarray(given, object))
    if values.ndim != 1 or len(values) not in (1, inputs):
        raise ReservoirError(f"the input scaling has {values.size} values for {inputs} inputs; wanted one or one each")
    return np.array([number(v, "the input scaling", -1e6, 1e6) for v in values])


def run_layers(layers: Sequence[Layer], inputs: Array, feedback: Array, state: Array) -> Array:
    """The states [steps, all units] of stacked layers, each driven by the one below; the first by `inputs`.

    `inputs` [steps, inputs]; `feedback` [steps, outputs] holds y(t-1) at row t; `state` [all units] is x(-1).
    """
    steps = len(inputs)
    out: Array = np.empty((steps, sum(layer.units for layer in layers)))
    begin, drive = 0, inputs
    for layer in layers:
        end = begin + layer.units
        external = drive @ layer.input[:, 1:].T + layer.input[:, 0]
        if layer.feedback.shape[1]:
            external += feedback @ layer.feedback.T
        x = state[begin:end]
        for t in range(steps):
            x = (1 - layer.leak) * x + layer.leak * np.tanh(layer.recurrent @ x + external[t])
            out[t, begin:end] = x
        drive, begin = out[:, begin:end], end
    return out
