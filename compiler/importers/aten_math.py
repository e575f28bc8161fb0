"""ATen operators that compute: pointwise, reductions, matrix products, normalisations."""

from __future__ import annotations

import math
from typing import Any

import torch

from echoc.compiler.importers import build as b
from echoc.compiler.importers.aten import Refused, dtype_of, lower, operand, promoted, shape_of
from echoc.compiler.ir import DType, Node, make
from echoc.compiler.ir.node import topological
from echoc.compiler.ir.ops import OPS, POINTWISE, Env


def _float_input(meta: Any, x: Node) -> Node:
    return b.cast(x, dtype_of(meta))


def _register_unary() -> None:
    table = {
        "exp": "exp", "log": "log", "log1p": "log1p", "expm1": "expm1", "sqrt": "sqrt", "rsqrt": "rsqrt",
        "sin": "sin", "cos": "cos", "tanh": "tanh", "erf": "erf", "sigmoid": "sigmoid", "floor": "floor",
        "ceil": "ceil", "round": "round", "trunc": "trunc", "neg": "neg", "abs": "abs",
    }  # fmt: skip
    for aten, op in table.items():
        lower(f"aten.{aten}.default")(lambda meta, x, op=op: make(op, _float_input(meta, x)))


def _register_binary() -> None:
    arithmetic = {
        "mul": "mul", "pow": "pow", "maximum": "maximum", "minimum": "minimum", "remainder": "mod",
        "bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor", "fmod": "fmod",
    }  # fmt: skip
    for aten, op in arithmetic.items():
        if aten == "fmod":
            continue
        for overload in ("Tensor", "Scalar", "default", "Tensor_Tensor", "Tensor_Scalar"):
            lower(f"aten.{aten}.{overload}")(
                lambda meta, x, y, op=op: make(op, operand(x, dtype_of(meta)), operand(y, dtype_of(meta)))
            )
    lower("aten.pow.Scalar")(lambda meta, x, y: make("pow", operand(x, dtype_of(meta)), operand(y, dtype_of(meta))))
    for aten, op, swap in (
        ("eq", "eq", False), ("ne", "ne", False), ("lt", "lt", False), ("le", "le", False),
        ("gt", "lt", True), ("ge", "le", True),
    ):  # fmt: skip
        for overload in ("Tensor", "Scalar"):
            lower(f"aten.{aten}.{overload}")(lambda meta, x, y, op=op, swap=swap: _compare(op, x, y, swap))
    for aten, op in (("logical_and", "and"), ("logical_or", "or"), ("logical_xor", "xor")):
        lower(f"aten.{aten}.default")(lambda meta, x, y, op=op: make(op, b.cast(x, DType.BOOL), b.cast(y, DType.BOOL)))


def _compare(op: str, x: Any, y: Any, swap: bool) -> Node:
    kind = promoted(x, y)
    left, right = operand(x, kind), operand(y, kind)
    return make(op, right, left) if swap else make(op, left, right)


_register_unary()
_register_binary()


@lower("aten.add.Tensor", "aten.add.Scalar")
def _add(meta: Any, x: Any, y: Any, alpha: Any = 1) -> Node:
    kind = dtype_of(meta)
    right = operand(y, kind) if alpha == 1 else make("mul", operand(y, kind), b.const(alpha, kind))
    if kind is DType.BOOL:
        return make("or", operand(x, kind), right)
    return make("add", operand(x, kind), right)


@lower("aten.sub.Tensor", "aten.sub.Scalar")
def _sub(meta: Any, x: Any, y: Any, alpha: Any = 1) -> Node:
    kind = dtype_of(meta)
    right = operand(y, kind) if alpha == 1 else make("mul", operand(y, kind), b.const(alpha, kind))
    return make("sub", operand(x, kind), right)


@lower("aten.rsub.Scalar", "aten.rsub.Tensor")
def _rsub(meta: Any, x: Any, y: Any, alpha: Any = 1) -> Node:
    return _sub(meta, y, x, alpha)


@lower("aten.div.Tensor", "aten.div.Scalar")
def _div(meta: Any, x: Any, y: Any) -> Node:
    return make("div", operand(x, dtype_of(meta)), operand(y, dtype_of(meta)))


@lower("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def _div_mode(meta: Any, x: Any, y: Any, rounding_mode: str | None = None) -> Node:
    kind = dtype_of(meta)
    if rounding_mode == "floor":
        return make("floordiv", operand(x, kind), operand(y, kind))
    if rounding_mode is None or kind.is_float:
        out = make("div", operand(x, kind), operand(y, kind))
        return out if rounding_mode is None else make("trunc", out)
    if isinstance(y, int) and y > 0 and isinstance(x, Node):
        left = operand(x, kind)
        quotient = make("floordiv", make("abs", left), operand(y, kind))
        return make("where", make("lt", left, b.const(0, kind)), make("neg", quotient), quotient)
    raise Refused("integer division rounded to zero by a tensor")


@lower("aten.floor_divide.default")
def _floor_divide(meta: Any, x: Any, y: Any) -> Node:
    return make("floordiv", operand(x, dtype_of(meta)), operand(y, dtype_of(meta)))


@lower("aten.reciprocal.default")
def _reciprocal(meta: Any, x: Node) -> Node:
    return make("div", b.const(1.0, dtype_of(meta)), _float_input(meta, x))


@lower("aten.square.default")
def _square(meta: Any, x: Node) -> Node:
    return make("mul", x, x)


@lower("aten.logical_not.default", "aten.bitwise_not.default")
def _not(meta: Any, x: Node) -> Node:
    if x.tensor.dtype.is_int and dtype_of(meta).is_int:
        return make("xor", x, b.const(-1, x.tensor.dtype))
    return make("not", b.cast(x, DType.BOOL))


@lower("aten.isnan.default")
def _isnan(meta: Any, x: Node) -> Node:
    return make("ne", x, x)


@lower("aten.isinf.default")
def _isinf(meta: Any, x: Node) -> Node:
    return make("eq", make("abs", x), b.const(math.inf, x.tensor.dtype))


@lower("aten.sign.default")
def _sign(meta: Any, x: Node) -> Node:
    kind = x.tensor.dtype
    zero = b.const(0, kind)
    return make("sub", b.cast(make("lt", zero, x), kind), b.cast(make("lt", x, zero), kind))


@lower("aten.clamp.default", "aten.clamp.Tensor", "aten.hardtanh.default")
def _clamp(meta: Any, x: Node, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Node:
    kind = dtype_of(meta)
    low, high = (low if low is not None else min), (high if high is not None else max)
    out = operand(x, kind)
    if low is not None:
        out = make("maximum", out, operand(low, kind))
    return make("minimum", out, operand(high, kind)) if high is not None else out


lower("aten.clamp_min.default")(lambda meta, x, low: _clamp(meta, x, low))
lower("aten.clamp_max.default")(lambda meta, x, high: _clamp(meta, x, None, high))


@lower("aten.relu.default")
def _relu(meta: Any, x: Node) -> Node:
    return b.binary("maximum", x, 0)


@lower("aten.leaky_relu.default")
def _leaky_relu(meta: Any, x: Node, slope: float = 0.01) -> Node:
    return make("where", make("lt", x, b.const(0.0, x.tensor.dtype)), b.binary("mul", x, slope), x)


@lower("aten.elu.default")
def _elu(meta: Any, x: Node, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Node:
    zero = b.const(0.0, x.tensor.dtype)
    low = b.binary("mul", make("expm1", b.binary("mul", make("minimum", x, zero), input_scale)), alpha)
    return b.binary("mul", make("where", make("lt", zero, x), x, low), scale)


@lower("aten.silu.default")
def _silu(meta: Any, x: Node) -> Node:
    return make("mul", x, make("sigmoid", x))


@lower("aten.softplus.default")
def _softplus(meta: Any, x: Node, beta: float = 1.0, threshold: float = 20.0) -> Node:
    scaled = b.binary("mul", x, beta)
    soft = make("log1p", make("exp", b.binary("minimum", scaled, threshold)))
    return make("where", make("lt", b.const(threshold, x.tensor.dtype), scaled), x, b.binary("div", soft, beta))


@lower("aten.gelu.default")
def _gelu(meta: Any, x: Node, approximate: str = "none") -> Node:
    half = b.binary("mul", x, 0.5)
    if approximate == "tanh":
        cube = make("mul", make("mul", x, x), x)
        inner = b.binary("mul", make("add", x, b.binary("mul", cube, 0.044715)), math.sqrt(2.0 / math.pi))
        return make("mul", half, b.binary("add", make("tanh", inner), 1.0))
    return make("mul", half, b.binary("add", make("erf", b.binary("mul", x, math.sqrt(0.5))), 1.0))


@lower("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar")
def _where(meta: Any, condition: Node, x: Any, y: Any) -> Node:
    kind = dtype_of(meta)
    return make("where", b.cast(condition, DType.BOOL), operand(x, kind), operand(y, kind))


@lower("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def _masked_fill(meta: Any, x: Node, mask: Node, value: Any) -> Node:
    return b.broadcast(_where(meta, mask, value, x), shape_of(meta))


@lower("aten.sum.dim_IntList", "aten.sum.default")
def _sum(meta: Any, x: Node, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Node:
    return b.reduce("sum", b.cast(x, dtype_of(meta)), dims or [], keepdim)


@lower("aten.mean.dim", "aten.mean.default")
def _mean(meta: Any, x: Node, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Node:
    return b.mean(b.cast(x, dtype_of(meta)), dims or [], keepdim)


@lower("aten.amax.default")
def _amax(meta: Any, x: Node, dims: Any = (), keepdim: bool = False) -> Node:
    return b.reduce("max", x, dims, keepdim)


@lower("aten.amin.default")
def _amin(meta: Any, x: Node, dims: Any = (), keepdim: bool = False) -> Node:
    return b.reduce("min", x, dims, keepdim)


@lower("aten.max.dim")
def _max_dim(meta: Any, x: Node, dim: int, keepdim: bool = False) -> tuple[Node, Node]:
    return b.reduce("max", x, [dim], keepdim), _argmax(meta, x, dim, keepdim)


@lower("aten.any.dim", "aten.any.default", "aten.any.dims")
def _any(meta: Any, x: Node, dim: Any = None, keepdim: bool = False) -> Node:
    dims = [] if dim is None else [dim] if isinstance(dim, int) else dim
    found = b.reduce("max", b.cast(b.cast(x, DType.BOOL), DType.I32), dims, keepdim)
    return b.cast(found, DType.BOOL)


@lower("aten.argmax.default")
def _argmax(meta: Any, x: Node, dim: int | None = None, keepdim: bool = False) -> Node:
    if dim is None:
        raise Refused("argmax over all axes")
    axis = dim % len(x.shape)
    out = make("argmax", x, axis=axis)
    return b.reshape(out, [1 if i == axis else d for i, d in enumerate(x.shape)]) if keepdim else out


@lower("aten.var.correction", "aten.var.dim")
def _var(meta: Any, x: Node, dims: Any = None, correction: Any = None, keepdim: bool = False) -> Node:
    rank = len(x.shape)
    chosen = [d % rank for d in dims] if dims else list(range(rank))
    count = 1
    for axis in chosen:
        size = x.shape[axis]
        if not isinstance(size, int):
            raise Refused("variance along the token axis")
        count *= size
    centred = make("sub", x, b.mean(x, chosen, True))
    total = b.reduce("sum", make("mul", centred, centred), chosen, keepdim)
    return b.binary("div", total, float(count - (1 if correction is None else correction)))


@lower("aten._softmax.default", "aten._safe_softmax.default")
def _softmax(meta: Any, x: Node, dim: int, half_to_float: Any = False) -> Node:
    return b.softmax(b.cast(x, dtype_of(meta)), dim % len(x.shape))


@lower("aten._log_softmax.default")
def _log_softmax(meta: Any, x: Node, dim: int, half_to_float: bool = False) -> Node:
    shifted = make("sub", x, b.reduce("max", x, [dim], True))
    return make("sub", shifted, make("log", b.reduce("sum", make("exp", shifted), [dim], True)))


@lower("aten.native_layer_norm.default")
def _layer_norm(
    meta: Any, x: Node, shape: list[Any], weight: Node | None, bias: Node | None, eps: float
) -> tuple[Node, None, None]:
    axes = list(range(len(x.shape) - len(shape), len(x.shape)))
    centred = make("sub", x, b.mean(x, axes, True))
    variance = b.mean(make("mul", centred, centred), axes, True)
    out = make("mul", centred, make("rsqrt", b.binary("add", variance, eps)))
    out = make("mul", out, weight) if weight is not None else out
    return (make("add", out, bias) if bias is not None else out), None, None


@lower("aten.native_group_norm.default")
def _group_norm(
    meta: Any, x: Node, weight: Node | None, bias: Node | None, n: Any, c: int, hw: Any, groups: int, eps: float
) -> tuple[Node, None, None]:
    grouped = b.reshape(x, (x.shape[0], groups, c // groups, *x.shape[2:]))
    axes = list(range(2, len(grouped.shape)))
    centred = make("sub", grouped, b.mean(grouped, axes, True))
    variance = b.mean(make("mul", centred, centred), axes, True)
    out = b.reshape(make("mul", centred, make("rsqrt", b.binary("add", variance, eps))), x.shape)
    column = (c, *([1] * (len(x.shape) - 2)))
    out = make("mul", out, b.reshape(weight, column)) if weight is not None else out
    return (make("add", out, b.reshape(bias, column)) if bias is not None else out), None, None


@lower("aten._fused_rms_norm.default")
def _rms_norm(meta: Any, x: Node, shape: list[Any], weight: Node | None, eps: float | None) -> tuple[Node, None]:
    axes = list(range(len(x.shape) - len(shape), len(x.shape)))
    square = b.mean(make("mul", x, x), axes, True)
    out = make("mul", x, make("rsqrt", b.binary("add", square, eps if eps is not None else 2.0**-23)))
    return (make("mul", out, weight) if weight is not None else out), None


@lower("aten.mm.default")
def _mm(meta: Any, x: Node, y: Node) -> Node:
    return make("contract", x, y, spec="mk,kn->mn")


@lower("aten.bmm.default")
def _bmm(meta: Any, x: Node, y: Node) -> Node:
    return make("contract", x, y, spec="bmk,bkn->bmn")


@lower("aten.addmm.default")
def _addmm(meta: Any, c: Node, x: Node, y: Node, beta: Any = 1, alpha: Any = 1) -> Node:
    return _scaled_sum(_mm(meta, x, y), c, alpha, beta)


@lower("aten.baddbmm.default")
def _baddbmm(meta: Any, c: Node, x: Node, y: Node, beta: Any = 1, alpha: Any = 1) -> Node:
    return _scaled_sum(_bmm(meta, x, y), c, alpha, beta)


def _scaled_sum(product: Node, c: Node, alpha: Any, beta: Any) -> Node:
    product = product if alpha == 1 else b.binary("mul", product, alpha)
    return product if beta == 0 else make("add", product, c if beta == 1 else b.binary("mul", c, beta))


@lower("aten.mv.default")
def _mv(meta: Any, x: Node, y: Node) -> Node:
    return make("contract", x, y, spec="mk,k->m")


@lower("aten.dot.default")
def _dot(meta: Any, x: Node, y: Node) -> Node:
    return make("contract", x, y, spec="k,k->")


@lower("aten.convolution.default")
def _convolution(
    meta: Any, x: Node, weight: Node, bias: Node | None, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int,
) -> Node:  # fmt: skip
    """A short causal filter over the tokens, as attention: each tap is a head that sees exactly one earlier token."""
    channels, taps = weight.shape[0], weight.shape[-1]
    reach = (taps - 1) * dilation[0]
    causal = x.op == "pad" and x["low"] == (0, 0, reach) and x["high"] == (0, 0, 0) and x["value"] == 0
    if len(weight.shape) != 3 or groups != channels or transposed or stride != [1] or padding != [0] or not causal:
        raise Refused("a convolution that is not a causal filter of each channel over the tokens")
    source = x.inputs[0]
    tokens = source.shape[2]
    head, qpos, kpos = (make("arg", name=n, dtype=DType.I64) for n in ("head", "qpos", "kpos"))
    back = b.binary("mul", make("sub", b.const(taps - 1, DType.I64), head), dilation[0])
    own = make("eq", make("add", kpos, back), qpos)
    body = make("where", own, make("arg", name="score", dtype=DType.F32), b.const(-math.inf, DType.F32))
    zero = b.const(0.0, source.tensor.dtype)
    shifted = make(
        "attention", b.broadcast(zero, (taps, tokens, 1)), b.broadcast(zero, (1, tokens, 1)),
        b.transpose(source, [0, 2, 1]), body, scale=1.0, window=reach + 1, softcap=0.0, causal=True, sinks=False,
        body=True,
    )  # fmt: skip
    filters = b.transpose(b.reshape(weight, (channels, taps)), [1, 0])
    out = b.reduce("sum", make("mul", shifted, filters), [1], False)
    out = make("add", out, bias) if bias is not None else out
    return b.reshape(b.transpose(out, [1, 0]), shape_of(meta))


@lower("aten.cumsum.default")
def _cumsum(meta: Any, x: Node, dim: int, dtype: Any = None) -> Node:
    return make("cumsum", b.cast(x, dtype_of(meta)), axis=dim % len(x.shape))


@lower("aten.topk.default")
def _topk(meta: Any, x: Node, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Node, Node]:
    if dim % len(x.shape) != len(x.shape) - 1:
        raise Refused(f"top-k along axis {dim}, not the last")
    key = x if largest else make("neg", x)
    values = make("topk", key, k=k, axis=len(x.shape) - 1, part="values")
    places = make("topk", key, k=k, axis=len(x.shape) - 1, part="indices")
    return (values if largest else make("neg", values)), places


@lower("aten.sort.default", "aten.sort.stable")
def _sort(meta: Any, x: Node, *args: Any, **kwargs: Any) -> tuple[Node, Node]:
    dim, descending = kwargs.get("dim", -1), kwargs.get("descending", False)
    for value in args:
        if isinstance(value, bool):
            descending = value
        elif isinstance(value, int):
            dim = value
    axis = dim % len(x.shape)
    if axis != len(x.shape) - 1:
        raise Refused(f"sort along axis {dim}, not the last")
    return (
        make("sort", x, axis=axis, descending=descending, part="values"),
        make("sort", x, axis=axis, descending=descending, part="indices"),
    )


@lower("aten.erfinv.default")
def _erfinv(meta: Any, x: Node) -> Node:
    """Models use it on settings (a share of neurons to keep), not on activations."""
    value = _constant(x)
    if value is None:
        raise Refused("the inverse error function of something that is not constant")
    return b.const(torch.erfinv(torch.tensor(value, dtype=torch.float64)).item(), dtype_of(meta))


def _constant(node: Node) -> float | None:
    """The value of a scalar made of constants."""
    order = topological([node])
    if node.shape or any(n.shape or n.op not in {"const", "reshape", *POINTWISE} for n in order):
        return None
    values: dict[Node, Any] = {}
    for inner in order:
        values[inner] = OPS[inner.op].meaning(inner, tuple(values[i] for i in inner.inputs), Env())
    return float(values[node])


@lower("aten.dropout.default", "aten.native_dropout.default")
def _dropout(meta: Any, x: Node, p: float, train: bool = False) -> Node:
    if train and p:
        raise Refused("dropout in training mode")
    return x
