"""Batches of series through a reservoir kernel in the process that made it; an artifact is for all others.

    kernel = ReservoirKernel(library, name, "f64", plan, scratch_bytes)
    states, outputs = kernel.run(inputs, state=state)

What the plan's bytes mean stands in kernels/cpu/reservoir.h.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

from echoc import _native
from echoc.errors import DeviceError, RequestError

Array = npt.NDArray[Any]
_SCRATCH_GAP = 128
_DTYPES = {"f64": np.float64, "f32": np.float32}
_HEADER = ("layers", "inputs", "feedback", "units", "outputs")


class ReservoirKernel:
    """One network: its plan, its kernel and its threads. Not safe for use from several threads at once.

    Raises: DeviceError when the system does not load the library.
    """

    def __init__(
        self, library: bytes, name: str, dtype: str, plan: npt.NDArray[np.uint8], scratch_bytes: int,
        num_threads: int = 1,
    ) -> None:  # fmt: skip
        self.dtype: np.dtype[Any] = np.dtype(_DTYPES[dtype])
        header = np.frombuffer(plan[: 8 * len(_HEADER)].tobytes(), np.int64)
        self.inputs, self.feedback, self.units, self.outputs = (int(n) for n in header[1:])
        self._plan = _aligned(plan.nbytes)
        self._plan[:] = plan
        if num_threads < 1:
            raise DeviceError(f"num_threads is {num_threads}, wanted 1 or more")
        self.num_threads = num_threads
        stride = (scratch_bytes + _SCRATCH_GAP + 63) // 64 * 64
        self._scratch = _aligned(stride * self.num_threads)
        self._executor = _load(library, self.num_threads)
        self._executor.bind(0, self._scratch.ctypes.data, stride, [self._plan.ctypes.data], [], 6)
        arguments = [("weight", 0), *(("port", i) for i in range(6))]
        self._executor.add_variant([(name, False, False, arguments)])

    def run(
        self, inputs: Array, state: Array, *, late: Array | None = None, output: Array | None = None,
        want_states: bool = True, want_outputs: bool = False, closed: bool = False,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Runs a batch of series of one length.

        Args:
            inputs: [batch, steps, inputs]; in a closed loop only its shape counts.
            state: [batch, units], changed in place to the last one, in the kernel's dtype.
            late: [batch, steps, feedback], y(t-1) at row t; None: the readout's own outputs are fed back.
            output: [batch, outputs], that of the step before, changed in place.
            closed: whether each output is the next input.
        Returns: states [batch, steps, units] and outputs [batch, steps, outputs], empty where not wanted.
        Raises: RequestError for arrays that do not fit the network.
        """
        batch, steps = inputs.shape[:2]
        x = np.ascontiguousarray(inputs, self.dtype)
        fed = np.zeros((batch, steps, 0), self.dtype) if late is None else np.ascontiguousarray(late, self.dtype)
        last = np.zeros((batch, self.outputs), self.dtype) if output is None else output
        wanted = [
            ("inputs", x, (batch, steps, self.inputs)), ("state", state, (batch, self.units)),
            ("late", fed, (batch, steps, 0 if late is None else self.feedback)),
            ("output", last, (batch, self.outputs)),
        ]  # fmt: skip
        for name, array, shape in wanted:
            if array.shape != shape or array.dtype != self.dtype or not array.flags.c_contiguous:
                raise RequestError(
                    f"{name} is {array.dtype} of shape {list(array.shape)}; wanted {self.dtype}, {list(shape)}, C order"
                )
        own = closed or (late is None and self.feedback > 0)
        if own and (self.outputs != self.inputs if closed else self.outputs != self.feedback):
            raise RequestError(
                f"the network has {self.outputs} outputs, {self.inputs} inputs, {self.feedback} channels of feedback; "
                "what is fed back wants as many outputs"
            )
        states = np.empty((batch, steps if want_states else 0, self.units), self.dtype)
        outputs = np.empty((batch, steps if want_outputs else 0, self.outputs), self.dtype)
        dims = [batch, steps, int(late is not None), int(want_states), int(want_outputs), int(closed)]
        if steps and batch:
            try:
                self._executor.step(0, dims, [x, fed, state, last, states, outputs])
            except RuntimeError as error:
                raise DeviceError(str(error)) from None
        return states, outputs


def _aligned(nbytes: int) -> npt.NDArray[np.uint8]:
    """Zeroed memory that starts on a 64-byte border."""
    memory = np.zeros(nbytes + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + nbytes]


def _load(library: bytes, num_threads: int) -> _native.Executor:
    try:
        with tempfile.NamedTemporaryFile(suffix=".so", delete=False) as file:
            file.write(library)
        try:
            return _native.Executor(file.name, num_threads)
        finally:
            os.unlink(file.name)
    except (RuntimeError, OSError) as error:
        raise DeviceError(f"the system does not load the reservoir's kernel: {error}") from None
