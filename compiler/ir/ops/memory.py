"""Indexed reading and writing of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from echoc.compiler.ir.node import Node
from echoc.compiler.ir.types import TensorType
from echoc.errors import IRError

from .row import Array, Env, Op, check_axis, tensors


def _take(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    x, index = tensors(inputs)
    axis = check_axis(attrs["axis"], x.rank)
    if not index.dtype.is_int:
        raise IRError(f"the index is {index.dtype}; wanted an integer")
    return TensorType((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), x.dtype)


def _gather(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    x, index = tensors(inputs)
    axis = check_axis(attrs["axis"], x.rank)
    same = index.rank == x.rank and all(
        a == b for i, (a, b) in enumerate(zip(x.shape, index.shape, strict=True)) if i != axis
    )
    if not same or not index.dtype.is_int:
        raise IRError(f"{index} does not index {x} along axis {axis}")
    return TensorType(index.shape, x.dtype)


def _scatter(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    x, index, updates = tensors(inputs)
    axis = check_axis(attrs["axis"], x.rank)
    if index.rank == x.rank:
        for i, (a, b) in enumerate(zip(x.shape, index.shape, strict=True)):
            if i != axis and a != b and not (isinstance(a, int) and isinstance(b, int) and b <= a):
                raise IRError(f"{index} reaches beyond axis {i} of {x}")
    if index.shape != updates.shape or index.rank != x.rank or updates.dtype != x.dtype or not index.dtype.is_int:
        raise IRError(f"found scatter of {updates} at {index} into {x}")
    if attrs["mode"] not in ("set", "add"):
        raise IRError(f"mode is {attrs['mode']!r}; wanted set or add")
    return x


def _scatter_meaning(node: Node, args: tuple[Array, ...], env: Env) -> Array:
    x, index, updates = args
    out = x.copy()
    places: list[Array] = list(np.indices(index.shape, sparse=True))
    places[node["axis"]] = _clipped(x, index, node["axis"])
    if node["mode"] == "add":
        np.add.at(out, tuple(places), updates)
    else:
        out[tuple(places)] = updates
    return out


def _clipped(x: Array, index: Array, axis: int) -> Array:
    """Indices are clamped to the axis, so that no device can read outside it."""
    return np.clip(index, 0, x.shape[axis] - 1)


ROWS = [
    Op(
        "take",
        (2, 2),
        _take,
        lambda n, a, e: np.take(a[0], _clipped(a[0], a[1], n["axis"]), n["axis"]),
        "x[..., index, ...]: slices of an axis by a tensor of (clamped) indices",
    ),
    Op(
        "gather",
        (2, 2),
        _gather,
        lambda n, a, e: np.take_along_axis(a[0], _clipped(a[0], a[1], n["axis"]), n["axis"]),
        "elementwise choice along an axis by (clamped) indices",
    ),
    Op("scatter", (3, 3), _scatter, _scatter_meaning, "x with updates set or added along an axis at (clamped) indices"),
]
