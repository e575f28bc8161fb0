"""Leaves and views: constants, ports, weights, and ops that only move elements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from echoc.compiler.ir.node import Node
from echoc.compiler.ir.types import DType, Poly, TensorType, Type, dim_product
from echoc.errors import IRError

from .pointwise import cast_array
from .row import Array, Env, Op, check_axis, tensors


def _const(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    return TensorType((), DType(attrs["dtype"]))


def _typed(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    return TensorType(tuple(attrs["shape"]), DType(attrs["dtype"]))


def _iota(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    return TensorType((attrs["size"],), DType.I64)


def _arg(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    return TensorType((), DType(attrs["dtype"]))


def _reshape(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    (x,) = tensors(inputs)
    shape = tuple(attrs["shape"])
    if dim_product(shape) != x.size:
        raise IRError(f"found {x.size} elements; the shape {list(shape)} holds {dim_product(shape)}")
    return TensorType(shape, x.dtype)


def _transpose(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    (x,) = tensors(inputs)
    perm = tuple(attrs["perm"])
    if sorted(perm) != list(range(x.rank)):
        raise IRError(f"{perm} is not a permutation of the {x.rank} axes")
    return TensorType(tuple(x.shape[p] for p in perm), x.dtype)


def _broadcast(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    (x,) = tensors(inputs)
    shape = tuple(attrs["shape"])
    tail = shape[len(shape) - x.rank :] if x.rank <= len(shape) else ()
    if len(tail) != x.rank or any(a not in (1, b) for a, b in zip(x.shape, tail, strict=True)):
        raise IRError(f"{list(x.shape)} does not broadcast to {list(shape)}")
    return TensorType(shape, x.dtype)


def _slice(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    (x,) = tensors(inputs)
    starts, stops, steps = attrs["starts"], attrs["stops"], attrs["steps"]
    if not len(starts) == len(stops) == len(steps) == x.rank:
        raise IRError(f"wanted {x.rank} starts, stops and steps")
    out: list[int | Poly] = []
    for dim, start, stop, step in zip(x.shape, starts, stops, steps, strict=True):
        if isinstance(dim, Poly) or isinstance(stop, Poly):
            if start != 0 or stop != dim or step != 1:
                raise IRError(f"the symbolic axis {dim} can only be taken whole; found {start}:{stop}:{step}")
            out.append(dim)
            continue
        if not (0 <= start <= stop <= dim and step >= 1):
            raise IRError(f"{start}:{stop}:{step} is outside an axis of {dim}")
        out.append(-(-(stop - start) // step))
    return TensorType(tuple(out), x.dtype)


def _pad(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    (x,) = tensors(inputs)
    low, high = attrs["low"], attrs["high"]
    if not len(low) == len(high) == x.rank or any(p < 0 for p in (*low, *high)):
        raise IRError(f"wanted {x.rank} paddings, none negative; found {low} and {high}")
    return TensorType(tuple(d + a + b for d, a, b in zip(x.shape, low, high, strict=True)), x.dtype)


def _concat(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    parts = tensors(inputs)
    axis = check_axis(attrs["axis"], parts[0].rank)
    total: int | Poly = 0
    for part in parts:
        same = part.rank == parts[0].rank and all(
            a == b for i, (a, b) in enumerate(zip(part.shape, parts[0].shape, strict=True)) if i != axis
        )
        if not same or part.dtype != parts[0].dtype:
            raise IRError(f"{part} does not continue {parts[0]} along axis {axis}")
        total = total + part.shape[axis]
    return TensorType((*parts[0].shape[:axis], total, *parts[0].shape[axis + 1 :]), parts[0].dtype)


def _slice_meaning(node: Node, args: tuple[Array, ...], env: Env) -> Array:
    stops = env.shape(tuple(node["stops"]))
    return args[0][tuple(slice(a, b, s) for a, b, s in zip(node["starts"], stops, node["steps"], strict=True))]


def _pad_meaning(node: Node, args: tuple[Array, ...], env: Env) -> Array:
    return np.pad(args[0], tuple(zip(node["low"], node["high"], strict=True)), constant_values=node["value"])


def _lookup(table: Mapping[str, Any], kind: str, name: str) -> Any:
    if name not in table:
        raise IRError(f"the {kind} {name!r} has no value; bound: {sorted(table)}")
    return table[name]


def _weight_meaning(node: Node, args: tuple[Array, ...], env: Env) -> Array:
    if env.weights is None:
        raise IRError(f"the weight {node['name']!r} has no value: no weights are bound")
    return cast_array(np.asarray(env.weights(node["name"])), node.tensor.dtype)


def _const_value(node: Node, args: tuple[Array, ...], env: Env) -> Array:
    return np.asarray(node["value"], DType(node["dtype"]).numpy)


def _arg_meaning(node: Node, args: tuple[Array, ...], env: Env) -> Array:
    return np.asarray(_lookup(env.arguments, "argument", node["name"]))


def _state_type(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Type:
    from echoc.compiler.ir.types import StateType

    return StateType(attrs["kind"], tuple(attrs["shape"]), DType(attrs["dtype"]))


ROWS = [
    Op("const", (0, 0), _const, _const_value, "a scalar constant"),
    Op("iota", (0, 0), _iota, lambda n, a, e: np.arange(e.shape((n["size"],))[0], dtype=np.int64), "0, 1, 2, ... i64"),
    Op("port", (0, 0), _typed, lambda n, a, e: _lookup(e.ports, "port", n["name"]), "the tensor at an in port"),
    Op("weight", (0, 0), _typed, _weight_meaning, "a constant tensor by name"),
    Op("state", (0, 0), _state_type, lambda n, a, e: _lookup(e.states, "state", n["name"]), "a state before the rule"),
    Op("arg", (0, 0), _arg, _arg_meaning, "an argument of an inlined body (score, head, qpos, kpos)"),
    Op("reshape", (1, 1), _reshape, lambda n, a, e: a[0].reshape(e.shape(n["shape"])), "same elements, other shape"),
    Op("transpose", (1, 1), _transpose, lambda n, a, e: a[0].transpose(n["perm"]), "axes permuted"),
    Op("broadcast", (1, 1), _broadcast, lambda n, a, e: np.broadcast_to(a[0], e.shape(n["shape"])), "numpy broadcast"),
    Op("slice", (1, 1), _slice, _slice_meaning, "a strided box"),
    Op("pad", (1, 1), _pad, _pad_meaning, "a border of one value"),
    Op("concat", (1, 1 << 20), _concat, lambda n, a, e: np.concatenate(a, n["axis"]), "tensors joined along an axis"),
]
