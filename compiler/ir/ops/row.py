"""A row of the op table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from echoc.compiler.ir.node import Node
from echoc.compiler.ir.types import Dim, TensorType, Type, dim_value
from echoc.errors import IRError

Array = NDArray[Any]
Infer = Callable[[tuple[Node, ...], Mapping[str, Any]], Type]


@dataclass
class Env:
    """What a meaning may look at: the values of symbols, ports, weights, states and region arguments."""

    symbols: Mapping[str, int] = field(default_factory=dict)
    ports: Mapping[str, Array] = field(default_factory=dict)
    weights: Callable[[str], Array] | None = None
    states: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Array] = field(default_factory=dict)

    def shape(self, dims: tuple[Dim, ...]) -> tuple[int, ...]:
        return tuple(dim_value(d, self.symbols) for d in dims)


Meaning = Callable[[Node, tuple[Any, ...], Env], Any]


@dataclass(frozen=True)
class Op:
    """One op. `arity` is (least, most) inputs; `rtol` bounds a float32 backend's error against float64."""

    name: str
    arity: tuple[int, int]
    rule: Infer
    meaning: Meaning
    doc: str
    rtol: float = 1e-6

    def infer(self, inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Type:
        low, high = self.arity
        if not low <= len(inputs) <= high:
            wanted = str(low) if low == high else f"{low} to {high}"
            raise IRError(f"found {len(inputs)} inputs; wanted {wanted}")
        try:
            return self.rule(inputs, attrs)
        except KeyError as error:
            raise IRError(f"the attribute {error.args[0]!r} is missing") from None


def tensors(inputs: tuple[Node, ...]) -> list[TensorType]:
    return [i.tensor for i in inputs]


def check_axis(axis: int, rank: int) -> int:
    if not 0 <= axis < rank:
        raise IRError(f"axis {axis} is outside a tensor of rank {rank}")
    return axis
