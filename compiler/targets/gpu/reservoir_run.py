"""Batches of series on a GPU, in the process that made the kernel; an artifact is for all other processes."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from echoc import _native
from echoc.compiler.targets.cpu.reservoir import NetworkPlan
from echoc.compiler.targets.gpu.levels import Level
from echoc.compiler.targets.gpu.reservoir import ReservoirSource, batch_kernel
from echoc.errors import DeviceError

Array = npt.NDArray[Any]


class GpuReservoirKernel:
    """One network on the device that ECHOC_DEVICE_INDEX names, else the first. Not safe for use from several threads.

    `loop` says what the readout's outputs drive: "none" (the states are wanted), "feedback" or "closed" (the outputs).
    Raises: CompileError, and DeviceError where there is no driver; `run` where there is no such device, or its
    architecture is another one.
    """

    def __init__(self, network: NetworkPlan, dtype: str, level: Level, loop: str) -> None:
        self.network, self.dtype = network, np.dtype(dtype.replace("f", "float"))
        self.kernel: ReservoirSource = batch_kernel(network, dtype, level, loop)
        self.image, _ = self.kernel.build(level)
        self.units = sum(layer.units for layer in network.layers)
        self.outputs = 0 if network.readout is None else len(network.readout)
        self.loops = loop != "none"
        vendor = level.device.vendor
        self._driver = _native.GpuDriver(vendor, os.environ.get(f"ECHOC_{vendor.upper()}_LIBRARY", ""))
        self._batch = 0
        self._executor: _native.GpuExecutor | None = None

    def run(
        self, inputs: Array, state: Array, *, late: Array | None = None, output: Array | None = None
    ) -> Array:  # fmt: skip
        """Runs a batch of series of one length.

        Args:
            inputs: [batch, steps, inputs]; in a closed loop only its shape counts.
            state: [batch, units], changed in place to the last one, in the kernel's dtype.
            late: [batch, steps, feedback], y(t-1) at row t, where the loop is "none".
            output: [batch, outputs], that of the step before, changed in place, where outputs drive something.
        Returns: states [batch, steps, units], or outputs [batch, steps, outputs] of a loop.
        Raises: DeviceError.
        """
        batch, steps = inputs.shape[:2]
        out = np.empty((batch, steps, self.outputs if self.loops else self.units), self.dtype)
        if not batch or not steps:
            return out
        executor = self._bound(batch)
        held = [state] if output is None else [state, output]
        try:
            for i, array in enumerate(held):
                executor.write_state(i, array.reshape(-1).view(np.uint8))
            fed = np.zeros((batch, steps, 0), self.dtype) if late is None else late
            ports = [np.ascontiguousarray(inputs, self.dtype), np.ascontiguousarray(fed, self.dtype), out]
            executor.step(0, [batch, steps], ports)
            for i, array in enumerate(held):
                array[...] = np.frombuffer(executor.read("state", i, 0, array.nbytes), self.dtype).reshape(array.shape)
        except RuntimeError as error:
            raise DeviceError(str(error)) from None
        return out

    def _bound(self, batch: int) -> _native.GpuExecutor:
        """The device's memory for batches up to this size."""
        if self._executor is not None and batch <= self._batch:
            return self._executor
        kernel, size = self.kernel, self.dtype.itemsize
        executor = _native.GpuExecutor(self._driver, _device())
        states = [(batch * self.units * size, 0), (batch * max(self.outputs, 1) * size, 0)]
        executor.bind(kernel.mail_bytes, [kernel.plan.nbytes], states, [False, False, True])
        module = executor.add_module(np.frombuffer(self.image, np.uint8), kernel.name)
        index = executor.add_kernel(
            module, kernel.name, kernel.name, kernel.shape.threads, kernel.shared_bytes, 0, kernel.shape.blocks > 1
        )
        arguments = [("weight", 0), ("arena", 0), ("state", 0), ("state", 1), ("port", 0), ("port", 1), ("port", 2)]
        blocks = kernel.shape.blocks * kernel.shape.teams
        executor.add_variant([(index, arguments, [0, 1], [([(blocks, [])], 1)], False, [])], 2, -1)
        executor.upload_weight(0, kernel.plan)
        executor.end_uploads()
        self._batch, self._executor = batch, executor
        return executor


def _device() -> int:
    """The number of the device to use. Raises DeviceError."""
    text = os.environ.get("ECHOC_DEVICE_INDEX", "0")
    if not text.isascii() or not text.isdigit():
        raise DeviceError(f"ECHOC_DEVICE_INDEX is {text!r}, wanted the number of a device, from 0")
    return int(text)
