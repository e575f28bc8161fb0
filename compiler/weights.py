"""Values of weights while compiling: from a checkpoint, drawn at random, or computed by the `weights` rule."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoc import _native
from echoc.compiler.ir import Membrane, Node
from echoc.compiler.ir.interpret import run_rule
from echoc.compiler.ir.ops.pointwise import cast_array
from echoc.compiler.ir.types import DType
from echoc.compiler.passes.fold import RULE
from echoc.compiler.passes.pack import Packed
from echoc.errors import CompileError

Array = NDArray[Any]
Source = Callable[[str], Array]  # values in any float dtype; bf16 as u16 bits


def as_float(values: Array) -> Array:
    """float32 values; u16 arrays are bf16 bits."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def check_finite(name: str, values: Array) -> None:
    """Raises CompileError when a weight holds a NaN or an infinity."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, 1 << 22):
        part = flat[start : start + (1 << 22)]
        if part.dtype == np.uint16:
            bad = np.flatnonzero((part & 0x7F80) == 0x7F80)
        elif part.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(part))
        else:
            return
        if bad.size:
            place = np.unravel_index(start + int(bad[0]), values.shape)
            value = as_float(part[bad[:1]])[0]
            raise CompileError(
                f"weight {name} holds {value} at {[int(p) for p in place]} of shape {list(values.shape)}; wanted "
                "finite values. The checkpoint is damaged or its training diverged."
            )


class Weights:
    """All weights of a program by name."""

    def __init__(self, membrane: Membrane, source: Source, constants: Mapping[str, Array]) -> None:
        self.source = source
        self.constants = dict(constants)
        for rule in membrane.rules:
            if rule.name == RULE:
                values, _ = run_rule(membrane, rule, {}, self.value)
                self.constants.update(values)

    def stored(self, name: str) -> Array:
        """The values as the checkpoint has them."""
        if name in self.constants:
            return self.constants[name]
        values = self.source(name)
        check_finite(name, values)
        return values

    def value(self, name: str) -> Array:
        """The values in a dtype that numpy computes with: bf16 as float32."""
        values = self.stored(name)
        return as_float(values) if values.dtype == np.uint16 else values

    def pack(self, packed: Packed, threads: int) -> list[Array]:
        """The packed bytes of a stream, one array per expert."""
        return [
            np.asarray(_native.pack(packed.format, packed.group, expert, packed.transposed, threads))
            for expert in self._matrices(packed)
        ]

    def codable(self, packed: Packed, drawn: bool = False) -> bool:
        """Whether bf16 in 12 bits holds a stream's values without loss. `drawn`: values that are not computed while
        compiling are drawn when the artifact is loaded, which it always holds."""
        if drawn and not any(w["name"] in self.constants for w in packed.sources):
            return True
        threads = max(1, os.cpu_count() or 1)
        return all(_native.codable(expert, packed.transposed, threads) for expert in self._matrices(packed))

    def _matrices(self, packed: Packed) -> Iterator[list[Array]]:
        """The matrices that are interleaved, expert by expert."""
        sources = [self.stored(w["name"]) for w in packed.sources]
        sources = [s if s.dtype in (np.float32, np.float16, np.uint16) else s.astype(np.float32) for s in sources]
        for weight, values in zip(packed.sources, sources, strict=True):
            if values.shape != weight.shape:
                found = list(values.shape)
                raise CompileError(f"weight {weight['name']} has shape {found}; the graph says {weight.type}")
        parts = [[s] for s in sources] if packed.experts == 1 and sources[0].ndim == 2 else [list(s) for s in sources]
        for e in range(len(parts[0])):
            yield [np.ascontiguousarray(p[e]) for p in parts]

    def plain(self, node: Node) -> Array:
        """A plain tensor in the element type of its node."""
        values = self.value(node["name"])
        if values.shape != node.shape:
            raise CompileError(f"weight {node['name']} has shape {list(values.shape)}; the graph says {node.type}")
        values = np.ascontiguousarray(cast_array(values, node.tensor.dtype))
        if node.tensor.dtype is DType.BF16:
            return (values.view(np.uint32) >> 16).astype(np.uint16)
        return values


def random_source(shapes: Mapping[str, tuple[int, ...]], seed: int, std: float) -> Source:
    """Values for weights of a model without a checkpoint: vectors are neutral (1, biases 0), the rest normal."""

    def source(name: str) -> Array:
        shape = shapes[name]
        if len(shape) <= 1:
            return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
        generator = np.random.Generator(np.random.Philox(key=[seed, hash_name(name)]))
        return generator.standard_normal(shape, np.float32) * np.float32(std)

    return source


def hash_name(name: str) -> int:
    import zlib

    return zlib.crc32(name.encode())
