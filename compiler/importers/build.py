"""Small constructors for importers: the everyday expressions in terms of the op table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from echoc.compiler.ir.node import Node, make
from echoc.compiler.ir.types import Dim, DType, Poly, TensorType


def const(value: Any, dtype: DType | str) -> Node:
    kind = DType(dtype)
    value = float(value) if kind.is_float else bool(value) if kind is DType.BOOL else int(value)
    return make("const", value=value, dtype=kind)


def cast(x: Node, dtype: DType | str) -> Node:
    return x if x.tensor.dtype == dtype else make("cast", x, dtype=DType(dtype))


def reshape(x: Node, shape: Sequence[Dim]) -> Node:
    return x if x.shape == tuple(shape) else make("reshape", x, shape=tuple(shape))


def broadcast(x: Node, shape: Sequence[Dim]) -> Node:
    return x if x.shape == tuple(shape) else make("broadcast", x, shape=tuple(shape))


def transpose(x: Node, perm: Sequence[int]) -> Node:
    return x if list(perm) == list(range(len(perm))) else make("transpose", x, perm=tuple(perm))


def binary(op: str, a: Node, b: Node | float) -> Node:
    return make(op, a, b if isinstance(b, Node) else const(b, a.tensor.dtype))


def reduce(op: str, x: Node, axes: Sequence[int], keep: bool) -> Node:
    """A reduction over `axes` (negative ones count from the end); all axes where none is given."""
    rank = len(x.shape)
    chosen = sorted({a % rank for a in axes}) if axes else list(range(rank))
    out = make(op, x, axes=tuple(chosen))
    kept: list[Dim] = [1 if i in chosen else d for i, d in enumerate(x.shape)]
    return reshape(out, kept) if keep else out


def mean(x: Node, axes: Sequence[int], keep: bool) -> Node:
    rank = len(x.shape)
    chosen = {a % rank for a in axes} if axes else set(range(rank))
    count: Dim = 1
    for axis in chosen:
        count = count * x.shape[axis]
    return binary("div", reduce("sum", x, axes, keep), dim_scalar(count, x.tensor.dtype))


def dim_scalar(dim: Dim, dtype: DType | str) -> Node:
    """The value of a dimension as a scalar tensor."""
    if isinstance(dim, Poly):
        last = make("max", make("iota", size=dim), axes=(0,))
        return cast(binary("add", last, 1), dtype)
    return const(dim, dtype)


def softmax(x: Node, axis: int) -> Node:
    top = reduce("max", x, [axis], True)
    exps = make("exp", make("sub", x, top))
    return make("div", exps, reduce("sum", exps, [axis], True))


def slice_axis(x: Node, axis: int, start: int, stop: Dim, step: int = 1) -> Node:
    shape = x.shape
    if start == 0 and stop == shape[axis] and step == 1:
        return x
    if isinstance(stop, Poly) or isinstance(shape[axis], Poly):
        index = binary("add", make("iota", size=stop - start), start) if start else make("iota", size=stop)
        return make("take", x, index, axis=axis)
    return make(
        "slice",
        x,
        starts=tuple(start if i == axis else 0 for i in range(len(shape))),
        stops=tuple(stop if i == axis else d for i, d in enumerate(shape)),
        steps=tuple(step if i == axis else 1 for i in range(len(shape))),
    )


def select(x: Node, axis: int, index: int) -> Node:
    part = slice_axis(x, axis, index, index + 1)
    return reshape(part, [d for i, d in enumerate(part.shape) if i != axis])


def weight(name: str, shape: Sequence[Dim], dtype: DType | str) -> Node:
    return make("weight", name=name, shape=tuple(shape), dtype=DType(dtype))


def port(name: str, type_: TensorType) -> Node:
    return make("port", name=name, shape=type_.shape, dtype=type_.dtype)
