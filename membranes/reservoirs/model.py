"""Echo state networks, one layer or several: states, readout, prediction, free run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from .engine import Engine, Readout, features
from .errors import ReservoirError
from .layer import Layer, check_layers, random_layer
from .readout import RLS, Fit, RidgeFactor
from .signals import as_series, check_pairs, count, number, washouts

if TYPE_CHECKING:
    from echoc import Artifact
    from echoc.compiler.ir import Program

Array = NDArray[np.float64]
SQUARES = ("none", "half", "all")
_CHUNK = 4096  # steps whose states are held at once while a readout is learnt


class Reservoir:
    """Stacked layers with one linear readout. `ESN` and `DeepESN` make one with random weights.

    Args:
        layers: each is driven by channels of the inputs and by layers before it; all get the feedback.
        inputs: channels of the input; default: as many as the layers hear.
        ridge: the readout's penalty on the square of its weights.
        squares: the readout sees the states (`none`), the states with every second one squared (`half`; Pathak et al.,
            Phys. Rev. Lett. 120, 024102, 2018), or the states and all their squares (`all`).
        input_to_readout: whether the readout sees the inputs too.
        device: `cpu`, `cpu:LEVEL`, `cuda:LEVEL` or `rocm:LEVEL` (a kernel, compiled when first needed), or `ref`
            (numpy).
        dtype: of the states on the device, f64 or f32; the readout is learnt and applied in f64.
        membranes: how many layers stand together in each membrane of `program`; default: each in one of its own.
    """

    def __init__(
        self, layers: Sequence[Layer], *, inputs: int | None = None, ridge: float = 1e-8, squares: str = "none",
        input_to_readout: bool = True, device: str = "cpu", dtype: str = "f64", membranes: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.layers = list(layers)
        self.membranes = [1] * len(self.layers) if membranes is None else list(membranes)
        if sum(self.membranes) != len(self.layers) or min(self.membranes, default=1) < 1:
            raise ReservoirError(f"the membranes hold {self.membranes} layers; there are {len(self.layers)}")
        if not self.layers:
            raise ReservoirError("found no layers; wanted at least one")
        self.ridge = number(ridge, "the ridge", 0, 1e30)
        if squares not in SQUARES:
            raise ReservoirError(f"squares is {squares!r}; wanted one of {', '.join(SQUARES)}")
        self.squares, self.input_to_readout = squares, bool(input_to_readout)
        heard = max(sum(layer.hears) if layer.hears[1] else 0 for layer in self.layers)
        self.inputs = heard if inputs is None else inputs
        check_layers(self.layers, self.inputs)
        self.feedback = self.layers[0].feedback.shape[1]
        self.units = sum(layer.units for layer in self.layers)
        self.readout: Array | None = None
        self.engine = Engine(self.layers, self.inputs, device, dtype)
        self._fed: Readout | None = None
        self.last_fit: Fit | None = None
        self.state: Array = np.zeros(self.units)
        self.output: Array = np.zeros(self.feedback)

    def reset(self) -> None:
        """Back to the zero state."""
        self.state = np.zeros(self.units)
        self.output = np.zeros_like(self.output)

    @overload
    def states(self, u: NDArray[Any], teacher: Any = ..., initial: Any = ...) -> Array: ...
    @overload
    def states(self, u: list[Any], teacher: Any = ..., initial: Any = ...) -> list[Array]: ...
    def states(self, u: Any, teacher: Any = None, initial: Any = None) -> Array | list[Array]:
        """States [steps, units] that an input series drives, from the zero state or `initial` [units].

        Args:
            u: one series [steps, inputs], or a list of series, which gives a list.
            teacher: for a reservoir with feedback, the outputs y [steps, outputs], fed back one step late.
        Raises: ReservoirError for signals that do not fit.
        """
        series = self._inputs(u)
        out = [
            self._run(s, self._late(t, len(s)), self._start(initial))
            for s, t in zip(series, self._teachers(teacher, series), strict=True)
        ]
        return out if isinstance(u, list) and len(series) == len(u) and np.ndim(u[0]) > 1 else out[0]

    def fit(self, u: Any, y: Any, washout: int | Sequence[int] = 100) -> Reservoir:
        """Learns the readout from one series or several, by ridge regression over all their steps after the washout.

        Every series starts from the zero state. Afterwards `state` and `output` are those at the end of the last
        series, where `free_run` goes on. Raises ReservoirError; warns ReadoutWarning.
        """
        series = self._inputs(u)
        targets = as_series(y, "the targets", self.feedback or None)
        check_pairs(series, targets)
        skip = washouts(washout, series)
        outputs = targets[0].shape[1]
        if any(t.shape[1] != outputs for t in targets):
            raise ReservoirError("the target series differ in their channels; wanted the same in all")
        factor = RidgeFactor(self.features, outputs)
        for s, t, w in zip(series, targets, skip, strict=True):
            late, x = self._late(t if self.feedback else None, len(s)), np.zeros(self.units)
            for begin in range(0, len(s), _CHUNK):
                part = slice(begin, begin + _CHUNK)
                states = self._run(s[part], late[part], x)
                x = states[-1]
                kept = slice(max(0, w - begin), None)
                if begin + len(states) > w:
                    factor.add(self._features(s[part][kept], states[kept]), t[part][kept])
            self.state, self.output = x, t[-1].copy()
        self.last_fit = factor.solve(self.ridge)
        self.readout = self.last_fit.weights
        return self

    def predict(self, u: Any, initial: Any = None, teacher: Any = None) -> Any:
        """Outputs [steps, outputs] for an input series (or a list of them), from the zero state or `initial`.

        A reservoir with feedback hears its own outputs, or `teacher` where that is given. Raises ReservoirError.
        """
        weights = self._readout()
        series = self._inputs(u)
        out = []
        for s, t in zip(series, self._teachers(teacher, series, optional=True), strict=True):
            x = self._start(initial)
            if self.feedback and t is None:
                out.append(self._loop(len(s), s, x, np.zeros(self.feedback))[0])
            else:
                out.append(self._features(s, self._run(s, self._late(t, len(s)), x)) @ weights.T)
        return out if isinstance(u, list) and len(series) == len(u) and np.ndim(u[0]) > 1 else out[0]

    def free_run(self, steps: int, inputs: Any = None, warmup: Any = None) -> Array:
        """Outputs [steps, outputs] of the closed loop, from where the last series ended.

        Without feedback weights each output is the next input, so there must be as many outputs as inputs. With them
        the outputs are fed back, and `inputs` [steps, inputs] drives the run where the reservoir has inputs.

        Args:
            warmup: a series that first drives the reservoir from the zero state (with feedback: the outputs so far;
                the reservoir must then have no inputs); the free run goes on behind it.
        """
        count(steps, "the number of steps", 1, 1 << 24)
        self._readout()
        if warmup is not None:
            self._warm(warmup)
        drive = None
        if self.feedback and self.inputs:
            if inputs is None:
                raise ReservoirError(
                    f"the reservoir has {self.inputs} inputs and feedback; wanted `inputs` for the run"
                )
            (drive,) = as_series(np.asarray(inputs), "the inputs", self.inputs)
            if len(drive) != steps:
                raise ReservoirError(f"the inputs have {len(drive)} steps; wanted {steps}")
        elif not self.feedback and len(self.output) != self.inputs:
            raise ReservoirError(
                f"the readout has {len(self.output)} outputs and the reservoir {self.inputs} inputs; a free run feeds "
                "one into the other: wanted as many, or a reservoir with feedback"
            )
        out, self.state = self._loop(steps, drive, self.state, self.output)
        self.output = out[-1].copy()
        return out

    def fit_online(
        self, u: Any, y: Any, washout: int = 100, *, ridge: float = 1e-6, forgetting: float = 1.0
    ) -> tuple[RLS, Array]:
        """Learns the readout sample by sample along one series, by recursive least squares.

        Returns: the learner, whose `update` takes rows of `observe`, and the error before each sample
            [steps - washout, outputs]. Raises ReservoirError.
        """
        series, targets = self._inputs(u), as_series(y, "the targets", self.feedback or None)
        check_pairs(series, targets)
        (skip,) = washouts(washout, series[:1])
        if len(series) != 1:
            raise ReservoirError(f"found {len(series)} series; wanted one to learn along")
        rows = self.observe(series[0], teacher=targets[0] if self.feedback else None)
        learner = RLS(self.features, targets[0].shape[1], ridge=ridge, forgetting=forgetting)
        pairs = zip(rows[skip:], targets[0][skip:], strict=True)
        errors = np.stack([learner.update(row, target) for row, target in pairs])
        self.readout, self.output = learner.weights, targets[0][-1].copy()
        self.state = self.states(series[0], teacher=targets[0] if self.feedback else None)[-1]
        return learner, errors

    def observe(self, u: Any, teacher: Any = None, initial: Any = None) -> Array:
        """What the readout sees along one series, [steps, features]: one, the inputs, the states and their squares."""
        (series,) = self._inputs(np.asarray(u))
        return self._features(series, self.states(series, teacher=teacher, initial=initial))

    @property
    def features(self) -> int:
        """How many numbers the readout sees: one, the inputs, the states (and their squares)."""
        return 1 + (self.inputs if self.input_to_readout else 0) + self.units * (2 if self.squares == "all" else 1)

    def _features(self, inputs: Array, states: Array) -> Array:
        return features(inputs, states, self.squares, self.input_to_readout)

    def _run(self, inputs: Array, late: Array, state: Array) -> Array:
        states: Array = self.engine.run(inputs[None], late[None], state[None])[0]
        return states.reshape(states.shape[1:])

    def _loop(self, steps: int, drive: Array | None, state: Array, output: Array) -> tuple[Array, Array]:
        """The closed loop: outputs [steps, outputs] and the last state."""
        weights = self._readout()
        if self._fed is None or self._fed.weights is not weights:
            self._fed = Readout(weights, self.squares, self.input_to_readout)
        return self.engine.loop(steps, drive, state, output, self._fed)

    def program(self, dtype: str = "f64") -> tuple[Program, dict[str, NDArray[Any]]]:
        """The reservoir as a verified program of nested membranes, and its weights' values; see `reservoir_program`."""
        from .program import reservoir_program

        return reservoir_program(
            self.layers, self.inputs, self.readout, self.squares, self.input_to_readout, dtype, self.membranes
        )

    def compile(self, output: str | os.PathLike[str], target: str = "cpu", dtype: str = "f64") -> Artifact:
        """Compiles `program` into an artifact: a step takes `u` [T, inputs] and gives `y` [T, outputs], or
        `x` [T, units] where no readout was learnt. Raises CompileError.
        """
        from echoc.compiler.targets.reservoir_artifact import compile_reservoir

        from .nesting import flatten

        program, weights = self.program(dtype)
        return compile_reservoir(flatten(program), weights.__getitem__, output=output, target=target)

    def _warm(self, warmup: Any) -> None:
        if self.feedback and self.inputs:
            raise ReservoirError(
                "a warm-up drives a reservoir with inputs or with feedback; this one has both: use `predict`"
            )
        (series,) = as_series(np.asarray(warmup), "the warm-up", self.feedback or self.inputs)
        if len(series) == 0:
            raise ReservoirError("the warm-up has no steps; wanted at least one")
        drive = np.zeros((len(series), 0)) if self.feedback else series
        states = self._run(drive, self._late(series if self.feedback else None, len(series)), np.zeros(self.units))
        self.state = states[-1]
        features = self._features(drive[-1:], states[-1:])
        self.output = series[-1] if self.feedback else (features @ self._readout().T)[0]

    def _inputs(self, u: Any) -> list[Array]:
        series = as_series(u, "the inputs", self.inputs)
        for i, s in enumerate(series):
            if len(s) == 0:
                raise ReservoirError(f"input series {i} has no steps; wanted at least one")
        return series

    def _teachers(self, teacher: Any, series: Sequence[Array], optional: bool = False) -> list[Array | None]:
        if not self.feedback or (teacher is None and optional):
            return [None] * len(series)
        if teacher is None:
            raise ReservoirError("this reservoir has feedback; wanted `teacher`, its outputs along the inputs")
        teachers = as_series(teacher, "the teacher", self.feedback)
        check_pairs(series, teachers)
        return list(teachers)

    def _late(self, teacher: Array | None, steps: int = 0) -> Array:
        """What is fed back at each step: the output of the step before, zero at first."""
        if teacher is None:
            return np.zeros((steps, 0))
        return np.vstack([np.zeros((1, teacher.shape[1])), teacher[:-1]])

    def _start(self, initial: Any) -> Array:
        if initial is None:
            return np.zeros(self.units)
        (row,) = as_series(np.asarray(initial).reshape(1, -1), "the initial state", self.units)
        return row.reshape(-1)

    def _readout(self) -> Array:
        if self.readout is None:
            raise ReservoirError("the readout has not been learnt; call fit first")
        return self.readout


class ESN(Reservoir):
    """An echo state network with random weights.

    Args:
        units: how many.
        inputs, feedback: channels of the input, and of the output that is fed back (0: none).
        spectral_radius: of the recurrent weights, computed and then set exactly.
        leak: in (0, 1]; 1 is no leak.
        connectivity: the share of recurrent weights that are there.
        input_scaling: of the input weights, one number or one per channel; `bias` and `feedback_scaling` likewise.
        distribution: uniform in [-1, 1], normal, or bipolar.
        pattern: of the recurrent weights: balanced (units of equal in-degree, laid out so that compiled steps run
            fastest) or uniform (each weight is there or not by itself).
        seed: the same seed gives the same weights.
        ridge, squares, input_to_readout, device, dtype: see `Reservoir`.
    """

    def __init__(
        self,
        units: int,
        inputs: int = 1,
        *,
        feedback: int = 0,
        spectral_radius: float = 0.9,
        leak: float = 1.0,
        connectivity: float = 0.1,
        input_scaling: float | Sequence[float] = 1.0,
        bias: float = 0.0,
        feedback_scaling: float = 1.0,
        input_connectivity: float = 1.0,
        distribution: str = "uniform",
        pattern: str = "balanced",
        seed: int = 0,
        ridge: float = 1e-8,
        squares: str = "none",
        input_to_readout: bool = True,
        device: str = "cpu",
        dtype: str = "f64",
    ) -> None:
        count(inputs, "the number of inputs", 0)
        count(feedback, "the number of outputs fed back", 0)
        layer = random_layer(
            units, inputs, feedback, spectral_radius=spectral_radius, leak=leak, connectivity=connectivity,
            input_scaling=input_scaling, bias=bias, feedback_scaling=feedback_scaling,
            input_connectivity=input_connectivity, distribution=distribution, pattern=pattern,
            rng=np.random.default_rng(count(seed, "the seed", 0, 1 << 62)),
        )  # fmt: skip
        super().__init__(
            [layer], ridge=ridge, squares=squares, input_to_readout=input_to_readout, device=device, dtype=dtype
        )


class DeepESN(Reservoir):
    """Layers in a stack, each driven by the states of the one below (Gallicchio, Micheli, Pedrelli, Neurocomputing 268,
    2017). The readout sees all of them.

    Args:
        units: of each layer.
        spectral_radius, leak, connectivity: one number, or one per layer.
        inter_scaling: the input scaling of the layers above the first; their input weights are divided by the square
            root of the number of units below, so that the scaling means the same at any size.
        Others: as for `ESN`.
    """

    def __init__(
        self,
        units: Sequence[int],
        inputs: int = 1,
        *,
        spectral_radius: float | Sequence[float] = 0.9,
        leak: float | Sequence[float] = 1.0,
        connectivity: float | Sequence[float] = 0.1,
        input_scaling: float | Sequence[float] = 1.0,
        inter_scaling: float = 1.0,
        bias: float = 0.0,
        feedback: int = 0,
        feedback_scaling: float = 1.0,
        distribution: str = "uniform",
        pattern: str = "balanced",
        seed: int = 0,
        ridge: float = 1e-8,
        squares: str = "none",
        input_to_readout: bool = True,
        device: str = "cpu",
        dtype: str = "f64",
    ) -> None:
        if isinstance(units, int | np.integer | str) or not 1 <= len(units) <= 1000:
            raise ReservoirError(f"the units of the layers are {units!r}; wanted a list with one number per layer")
        rng = np.random.default_rng(count(seed, "the seed", 0, 1 << 62))
        layers: list[Layer] = []
        for i, size in enumerate(units):
            below = layers[-1].units if layers else count(inputs, "the number of inputs", 0)
            layers.append(
                random_layer(
                    size, below, feedback, spectral_radius=_each(spectral_radius, i, len(units), "spectral_radius"),
                    leak=_each(leak, i, len(units), "leak"),
                    connectivity=_each(connectivity, i, len(units), "connectivity"),
                    input_scaling=number(inter_scaling, "the inter scaling", -1e6, 1e6) / below**0.5 if layers
                    else input_scaling,
                    bias=bias, feedback_scaling=feedback_scaling, input_connectivity=1.0, distribution=distribution,
                    rng=rng, pattern=pattern, channels=None if i == 0 else (0, 0), children=(i - 1,) if i else (),
                )
            )  # fmt: skip
        super().__init__(
            layers, inputs=inputs, ridge=ridge, squares=squares, input_to_readout=input_to_readout, device=device,
            dtype=dtype,
        )  # fmt: skip


def _each(value: float | Sequence[float], layer: int, layers: int, name: str) -> float:
    if not isinstance(value, list | tuple):
        return value  # type: ignore[return-value]
    if len(value) != layers:
        raise ReservoirError(f"{name} has {len(value)} values for {layers} layers; wanted one or one per layer")
    return float(value[layer])
