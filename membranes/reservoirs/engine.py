"""What runs layers over series: the compiled kernel, or numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import ReservoirError
from .layer import Layer, run_layers

if TYPE_CHECKING:
    from echoc.compiler.targets.cpu.reservoir import NetworkPlan, PackedNetwork
    from echoc.compiler.targets.cpu.reservoir_run import ReservoirKernel
    from echoc.compiler.targets.gpu.reservoir_run import GpuReservoirKernel

Array = NDArray[np.float64]
DTYPES = ("f64", "f32")
GPUS = ("cuda", "rocm")


class Readout:
    """The linear readout of a network: weights [outputs, features] over [1; inputs; states; squares]."""

    def __init__(self, weights: Array, squares: str, reads_inputs: bool) -> None:
        self.weights, self.squares, self.reads_inputs = weights, squares, reads_inputs


def features(inputs: Array, states: Array, squares: str, reads_inputs: bool) -> Array:
    """What a readout sees, [steps, features]: one, the inputs, the states and their squares."""
    seen = [np.ones((len(states), 1))]
    if reads_inputs:
        seen.append(inputs)
    if squares == "half":
        states = states.copy()
        states[:, 1::2] **= 2
    seen.append(states)
    if squares == "all":
        seen.append(states**2)
    return np.hstack(seen)


def network_plan(layers: Sequence[Layer], inputs: int, readout: Readout | None) -> NetworkPlan:
    """The network in the form that the CPU target packs."""
    from echoc.compiler.targets.cpu.reservoir import LayerPlan, NetworkPlan

    begins = np.concatenate([[0], np.cumsum([layer.units for layer in layers])])
    plans = []
    for layer in layers:
        first, count = layer.hears
        sources = [(False, first, count)] if count else []
        sources += [(True, int(begins[c]), layers[c].units) for c in layer.children]
        plans.append(LayerPlan(layer.matrix, layer.leak, tuple(sources)))
    feedback = layers[0].feedback.shape[1]
    if readout is None:
        return NetworkPlan(tuple(plans), inputs, feedback)
    return NetworkPlan(tuple(plans), inputs, feedback, readout.weights, readout.squares, readout.reads_inputs)


class Engine:
    """Layers on a device: `cpu`, `cpu:LEVEL`, `cuda:LEVEL` or `rocm:LEVEL` (compiled when first needed), or `ref`
    (numpy, float64)."""

    def __init__(self, layers: Sequence[Layer], inputs: int, device: str, dtype: str, threads: int = 1) -> None:
        kind, _, level = device.partition(":")
        if kind not in ("cpu", "ref", *GPUS) or (kind == "ref" and level):
            raise ReservoirError(f"unknown device {device!r}; wanted cpu, cpu:LEVEL, cuda:LEVEL, rocm:LEVEL or ref")
        if dtype not in DTYPES:
            raise ReservoirError(f"unknown dtype {dtype!r}; wanted f64 or f32")
        if kind == "ref" and dtype != "f64":
            raise ReservoirError("the device ref computes in f64; wanted dtype f64 or the device cpu")
        self.layers, self.inputs, self.dtype, self.threads = list(layers), inputs, dtype, threads
        self.feedback = self.layers[0].feedback.shape[1]
        self.level = (level or "native") if kind == "cpu" else None
        self.gpu = device if kind in GPUS else None
        self._packed: PackedNetwork | None = None
        self._kernels: dict[int, tuple[Readout | None, ReservoirKernel]] = {}
        self._gpu_kernels: dict[int, tuple[Readout | None, GpuReservoirKernel]] = {}

    def run(self, inputs: Array, late: Array, states: Array) -> tuple[Array, Array]:
        """All states [batch, steps, units] and the last ones [batch, units], which `states` are at the start."""
        if self.level is None and self.gpu is None:
            out = np.stack([run_layers(self.layers, u, y, x) for u, y, x in zip(inputs, late, states, strict=True)])
            return out, out[:, -1]
        last = states.astype(self.dtype.replace("f", "float"))
        for name, array in (("inputs", inputs), ("teacher", late)):
            self._check_range(name, array)
        if self.gpu is not None:
            found = self._gpu_kernel(None).run(inputs, last, late=late)
        else:
            found, _ = self._kernel(None).run(inputs, last, late=late)
        return found.astype(np.float64, copy=False), last.astype(np.float64, copy=False)

    def _check_range(self, name: str, array: Array) -> None:
        """Raises ReservoirError for numbers that are infinite in the device's dtype."""
        if self.dtype == "f32" and np.abs(array).max(initial=0.0) > np.finfo(np.float32).max:
            raise ReservoirError(
                f"the {name} reach {np.abs(array).max():.3g}, beyond f32; wanted smaller ones, or dtype f64"
            )

    def loop(
        self, steps: int, drive: Array | None, state: Array, output: Array, readout: Readout
    ) -> tuple[Array, Array]:
        """Outputs [steps, outputs], each fed back, and the last state; `drive` is [steps, inputs] or None."""
        if self.level is not None or self.gpu is not None:
            dtype = np.dtype(self.dtype.replace("f", "float"))
            if drive is not None:
                self._check_range("inputs", drive)
            last, y = state[None].astype(dtype), output[None].astype(dtype)
            u = np.zeros((1, steps, self.inputs), dtype) if drive is None else drive[None]
            if self.gpu is not None:
                outputs = self._gpu_kernel(readout).run(u, last, output=y)
            else:
                closed = not self.feedback
                _, outputs = self._kernel(readout).run(
                    u, last, output=y, want_states=False, want_outputs=True, closed=closed
                )
            return outputs[0].astype(np.float64), last[0].astype(np.float64)
        out: Array = np.empty((steps, len(readout.weights)))
        for t in range(steps):
            u = (output if not self.feedback else np.zeros(0) if drive is None else drive[t])[None]
            state = run_layers(self.layers, u, output[None], state)[-1]
            output = out[t] = (features(u, state[None], readout.squares, readout.reads_inputs) @ readout.weights.T)[0]
        return out, state

    def _kernel(self, readout: Readout | None) -> ReservoirKernel:
        """The kernel for a readout, packed and loaded once."""
        slot = int(readout is not None)
        held = self._kernels.get(slot)
        if held is not None and held[0] is readout:
            return held[1]
        from echoc.compiler.targets.cpu.reservoir import batch_kernel, is_wide, pack_layers, with_readout
        from echoc.compiler.targets.cpu.reservoir_run import ReservoirKernel

        assert self.level is not None
        plan = network_plan(self.layers, self.inputs, readout)
        if self._packed is None:
            self._packed = pack_layers(plan.layers, self.dtype, is_wide(self.level))
        packed = with_readout(self._packed, plan)
        code = batch_kernel(self.dtype, self.level)
        kernel = ReservoirKernel(code.library, code.name, self.dtype, packed.data, packed.scratch_bytes, self.threads)
        self._kernels[slot] = (readout, kernel)
        return kernel

    def _gpu_kernel(self, readout: Readout | None) -> GpuReservoirKernel:
        """The kernel for the states (no readout) or for the loop of a readout, built and loaded once."""
        slot = int(readout is not None)
        held = self._gpu_kernels.get(slot)
        if held is not None and held[0] is readout:
            return held[1]
        from echoc.compiler.targets.gpu.levels import level_of
        from echoc.compiler.targets.gpu.reservoir_run import GpuReservoirKernel

        assert self.gpu is not None
        loop = "none" if readout is None else "feedback" if self.feedback else "closed"
        plan = network_plan(self.layers, self.inputs, readout)
        kernel = GpuReservoirKernel(plan, self.dtype, level_of(self.gpu), loop)
        self._gpu_kernels[slot] = (readout, kernel)
        return kernel
