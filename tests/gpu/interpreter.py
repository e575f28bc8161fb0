"""Generated GPU kernels in Triton's interpreter: one kernel, or the launch list of a variant, on CPU memory."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as triton_interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from echoc.compiler.ir import DType, StateType
from echoc.compiler.ir.ops.pointwise import round_bf16
from echoc.compiler.ir.types import dim_value
from echoc.compiler.targets.gpu import weights
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.lower import Lowered
from echoc.compiler.targets.gpu.printer import ELEMENT_BYTES
from echoc.compiler.targets.interface import states_of
from echoc.compiler.weights import Weights

Array = np.ndarray[Any, Any]
TORCH = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64,
    "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8,
}  # fmt: skip
_LOADED: dict[str, Callable[..., Any]] = {}
_FOLDER = tempfile.TemporaryDirectory(prefix="echoc-interpreter-")
_create_splat = triton_interpreter.InterpreterBuilder.create_splat


def _splat(builder: Any, type_: Any, value: Any) -> Any:
    """The interpreter keeps a comparison's operand type, and would make a block of floats of a scalar condition."""
    if value.data.dtype == np.bool_:
        value = triton_interpreter.TensorHandle(value.data, tl.int1)
    return _create_splat(builder, type_, value)


_cast = triton_interpreter.InterpreterBuilder.cast_impl


def _rounding_cast(builder: Any, value: Any, type_: Any) -> Any:
    """The interpreter cuts f32 off to bf16; devices round to the nearest, ties to even."""
    if type_.scalar == tl.bfloat16 and value.dtype.scalar == tl.float32:
        bits = round_bf16(value.data).view(np.uint32) >> 16
        return triton_interpreter.TensorHandle(bits.astype(np.uint16), tl.bfloat16)
    return _cast(builder, value, type_)


triton_interpreter.InterpreterBuilder.create_splat = _splat
triton_interpreter.InterpreterBuilder.cast_impl = _rounding_cast
POISON = 0xA7  # what memory that nobody has written holds


def function(kernel: Kernel) -> Callable[..., Any]:
    """The Triton function of a kernel, from a file, as the interpreter wants it."""
    if kernel.name not in _LOADED:
        path = Path(_FOLDER.name) / f"{kernel.name}.py"
        path.write_text(kernel.source)
        spec = importlib.util.spec_from_file_location(kernel.name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _LOADED[kernel.name] = getattr(module, kernel.name)
    return _LOADED[kernel.name]


def passed(kernel: Kernel, pointers: Sequence[torch.Tensor], symbols: Mapping[str, int]) -> list[Any]:
    """What a kernel is called with: tensors, and maps of those that it reads in boxes."""
    found: list[Any] = []
    for pointer, argument in zip(pointers, kernel.arguments, strict=True):
        matrix = argument.matrix
        if matrix is None:
            found.append(pointer)
            continue
        shape = [dim_value(matrix.rows, symbols), matrix.columns]
        found.append(TensorDescriptor(pointer, shape, [matrix.columns, 1], list(matrix.box)))
    return [*found, *(symbols[s] for s in kernel.symbols)]


def launch(kernel: Kernel, memory: Sequence[torch.Tensor], symbols: Mapping[str, int]) -> None:
    """One launch. `memory` are 1-D tensors of bytes, one per argument."""
    grid = [max(-(-dim_value(size, symbols) // tile), 0) for size, tile in kernel.grid]
    pointers = [m.view(TORCH[a.element]) for m, a in zip(memory, kernel.arguments, strict=True)]
    if all(grid):
        function(kernel)[tuple(grid)](*passed(kernel, pointers, symbols))


def empty(nbytes: int) -> torch.Tensor:
    """Bytes that nobody has written."""
    return torch.full((max(-(-nbytes // 64) * 64, 64),), POISON, dtype=torch.uint8)


def from_array(array: Array) -> torch.Tensor:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    out = empty(flat.nbytes)
    out[: flat.nbytes] = torch.from_numpy(flat.copy())
    return out


class Machine:
    """A lowered program with its weights and states in memory."""

    def __init__(self, low: Lowered, values: Weights, num_pages: int = 16) -> None:
        self.low = low
        self.weights = [
            from_array(
                np.concatenate([np.asarray(p).reshape(-1).view(np.uint8) for p in weights.parts(entry, values, 1)])
            )
            for entry in low.packing.entries
        ] + [from_array(values.plain(node)) for node in low.plain]
        self.states = []
        for state, spec in zip(low.program.skin.states, states_of(low.program.skin), strict=True):
            assert isinstance(state.type, StateType)
            pages = num_pages if spec["page_size"] else 1
            self.states.append(torch.zeros(spec["bytes_per_page"] * pages, dtype=torch.uint8))

    def variant(self, tokens: int | None, deterministic: bool) -> dict[str, Any]:
        """The smallest variant that serves so many tokens."""
        fitting = (v for v in self.low.variants if v["deterministic"] == deterministic)
        if tokens is not None:
            fitting = (v for v in fitting if v["max_tokens"] is None or v["max_tokens"] >= tokens)
        return next(fitting)

    def step(self, inputs: Mapping[str, Array], symbols: Mapping[str, int], deterministic: bool = False,
             variant: dict[str, Any] | None = None) -> dict[str, Array]:  # fmt: skip
        """The out ports of one step; inputs as they lie in memory (bf16 as its bits)."""
        chosen = variant or self.variant(symbols.get("T"), deterministic)
        skin = self.low.program.skin
        ports, shapes = [], {}
        for port in skin.ports:
            shape = [dim_value(d, symbols) for d in port.type.shape]
            shapes[port.name] = shape
            if port.direction == "in":
                ports.append(from_array(inputs[port.name]))
            else:
                ports.append(empty(int(np.prod(shape, dtype=np.int64)) * (port.type.dtype.bits // 8 or 1)))
        arena = empty(chosen["arena_bytes"] + 64)
        places = {"port": ports, "weight": self.weights, "state": self.states}
        for item in chosen["launches"]:
            kernel = self.low.kernels[item["kernel"]]
            memory = [arena[at:] if kind == "arena" else places[kind][at] for kind, at in item["args"]]
            memory = [_whole(m, a.element) for m, a in zip(memory, kernel.arguments, strict=True)]
            launch(kernel, memory, symbols)
        out = {}
        for port, memory in zip(skin.ports, ports, strict=True):
            if port.direction == "out":
                dtype = np.dtype(np.uint16) if port.type.dtype is DType.BF16 else port.type.dtype.numpy
                count = int(np.prod(shapes[port.name], dtype=np.int64))
                array = memory.numpy()[: count * dtype.itemsize].view(dtype).reshape(shapes[port.name])
                out[port.name] = array.copy()
        return out


def _whole(memory: torch.Tensor, element: str) -> torch.Tensor:
    size = ELEMENT_BYTES[element]
    return memory[: memory.numel() // size * size]


def bind(low: Lowered, inputs: Mapping[str, Array]) -> dict[str, int]:
    """The values of the symbols, read off the arrays; the highest where no array says."""
    symbols = {name: high for name, (_, high) in low.program.symbols.items()}
    for port in low.program.skin.ports:
        if port.name in inputs:
            for dim, found in zip(port.type.shape, inputs[port.name].shape, strict=True):
                if not isinstance(dim, int):
                    symbols[str(dim)] = found
    return symbols
