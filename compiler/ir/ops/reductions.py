"""Ops along an axis: reductions, scans, selection, contraction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from echoc.compiler.ir.node import Node
from echoc.compiler.ir.types import Dim, DType, TensorType
from echoc.errors import IRError

from .row import Array, Env, Op, check_axis, tensors


def _reduce(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    (x,) = tensors(inputs)
    axes = tuple(check_axis(a, x.rank) for a in attrs["axes"])
    if list(axes) != sorted(set(axes)):
        raise IRError(f"axes must ascend and not repeat; found {axes}")
    return TensorType(tuple(d for i, d in enumerate(x.shape) if i not in axes), x.dtype)


def _argmax(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    (x,) = tensors(inputs)
    axis = check_axis(attrs["axis"], x.rank)
    return TensorType((*x.shape[:axis], *x.shape[axis + 1 :]), DType.I64)


def _along(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    (x,) = tensors(inputs)
    check_axis(attrs["axis"], x.rank)
    return x


def _select(k_of: str) -> Any:
    def infer(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
        (x,) = tensors(inputs)
        axis = check_axis(attrs["axis"], x.rank)
        if axis != x.rank - 1:
            raise IRError(f"works along the last axis; found axis {axis} of rank {x.rank}")
        count: Dim = attrs["k"] if k_of == "topk" else x.shape[axis]
        length = x.shape[axis]
        if isinstance(length, int) and isinstance(count, int) and not 1 <= count <= length:
            raise IRError(f"k = {count} of an axis of {length}")
        if attrs["part"] not in ("values", "indices"):
            raise IRError(f"part is {attrs['part']!r}; wanted values or indices")
        return TensorType((*x.shape[:-1], count), x.dtype if attrs["part"] == "values" else DType.I64)

    return infer


def _select_meaning(node: Node, args: tuple[Array, ...], env: Env) -> Array:
    """Descending when `descending`, stable: ties go to the lower index."""
    x = args[0]
    key = -x.astype(np.float64) if node.get("descending", True) else x
    order = np.argsort(key, axis=-1, kind="stable")[..., : node.get("k", x.shape[-1])]
    return np.take_along_axis(x, order, -1) if node["part"] == "values" else order.astype(np.int64)


def parse_spec(spec: str) -> tuple[str, str, str]:
    """The three index strings of a two-operand einsum such as `tk,nk->tn`."""
    left, _, out = spec.partition("->")
    a, _, b = left.partition(",")
    if (not out and "->" not in spec) or set(out) - set(a + b) or len(set(out)) != len(out):
        raise IRError(f"malformed contraction {spec!r}; wanted something like tk,nk->tn")
    return a, b, out


def _contract(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    x, y = tensors(inputs)
    a, b, out = parse_spec(attrs["spec"])
    if x.dtype != y.dtype:
        raise IRError(f"operands differ in dtype: {x.dtype} and {y.dtype}; cast one of them")
    dims: dict[str, Dim] = {}
    for names, type_ in ((a, x), (b, y)):
        if len(names) != type_.rank or len(set(names)) != len(names):
            raise IRError(f"{names!r} does not name the {type_.rank} axes of {type_}")
        for name, dim in zip(names, type_.shape, strict=True):
            if dims.setdefault(name, dim) != dim:
                raise IRError(f"index {name!r} is both {dims[name]} and {dim}")
    return TensorType(tuple(dims[n] for n in out), x.dtype)


def _contract_meaning(node: Node, args: tuple[Array, ...], env: Env) -> Array:
    return np.asarray(np.einsum(node["spec"], args[0], args[1], optimize=True), args[0].dtype)


def _axes(f: Any) -> Any:
    return lambda n, a, e: np.asarray(f(a[0], axis=tuple(n["axes"])), a[0].dtype)


ROWS = [
    Op("sum", (1, 1), _reduce, _axes(np.sum), "sum over axes", 1e-5),
    Op("max", (1, 1), _reduce, _axes(np.max), "maximum over axes; NaN wins"),
    Op("min", (1, 1), _reduce, _axes(np.min), "minimum over axes; NaN wins"),
    Op("argmax", (1, 1), _argmax, lambda n, a, e: np.argmax(a[0], n["axis"]), "index of the first maximum"),
    Op(
        "cumsum",
        (1, 1),
        _along,
        lambda n, a, e: np.cumsum(a[0], n["axis"], dtype=a[0].dtype),
        "running sum along an axis",
        1e-5,
    ),
    Op("topk", (1, 1), _select("topk"), _select_meaning, "the k largest of the last axis, descending, or their places"),
    Op("sort", (1, 1), _select("sort"), _select_meaning, "the last axis sorted, stable, or the order"),
    Op("contract", (2, 2), _contract, _contract_meaning, "einsum of two tensors", 1e-5),
]
