"""Pointwise ops: each element of the result depends on the elements at the same (broadcast) place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from echoc.compiler.ir.node import Node
from echoc.compiler.ir.types import DType, TensorType, broadcast_shapes
from echoc.errors import IRError

from .philox import random_bits
from .row import Array, Env, Infer, Op, tensors


def round_bf16(x: Array) -> Array:
    """float32 values rounded to the nearest bfloat16, ties to even; NaN stays NaN."""
    x = np.asarray(x, np.float32)
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)).astype(np.uint32)
    return np.where(np.isnan(x), x, rounded.view(np.float32).reshape(x.shape))


def cast_array(x: Array, dtype: DType) -> Array:
    """C-like conversion: floats to ints truncate and wrap, anything to bool is `!= 0`.

    What does not fit 64 bits, and NaN, becomes the least i64, cut to the bits of the type wanted.
    """
    if dtype is DType.BF16:
        return round_bf16(x)
    if dtype is DType.BOOL:
        return np.asarray(x != 0)
    if dtype.is_int and np.asarray(x).dtype.kind == "f":
        with np.errstate(over="ignore"):
            fits = np.abs(x) < 9.2e18
        x = np.where(fits, np.where(fits, x, 0).astype(np.int64), np.iinfo(np.int64).min)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(x).astype(dtype.numpy, copy=False)


def _unary(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    (x,) = tensors(inputs)
    return x


def _unary_float(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    return _wanted(_unary(inputs, attrs), "a float", lambda d: d.is_float)


def _binary(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    a, b = tensors(inputs)
    if a.dtype != b.dtype:
        raise IRError(f"operands differ in dtype: {a.dtype} and {b.dtype}; cast one of them")
    return TensorType(broadcast_shapes(a.shape, b.shape), a.dtype)


def _arithmetic(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    return _wanted(_binary(inputs, attrs), "a number", lambda d: d is not DType.BOOL)


def _quotient(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    return _wanted(_binary(inputs, attrs), "a float (floordiv divides integers)", lambda d: d.is_float)


def _bitwise(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    return _wanted(_binary(inputs, attrs), "an integer or a bool", lambda d: not d.is_float)


def _negative(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    return _wanted(_unary(inputs, attrs), "a number", lambda d: d is not DType.BOOL)


def _logical(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    return _wanted(_unary(inputs, attrs), "a bool", lambda d: d is DType.BOOL)


def _wanted(type_: TensorType, what: str, test: Callable[[DType], bool]) -> TensorType:
    if not test(type_.dtype):
        raise IRError(f"found {type_.dtype}; wanted {what}")
    return type_


def _compare(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    return TensorType(_binary(inputs, attrs).shape, DType.BOOL)


def _where(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    c, a, b = tensors(inputs)
    if c.dtype is not DType.BOOL or a.dtype != b.dtype:
        raise IRError(f"found where({c.dtype}, {a.dtype}, {b.dtype}); wanted a bool and two of one dtype")
    return TensorType(broadcast_shapes(c.shape, a.shape, b.shape), a.dtype)


def _cast(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    (x,) = tensors(inputs)
    return TensorType(x.shape, DType(attrs["dtype"]))


def _random_bits(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    types = tensors(inputs)
    if any(t.dtype is not DType.I64 for t in types):
        raise IRError(f"found {', '.join(t.dtype for t in types)}; wanted an i64 key and i64 counters")
    return TensorType(broadcast_shapes(*(t.shape for t in types)), DType.I64)


def _bits_meaning(node: Node, args: tuple[Array, ...], env: Env) -> Array:
    return random_bits(*args)


_erf = np.vectorize(math.erf, otypes=[float])


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _floordiv(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(np.floor(a / b))
    return np.asarray(np.where(b == 0, 0, np.floor_divide(a, np.where(b == 0, 1, b))))


def _mod(a: Array, b: Array) -> Array:
    """The remainder with the divisor's sign (Python's %)."""
    if a.dtype.kind == "f":
        return np.asarray(np.mod(a, b))
    return np.asarray(np.where(b == 0, 0, np.mod(a, np.where(b == 0, 1, b))))


def _pow(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(np.power(a, b))
    positive = np.power(a, np.maximum(b, 0))
    ones = np.where(a == 1, 1, np.where((a == -1) if a.dtype.kind == "i" else False, np.where(b % 2, -1, 1), 0))
    return np.asarray(np.where(b < 0, ones, positive))


def _meaning(f: Callable[..., Array]) -> Callable[[Node, tuple[Array, ...], Env], Array]:
    def apply(node: Node, args: tuple[Array, ...], env: Env) -> Array:
        with np.errstate(all="ignore"):
            out = np.asarray(f(*args))
        return out if out.dtype == np.bool_ else out.astype(np.result_type(*args), copy=False)

    return apply


def _where_meaning(node: Node, args: tuple[Array, ...], env: Env) -> Array:
    return np.where(args[0], args[1], args[2])


_FLOAT: list[tuple[str, Callable[..., Any], str]] = [
    ("exp", np.exp, "e to the x"),
    ("log", np.log, "natural logarithm"),
    ("log1p", np.log1p, "log(1 + x), accurate near 0"),
    ("expm1", np.expm1, "exp(x) - 1, accurate near 0"),
    ("sqrt", np.sqrt, "square root"),
    ("rsqrt", lambda x: 1.0 / np.sqrt(x), "1 / sqrt(x)"),
    ("sin", np.sin, "sine, x in radians"),
    ("cos", np.cos, "cosine, x in radians"),
    ("atan", np.arctan, "the angle in radians, in (-pi/2, pi/2), whose tangent is x"),
    ("tanh", np.tanh, "hyperbolic tangent"),
    ("erf", _erf, "the error function"),
    ("sigmoid", _sigmoid, "1 / (1 + exp(-x))"),
    ("floor", np.floor, "the largest integer not above x"),
    ("ceil", np.ceil, "the smallest integer not below x"),
    ("round", np.round, "the nearest integer, ties to even"),
    ("trunc", np.trunc, "x without its fraction"),
]
_UNARY: list[tuple[str, Callable[..., Any], Infer, str]] = [
    ("neg", np.negative, _negative, "-x; the least integer is its own negative"),
    ("abs", np.abs, _negative, "|x|; the least integer stays"),
    ("not", np.logical_not, _logical, "logical (bool) negation"),
]
_BINARY: list[tuple[str, Callable[..., Any], Infer, str]] = [
    ("add", np.add, _binary, "a + b; integers wrap, bools or"),
    ("sub", np.subtract, _arithmetic, "a - b; integers wrap"),
    ("mul", np.multiply, _binary, "a * b; integers wrap, bools and"),
    ("div", lambda a, b: a / b, _quotient, "a / b on floats"),
    ("floordiv", _floordiv, _arithmetic, "floor(a / b); by integer zero it is 0"),
    ("mod", _mod, _arithmetic, "a - b * floor(a / b); by integer zero it is 0"),
    ("pow", _pow, _arithmetic, "a to the power b; negative integer powers are cut towards 0, of 0 they are 0"),
    ("maximum", np.maximum, _binary, "the larger; NaN wins"),
    ("minimum", np.minimum, _binary, "the smaller; NaN wins"),
    ("and", lambda a, b: a & b, _bitwise, "bitwise on ints, logical on bools"),
    ("or", lambda a, b: a | b, _bitwise, "bitwise on ints, logical on bools"),
    ("xor", lambda a, b: a ^ b, _bitwise, "bitwise on ints, logical on bools"),
]
_COMPARE: list[tuple[str, Callable[..., Any], str]] = [
    ("eq", np.equal, "a == b"),
    ("ne", np.not_equal, "a != b"),
    ("lt", np.less, "a < b"),
    ("le", np.less_equal, "a <= b"),
]

ROWS = (
    [Op(n, (1, 1), _unary_float, _meaning(f), d) for n, f, d in _FLOAT]
    + [Op(n, (1, 1), rule, _meaning(f), d) for n, f, rule, d in _UNARY]
    + [Op(n, (2, 2), rule, _meaning(f), d) for n, f, rule, d in _BINARY]
    + [Op(n, (2, 2), _compare, _meaning(f), d) for n, f, d in _COMPARE]
    + [
        Op("where", (3, 3), _where, _where_meaning, "a where the condition holds, else b"),
        Op("cast", (1, 1), _cast, lambda n, a, e: cast_array(a[0], DType(n["dtype"])), "conversion, C-like"),
        Op("random_bits", (2, 3), _random_bits, _bits_meaning, "32 uniform bits (i64) of a key and 1 or 2 counters", 0),
    ]
)
