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
MAX_UNITS = 1 << 13  # weights are dense until they are packed: half a GiB


@dataclass(frozen=True)
class Layer:
    """x(t) = (1 - leak) x(t-1) + leak tanh(input [1; u(t); children's x(t)] + recurrent x(t-1) + feedback y(t-1)).

    `recurrent` [units, units]; `input` [units, 1 + ...] with the bias first; `feedback` [units, outputs] or [units, 0].
    A layer hears the inputs' `channels` (first, count; None: as many as `input` has columns for) and the states of the
    layers that are its `children` (their numbers, below its own). (Jaeger, GMD report 148, 2001; Lukosevicius, A
    practical guide to applying echo state networks, 2012; Gallicchio, Micheli, Pedrelli, Neurocomputing 268, 2017.)
    """

    recurrent: Array
    input: Array
    feedback: Array
    leak: float
    channels: tuple[int, int] | None = None
    children: tuple[int, ...] = ()

    @property
    def units(self) -> int:
        return len(self.recurrent)

    @property
    def hears(self) -> tuple[int, int]:
        """The channels of the inputs that it hears: first, count."""
        return (0, self.input.shape[1] - 1) if self.channels is None else self.channels

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
    channels: tuple[int, int] | None = None,
    children: tuple[int, ...] = (),
    pattern: str = "balanced",
) -> Layer:
    """A layer with random weights; for the `pattern` of the recurrent ones see `random_recurrent`.

    Raises: ReservoirError for values out of range.
    """
    count(units, "the number of units", 1, MAX_UNITS)
    number(spectral_radius, "the spectral radius", 0, 1e6)
    number(connectivity, "the connectivity", 0, 1)
    number(input_connectivity, "the input connectivity", 0, 1)
    number(bias, "the bias", 0, 1e6)
    number(feedback_scaling, "the feedback scaling", -1e6, 1e6)
    if number(leak, "the leak", 0, 1) == 0:
        raise ReservoirError("the leak is 0: the state would never change; wanted above 0, up to 1")
    scaling = _scaling(input_scaling, inputs)
    recurrent = scaled(random_recurrent(units, connectivity, rng, distribution, pattern), spectral_radius)
    drive = draw(rng, (units, inputs), distribution) * scaling
    drive = np.where(rng.random((units, inputs)) < input_connectivity, drive, 0.0)
    offset = draw(rng, (units, 1), distribution) * bias
    feedback = draw(rng, (units, outputs), distribution) * feedback_scaling
    drive = np.hstack([offset, drive])
    return Layer(short(recurrent), short(drive), short(feedback), float(leak), channels, children)


def _scaling(given: float | Sequence[float], inputs: int) -> Array:
    values = np.atleast_1d(np.asarray(given, object))
    if values.ndim != 1 or len(values) not in (1, inputs):
        raise ReservoirError(f"the input scaling has {values.size} values for {inputs} inputs; wanted one or one each")
    return np.array([number(v, "the input scaling", -1e6, 1e6) for v in values])


def check_layers(layers: Sequence[Layer], inputs: int) -> None:
    """Raises ReservoirError for layers whose arrays do not fit each other, the inputs or the layers before them."""
    for i, layer in enumerate(layers):
        first, channels = layer.hears
        if any(not 0 <= c < i for c in layer.children):
            raise ReservoirError(f"layer {i} is driven by the layers {layer.children}; wanted layers before it")
        columns = 1 + channels + sum(layers[c].units for c in layer.children)
        shapes = [layer.recurrent.shape, layer.input.shape, layer.feedback.shape]
        wanted = [(layer.units, layer.units), (layer.units, columns), (layer.units, layers[0].feedback.shape[1])]
        if shapes != wanted or layer.units == 0:
            raise ReservoirError(f"layer {i} has weights of the shapes {shapes}; wanted {wanted}")
        if first < 0 or channels < 0 or first + channels > inputs:
            raise ReservoirError(f"layer {i} hears {channels} channels from {first} on; there are {inputs}")
        if not all(np.isfinite(a).all() for a in (layer.recurrent, layer.input, layer.feedback)):
            raise ReservoirError(f"layer {i} has weights that are NaN or infinite; wanted finite numbers")


def run_layers(layers: Sequence[Layer], inputs: Array, feedback: Array, state: Array) -> Array:
    """The states [steps, all units] of layers, each driven by channels of `inputs` and by the layers below it.

    `inputs` [steps, inputs]; `feedback` [steps, outputs] holds y(t-1) at row t; `state` [all units] is x(-1).
    """
    steps = len(inputs)
    out: Array = np.empty((steps, sum(layer.units for layer in layers)))
    begin, spans = 0, list[slice]()
    for layer in layers:
        end = begin + layer.units
        first, channels = layer.hears
        drive = np.hstack([inputs[:, first : first + channels], *(out[:, spans[c]] for c in layer.children)])
        external = drive @ layer.input[:, 1:].T + layer.input[:, 0]
        if layer.feedback.shape[1]:
            external += feedback @ layer.feedback.T
        x = state[begin:end]
        for t in range(steps):
            x = (1 - layer.leak) * x + layer.leak * np.tanh(layer.recurrent @ x + external[t])
            out[t, begin:end] = x
        spans.append(slice(begin, end))
        begin = end
    return out
