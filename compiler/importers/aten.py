"""From a core-ATen graph to the IR: one entry per ATen operator, none per model."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, make
from echoc.compiler.ir.types import Dim, Poly, dim_div, dim_mul, dim_value, symbol
from echoc.errors import CompileError

DTYPES = {
    torch.float64: DType.F64, torch.float32: DType.F32, torch.float16: DType.F16, torch.bfloat16: DType.BF16,
    torch.int64: DType.I64, torch.int32: DType.I32, torch.int16: DType.I16, torch.int8: DType.I8,
    torch.uint8: DType.U8, torch.bool: DType.BOOL,
}  # fmt: skip

Lowering = Callable[..., Any]
L = TypeVar("L", bound=Callable[..., Any])
LOWERINGS: dict[str, Lowering] = {}
TOKENS = "S"


class Refused(CompileError):
    """An operator or value outside what can be compiled; names the node and the reason."""


def lower(*names: str) -> Callable[[L], L]:
    """Register a function `(output_meta, *args, **kwargs) -> Node` for ATen operators."""

    def register(function: L) -> L:
        for name in names:
            LOWERINGS[name] = function
        return function

    return register


def to_dim(value: Any) -> Dim:
    """An int or torch.SymInt as a dimension; the one free symbol is the token axis."""
    if isinstance(value, int):
        return value
    import sympy

    ranges = value.node.shape_env.var_to_range

    def convert(expr: Any) -> Dim:
        if expr.is_Integer:
            return int(expr)
        if expr.is_Symbol:
            return symbol(TOKENS)
        if isinstance(expr, sympy.Add | sympy.Mul):
            parts = [convert(a) for a in expr.args]
            out = parts[0]
            for part in parts[1:]:
                out = out + part if isinstance(expr, sympy.Add) else dim_mul(out, part)
            return out
        if type(expr).__name__ in ("Max", "Min"):  # sympy's, or torch's own of the same names
            longest = max(int(ranges[s].upper) for s in expr.free_symbols)
            found = _extreme(expr, [convert(a) for a in expr.args], longest)
            if found is not None:
                return found
        raise Refused(f"the dimension {expr} is not a polynomial in the number of tokens")

    return convert(value.node.expr)


def _extreme(expr: Any, parts: list[Dim], longest: int) -> Dim | None:
    """The part that is the largest (or least) for every number of tokens up to `longest`; each is linear in it."""
    sign = 1 if type(expr).__name__ == "Max" else -1
    if any(isinstance(p, Poly) and any(len(names) > 1 for names, _ in p.terms) for p in parts):
        return None
    ends = [[sign * dim_value(p, {TOKENS: n}) for n in (1, longest)] for p in parts]
    for part, values in zip(parts, ends, strict=True):
        if all(values[i] >= other[i] for other in ends for i in (0, 1)):
            return part
    return None


def dtype_of(meta: Any) -> DType:
    return DTYPES[meta.dtype]


def shape_of(meta: Any) -> tuple[Dim, ...]:
    return tuple(to_dim(d) for d in meta.shape)


def operand(value: Any, dtype: DType) -> Node:
    """A tensor cast to `dtype`, or a number (or dimension) as a scalar tensor."""
    if isinstance(value, Node):
        return b.cast(value, dtype)
    if isinstance(value, int | float | bool):
        return b.const(value, dtype)
    return b.dim_scalar(value, dtype)


def promoted(*values: Any) -> DType:
    """torch's type promotion: a number only matters where its category is above the tensors'."""
    samples = [
        torch.empty([1] * min(len(v.shape), 1), dtype=_TORCH[v.tensor.dtype]) if isinstance(v, Node) else _number(v)
        for v in values
    ]
    out = samples[0]
    for sample in samples[1:]:
        kind = torch.result_type(out, sample)
        dims = max(getattr(out, "ndim", 0), getattr(sample, "ndim", 0))
        out = torch.empty([1] * dims, dtype=kind)
    return DTYPES[out.dtype if isinstance(out, torch.Tensor) else torch.result_type(out, out)]


_TORCH = {v: k for k, v in DTYPES.items()}


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float | bool) else 1


def convert_graph(
    graph: Any, placeholder: Callable[[Any], Node], refuse: Callable[[Any, str], CompileError]
) -> list[Node]:
    """Convert an fx graph of core-ATen operators.

    Args:
        graph: torch.fx.Graph after run_decompositions.
        placeholder: gives the node of each placeholder.
        refuse: makes the error for an fx node and a reason.
    Returns: the converted outputs, in order.
    """
    values: dict[Any, Any] = {}

    def resolve(arg: Any) -> Any:
        if isinstance(arg, torch.fx.Node):
            meta = arg.meta.get("val")
            if isinstance(meta, torch.SymInt):
                return to_dim(meta)
            return values[arg]
        if isinstance(arg, list | tuple):
            return [resolve(a) for a in arg]
        return arg

    outputs: list[Node] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = placeholder(node)
        elif node.op == "output":
            outputs = [values[a] for a in torch.fx.node.map_arg(node.args[0], lambda a: a) if a is not None]
        elif node.op == "call_function":
            values[node] = _convert_call(node, resolve, refuse)
        else:
            raise refuse(node, f"an fx node of kind {node.op}")
    return outputs


def _convert_call(node: Any, resolve: Callable[[Any], Any], refuse: Callable[[Any, str], CompileError]) -> Any:
    meta = node.meta.get("val")
    if node.target is operator.getitem:
        return resolve(node.args[0])[node.args[1]]
    if isinstance(meta, torch.SymInt | int | torch.SymBool | torch.SymFloat):
        return None
    name = str(node.target)
    if name.startswith(("aten._assert", "aten.sym_constrain")):
        return None
    function = LOWERINGS.get(name)
    if function is None:
        raise refuse(node, f"the operator {name} is not supported")
    try:
        value = function(meta, *[resolve(a) for a in node.args], **{k: resolve(v) for k, v in node.kwargs.items()})
    except CompileError as error:
        raise refuse(node, str(error)) from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise refuse(node, f"its arguments have a form that {name} is not converted for ({error})") from error
    if isinstance(value, Node) and (value.shape != shape_of(meta) or value.tensor.dtype != dtype_of(meta)):
        raise refuse(node, f"converted to {value.type}; wanted {dtype_of(meta)}{list(shape_of(meta))}")
    return value


@lower("echoc.attention.default")
def _attention(
    meta: Any, q: Node, k: Node, v: Node, sinks: Node | None, bias: Node | None, scale: float, window: int,
    softcap: float, causal: bool, layer: int,
) -> Node:  # fmt: skip
    from echoc.compiler.importers.key_bias import split_key_bias
    from echoc.compiler.passes.scalarize import attention_body

    parts = [b.reshape(x, x.shape[1:]) for x in (q, k, v)]
    extras = [b.cast(sinks, DType.F32)] if sinks is not None else []
    if bias is not None:
        try:
            extras.append(attention_body(bias, q.shape[1]))
        except CompileError:
            if softcap:
                raise
            *parts, body = split_key_bias(parts[0], parts[1], parts[2], bias, scale)
            extras.append(body)
    out = make(
        "attention", *parts, *extras, scale=scale, window=window, softcap=softcap, causal=causal,
        sinks=sinks is not None, body=bias is not None,
    )  # fmt: skip
    return b.reshape(out, (1, *out.shape))


@lower("echoc.experts_linear.default")
def _experts_linear(meta: Any, x: Node, weight: Node, ids: Node, transposed: bool) -> Node:
    repeat = dim_div(ids.shape[0], x.shape[0])
    if repeat is None:
        raise Refused(f"{ids.shape[0]} expert choices for {x.shape[0]} rows")
    rows = b.broadcast(b.reshape(x, (x.shape[0], 1, x.shape[1])), (x.shape[0], repeat, x.shape[1]))
    rows = b.reshape(rows, (ids.shape[0], x.shape[1]))
    return make("contract", rows, make("take", weight, ids, axis=0), spec="nk,nko->no" if transposed else "nk,nok->no")


from echoc.compiler.importers import aten_math, aten_shape  # noqa: E402  (they register their lowerings)

__all__ = ["LOWERINGS", "TOKENS", "Refused", "aten_math", "aten_shape", "convert_graph"]
