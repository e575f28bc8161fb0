"""The one node class: frozen, slotted and interned, so that `is` is equality and common subexpressions vanish."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from weakref import WeakValueDictionary

from echoc.errors import IRError

from .types import Poly, StateType, TensorType, Type


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Node:
    """A value: `op` applied to `inputs` under `attrs` (sorted pairs). `make` is the only constructor used."""

    op: str
    inputs: tuple[Node, ...]
    attrs: tuple[tuple[str, Any], ...]
    type: Type

    def __getitem__(self, name: str) -> Any:
        for key, value in self.attrs:
            if key == name:
                return value
        raise IRError(f"{self.op} has no attribute {name!r}; it has {[k for k, _ in self.attrs]}")

    def get(self, name: str, default: Any = None) -> Any:
        return next((v for k, v in self.attrs if k == name), default)

    @property
    def tensor(self) -> TensorType:
        """The type, known to be a tensor's."""
        if not isinstance(self.type, TensorType):
            raise IRError(f"{self.op} yields a {self.type}; wanted a tensor")
        return self.type

    @property
    def shape(self) -> tuple[int | Poly, ...]:
        return self.tensor.shape

    def __repr__(self) -> str:
        return f"<{self.op} : {self.type}>"


_INTERNED: WeakValueDictionary[tuple[Any, ...], Node] = WeakValueDictionary()
_INFER: dict[str, Callable[[tuple[Node, ...], Mapping[str, Any]], Type]] = {}


def _key(value: Any) -> Any:
    """Equal keys mean equal attributes: floats by their bits (0.0 is not -0.0), and True is not 1."""
    if isinstance(value, tuple):
        return tuple([_key(v) for v in value])
    if isinstance(value, float):
        return ("f", struct.pack("<d", value))
    return (type(value).__name__, value)


def _freeze(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple([_freeze(v) for v in value])
    return str(value) if isinstance(value, StrEnum) else value


def make(op: str, *inputs: Node, **attrs: Any) -> Node:
    """Build (or find) the node; its type is inferred by the op's rule. Raises IRError when it is ill-typed."""
    if not _INFER:
        from . import ops

        _INFER.update({name: row.infer for name, row in ops.OPS.items()})
    frozen = tuple(sorted((k, _freeze(v)) for k, v in attrs.items()))
    key = (op, tuple(id(i) for i in inputs), _key(frozen))
    found = _INTERNED.get(key)
    if found is not None:
        return found
    if op not in _INFER:
        raise IRError(f"unknown op {op!r}")
    try:
        type_ = _INFER[op](inputs, dict(frozen))
    except (IRError, ValueError, TypeError, AttributeError, IndexError) as error:  # attributes may hold anything
        raise IRError(f"{op}({', '.join(str(i.type) for i in inputs)}) {dict(frozen)}: {error}") from None
    node = Node(op, inputs, frozen, type_)
    _INTERNED[key] = node
    return node


def topological(roots: Iterable[Node]) -> list[Node]:
    """All nodes reachable from `roots`, inputs before users, in a stable order."""
    order: list[Node] = []
    seen: set[int] = set()
    for root in roots:
        stack: list[tuple[Node, Iterator[Node]]] = []
        if id(root) not in seen:
            seen.add(id(root))
            stack.append((root, iter(root.inputs)))
        while stack:
            node, rest = stack[-1]
            for child in rest:
                if id(child) not in seen:
                    seen.add(id(child))
                    stack.append((child, iter(child.inputs)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order


def users(order: Iterable[Node]) -> dict[Node, list[Node]]:
    """For every node, the nodes that take it as an input (once per input position)."""
    out: dict[Node, list[Node]] = {}
    for node in order:
        out.setdefault(node, [])
        for i in node.inputs:
            out.setdefault(i, []).append(node)
    return out


def rebuild(node: Node, inputs: tuple[Node, ...]) -> Node:
    """The same op on other inputs, its type inferred anew."""
    if all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
        return node
    return make(node.op, *inputs, **dict(node.attrs))


def is_state(node: Node) -> bool:
    return isinstance(node.type, StateType)
