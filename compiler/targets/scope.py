"""What the expression printers of all languages share: values of nodes at an index, and views as changes of the index.

A printer subclasses `Scope` and says how its language binds a name, reads memory and spells the ops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping, Sequence

from echoc.compiler.ir import DType, Node
from echoc.compiler.ir.ops import POINTWISE
from echoc.compiler.ir.types import Dim
from echoc.compiler.targets.index import Index, Var, flatten, unflatten
from echoc.errors import CompileError


class Scope(ABC):
    """Statements in single-assignment form; values and index variables already computed in them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.values: MutableMapping[tuple[Node, tuple[Index, ...]], str] = {}
        self.bound: MutableMapping[str, Var] = {}

    @abstractmethod
    def bind(self, text: str, low: int, high: int | None) -> Var:
        """An index variable holding `text`, with values in low..high-1."""

    @abstractmethod
    def read(self, node: Node, index: tuple[Index, ...]) -> str | None:
        """The text that reads node[index] from where it lies; None where it must be computed."""

    @abstractmethod
    def declare(self, text: str, dtype: DType) -> str:
        """A name for the value of an expression; the text itself where it is a name or a literal."""

    @abstractmethod
    def pointwise(self, node: Node, operands: list[str]) -> str:
        """One pointwise op on values."""

    @abstractmethod
    def literal(self, value: float | int | bool, dtype: DType) -> str:
        """A constant."""

    @abstractmethod
    def integer(self, node: Node, index: tuple[Index, ...], size: Dim) -> Index:
        """node[index], clamped into 0..size-1, as an index."""

    @abstractmethod
    def position(self, index: Index) -> str:
        """An index as an i64 value."""

    def flatten(self, indices: Sequence[Index], shape: Sequence[Dim]) -> Index:
        return flatten(indices, shape, self.bind)

    def unflatten(self, offset: Index, shape: Sequence[Dim]) -> list[Index]:
        return unflatten(offset, shape, self.bind)

    def value(self, node: Node, index: tuple[Index, ...]) -> str:
        """A name or literal for node[index]."""
        key = (node, index)
        if key not in self.values:
            text = self.read(node, index)
            if text is None:
                text = self.compute(node, index)
            self.values[key] = self.declare(text, node.tensor.dtype)
        return self.values[key]

    def compute(self, node: Node, index: tuple[Index, ...]) -> str:
        if node.op in POINTWISE:
            return self.pointwise(node, [self.value(i, aligned(i, index)) for i in node.inputs])
        handler: Callable[[Node, tuple[Index, ...]], str] | None = getattr(self, f"_{node.op}", None)
        if handler is None:
            raise CompileError(f"the op {node.op} : {node.type} cannot stand inside an expression")
        return handler(node, index)

    def _const(self, node: Node, index: tuple[Index, ...]) -> str:
        return self.literal(node["value"], node.tensor.dtype)

    def _iota(self, node: Node, index: tuple[Index, ...]) -> str:
        return self.position(index[0])

    def _reshape(self, node: Node, index: tuple[Index, ...]) -> str:
        source = node.inputs[0]
        kept = [(d, i) for d, i in zip(node.shape, index, strict=True) if d != 1]
        if [d for d, _ in kept] == [d for d in source.shape if d != 1]:
            rest = iter(i for _, i in kept)
            return self.value(source, tuple(Index() if d == 1 else next(rest) for d in source.shape))
        return self.value(source, tuple(self.unflatten(self.flatten(index, node.shape), source.shape)))

    def _broadcast(self, node: Node, index: tuple[Index, ...]) -> str:
        return self.value(node.inputs[0], aligned(node.inputs[0], index))

    def _transpose(self, node: Node, index: tuple[Index, ...]) -> str:
        places = list(index)
        for out_axis, in_axis in enumerate(node["perm"]):
            places[in_axis] = index[out_axis]
        return self.value(node.inputs[0], tuple(places))

    def _slice(self, node: Node, index: tuple[Index, ...]) -> str:
        places = [i * step + start for i, start, step in zip(index, node["starts"], node["steps"], strict=True)]
        return self.value(node.inputs[0], tuple(places))

    def _take(self, node: Node, index: tuple[Index, ...]) -> str:
        source, places = node.inputs
        axis, rank = node["axis"], len(places.shape)
        place = self.integer(places, index[axis : axis + rank], source.shape[axis])
        return self.value(source, (*index[:axis], place, *index[axis + rank :]))

    def _gather(self, node: Node, index: tuple[Index, ...]) -> str:
        source, places = node.inputs
        axis = node["axis"]
        place = self.integer(places, index, source.shape[axis])
        return self.value(source, (*index[:axis], place, *index[axis + 1 :]))


def aligned(node: Node, index: tuple[Index, ...]) -> tuple[Index, ...]:
    """The index of a broadcast operand: trailing axes, 0 where it has one element."""
    tail = index[len(index) - len(node.shape) :]
    return tuple(Index() if d == 1 else i for d, i in zip(node.shape, tail, strict=True))


def at_most(a: Dim, c: Dim) -> bool:
    return a == c or (isinstance(a, int) and isinstance(c, int) and a <= c)
