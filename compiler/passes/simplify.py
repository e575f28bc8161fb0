"""Algebraic identities that shrink a graph: one named rewrite each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, Program, make
from echoc.compiler.ir.ops import POINTWISE
from echoc.compiler.ir.rewrite import Rewrite, Rules, rewrite_rule
from echoc.compiler.ir.types import Dim

REWRITES: list[Rewrite] = []


def rewrite(*ops: str, example: Callable[[], Node]) -> Callable[[Callable[[Node], Node | None]], None]:
    def register(function: Callable[[Node], Node | None]) -> None:
        name = function.__name__.strip("_")
        REWRITES.append(Rewrite(name, frozenset(ops), function, example, (function.__doc__ or "").strip()))

    return register


def _x(*shape: Dim, name: str = "x", dtype: str = "f32") -> Node:
    return make("port", name=name, shape=shape, dtype=dtype)


def _index(*shape: Dim) -> Node:
    return _x(*shape, name="i", dtype="i64")


def const_value(node: Node) -> float | int | bool | None:
    return node["value"] if node.op == "const" else None


@rewrite("reshape", example=lambda: b.reshape(b.reshape(_x(4, 6), (24,)), (3, 8)))
def reshape_reshape(node: Node) -> Node | None:
    """reshape(reshape(x)) = reshape(x)"""
    (x,) = node.inputs
    return b.reshape(x.inputs[0], node.shape) if x.op == "reshape" else None


@rewrite("reshape", "broadcast", example=lambda: make("reshape", _x(4, 6), shape=(4, 6)))
def same_shape(node: Node) -> Node | None:
    """reshape(x, shape of x) = x"""
    return node.inputs[0] if node.inputs[0].shape == node.shape else None


@rewrite("transpose", example=lambda: b.transpose(_x(4, 1, 6), [1, 0, 2]))
def transpose_units(node: Node) -> Node | None:
    """A transpose that only moves axes of size 1 is a reshape."""
    (x,) = node.inputs
    moved = [p for p in node["perm"] if x.shape[p] != 1]
    return b.reshape(x, node.shape) if moved == sorted(moved) else None


@rewrite("transpose", example=lambda: b.transpose(b.transpose(_x(2, 3, 4), [1, 2, 0]), [2, 1, 0]))
def transpose_transpose(node: Node) -> Node | None:
    """transpose(transpose(x, p), q) = transpose(x, p[q])"""
    (x,) = node.inputs
    return b.transpose(x.inputs[0], [x["perm"][p] for p in node["perm"]]) if x.op == "transpose" else None


@rewrite("broadcast", example=lambda: b.broadcast(b.broadcast(_x(1, 3), (2, 3)), (5, 2, 3)))
def broadcast_broadcast(node: Node) -> Node | None:
    """broadcast(broadcast(x)) = broadcast(x)"""
    (x,) = node.inputs
    return b.broadcast(x.inputs[0], node.shape) if x.op == "broadcast" else None


@rewrite("reshape", example=lambda: b.reshape(b.broadcast(_x(1, 5, 1), (1, 5, 4)), (5, 1, 4)))
def reshape_broadcast(node: Node) -> Node | None:
    """reshape(broadcast(x)) = broadcast(reshape(x)) where the reshape only adds and drops axes of size 1."""
    (wide,) = node.inputs
    kept = [i for i, d in enumerate(wide.shape) if d != 1]
    places = [i for i, d in enumerate(node.shape) if d != 1]
    if wide.op != "broadcast" or [wide.shape[i] for i in kept] != [node.shape[i] for i in places]:
        return None
    x = wide.inputs[0]
    before: list[Dim] = [*([1] * (len(wide.shape) - len(x.shape))), *x.shape]
    shape: list[Dim] = [1] * len(node.shape)
    for source, target in zip(kept, places, strict=True):
        shape[target] = before[source]
    return b.broadcast(b.reshape(x, shape), node.shape)


@rewrite("gather", example=lambda: make("gather", _x(1, 7, 4), b.broadcast(_index(1, 3, 1), (1, 3, 4)), axis=1))
def gather_rows(node: Node) -> Node | None:
    """gather(x, i) = take(x, i) where i is the same all along the other axes"""
    x, index = node.inputs
    source = index.inputs[0] if index.op == "broadcast" else index
    axis, lead = node["axis"], len(index.shape) - len(source.shape)
    if lead > axis or source.shape[axis - lead] != index.shape[axis]:
        return None
    if any(d != 1 for i, d in enumerate(source.shape) if i != axis - lead):
        return None
    return make("take", x, b.reshape(source, (index.shape[axis],)), axis=axis)


@rewrite("cast", example=lambda: make("cast", _x(3), dtype="f32"))
def cast_same(node: Node) -> Node | None:
    """cast(x, dtype of x) = x"""
    return node.inputs[0] if node.inputs[0].tensor.dtype == node.tensor.dtype else None


@rewrite("cast", example=lambda: make("cast", make("const", value=3, dtype="i64"), dtype="f32"))
def cast_const(node: Node) -> Node | None:
    """A cast of a constant is a constant (ints within range, to ints or floats of 32 bits and more)."""
    value = const_value(node.inputs[0])
    if value is None or isinstance(value, float) or node.tensor.dtype in (DType.F16, DType.BF16, DType.I8, DType.I16):
        return None
    return b.const(value, node.tensor.dtype) if abs(value) < 2**24 and node.tensor.dtype is not DType.U8 else None


@rewrite("cast", example=lambda: make("cast", b.broadcast(_x(1, 3), (2, 3)), dtype="i64"))
def cast_broadcast(node: Node) -> Node | None:
    """cast(broadcast(x)) = broadcast(cast(x))"""
    (x,) = node.inputs
    return b.broadcast(b.cast(x.inputs[0], node.tensor.dtype), node.shape) if x.op == "broadcast" else None


@rewrite("cumsum", example=lambda: make("cumsum", b.broadcast(b.const(2, DType.I64), (3, 5)), axis=1))
def cumsum_of_constant(node: Node) -> Node | None:
    """The running sum of a value that is constant along the axis is value * (place + 1)."""
    (x,) = node.inputs
    axis = node["axis"] - len(x.shape)
    if x.op != "broadcast" or not x.tensor.dtype.is_int:
        return None
    source = x.inputs[0]
    if -axis <= len(source.shape) and source.shape[axis] != 1:
        return None
    place = b.cast(b.binary("add", make("iota", size=x.shape[axis]), 1), x.tensor.dtype)
    place = b.reshape(place, (x.shape[axis], *([1] * (-axis - 1))))
    return b.broadcast(make("mul", source, place), node.shape)


@rewrite("pow", example=lambda: b.binary("pow", _x(3), 2.0))
def pow_square(node: Node) -> Node | None:
    """x ** 2 = x * x"""
    return make("mul", node.inputs[0], node.inputs[0]) if const_value(node.inputs[1]) == 2.0 else None


@rewrite("pow", example=lambda: b.binary("pow", _x(3), 3.0))
def pow_cube(node: Node) -> Node | None:
    """x ** 3 = x * x * x"""
    x = node.inputs[0]
    return make("mul", make("mul", x, x), x) if const_value(node.inputs[1]) == 3.0 else None


@rewrite("pow", example=lambda: b.binary("pow", make("abs", _x(3)), 0.5))
def pow_half(node: Node) -> Node | None:
    """x ** 0.5 = sqrt(x)"""
    return make("sqrt", node.inputs[0]) if const_value(node.inputs[1]) == 0.5 else None


@rewrite("pow", example=lambda: b.binary("pow", make("abs", _x(3)), -0.5))
def pow_minus_half(node: Node) -> Node | None:
    """x ** -0.5 = rsqrt(x)"""
    return make("rsqrt", node.inputs[0]) if const_value(node.inputs[1]) == -0.5 else None


def _neutral(node: Node, value: float, both: bool) -> Node | None:
    left, right = node.inputs
    if const_value(right) == value and left.type == node.type:
        return left
    return right if both and const_value(left) == value and right.type == node.type else None


@rewrite("mul", example=lambda: b.binary("mul", _x(3), 1.0))
def mul_one(node: Node) -> Node | None:
    """x * 1 = x"""
    return _neutral(node, 1.0, True)


@rewrite("div", example=lambda: b.binary("div", _x(3), 1.0))
def div_one(node: Node) -> Node | None:
    """x / 1 = x"""
    return _neutral(node, 1.0, False)


@rewrite("add", "sub", example=lambda: b.binary("add", _x(3, dtype="i64"), 0))
def add_zero(node: Node) -> Node | None:
    """x + 0 = x on integers (on floats -0.0 + 0.0 would change its sign)"""
    return _neutral(node, 0, node.op == "add") if node.tensor.dtype.is_int else None


@rewrite("neg", example=lambda: make("neg", make("neg", _x(3))))
def neg_neg(node: Node) -> Node | None:
    """-(-x) = x"""
    return node.inputs[0].inputs[0] if node.inputs[0].op == "neg" else None


@rewrite("where", example=lambda: make("where", b.const(True, "bool"), _x(3), _x(3, name="y")))
def where_const(node: Node) -> Node | None:
    """where(true, a, b) = a"""
    value = const_value(node.inputs[0])
    if value is None:
        return None
    return b.broadcast(node.inputs[1] if value else node.inputs[2], node.shape)


def _letters(node: Node) -> tuple[str, str, str]:
    left, _, out = node["spec"].partition("->")
    a, _, c = left.partition(",")
    return a, c, out


def _turned() -> Node:
    return make("contract", _x(3, 4), b.transpose(_x(4, 5, name="y"), [1, 0]), spec="tk,nk->tn")


@rewrite("contract", example=_turned)
def contract_transpose(node: Node) -> Node | None:
    """A transposed operand of a contraction is the operand with its indices permuted."""
    names = list(_letters(node)[:2])
    inputs = list(node.inputs)
    for i, operand in enumerate(node.inputs):
        if operand.op == "transpose":
            letters = [""] * len(names[i])
            for out_axis, in_axis in enumerate(operand["perm"]):
                letters[in_axis] = names[i][out_axis]
            names[i], inputs[i] = "".join(letters), operand.inputs[0]
    if inputs == list(node.inputs):
        return None
    return make("contract", *inputs, spec=f"{names[0]},{names[1]}->{_letters(node)[2]}")


@rewrite("contract", example=lambda: make("contract", _x(3, 1, 4), _x(5, 4, name="y"), spec="tsk,nk->tsn"))
def contract_units(node: Node) -> Node | None:
    """Indices of size 1 drop out of a contraction."""
    names = _letters(node)
    sizes = {n: d for ns, i in zip(names[:2], node.inputs, strict=True) for n, d in zip(ns, i.shape, strict=True)}
    drop = {n for n, d in sizes.items() if d == 1}
    if not drop:
        return None
    kept = ["".join(n for n in ns if n not in drop) for ns in names]
    inputs = [b.reshape(i, [sizes[n] for n in ns]) for ns, i in zip(kept[:2], node.inputs, strict=True)]
    out = make("contract", *inputs, spec=f"{kept[0]},{kept[1]}->{kept[2]}")
    return b.reshape(out, node.shape)


@rewrite("take", example=lambda: make("take", _x(7, 4), b.reshape(_x(2, 3, name="i", dtype="i64"), (2, 3, 1)), axis=0))
def take_reshape(node: Node) -> Node | None:
    """take(x, reshape(i)) = reshape(take(x, i))"""
    x, index = node.inputs
    if index.op != "reshape":
        return None
    return b.reshape(make("take", x, index.inputs[0], axis=node["axis"]), node.shape)


@rewrite(*sorted(POINTWISE), example=lambda: make("neg", b.reshape(_x(3, 4), (3, 1, 4))))
def pointwise_reshape(node: Node) -> Node | None:
    """f(reshape(x)) = reshape(f(x)) where x has fewer axes: chains of one-argument functions keep the short shape."""
    if len(node.inputs) != 1 or node.inputs[0].op != "reshape":
        return None
    x = node.inputs[0].inputs[0]
    if len(x.shape) >= len(node.shape):
        return None
    return b.reshape(make(node.op, x, **dict(node.attrs)), node.shape)


@dataclass(frozen=True)
class Simplify:
    """Applies the identities above to a fixed point. Ensures: the same values, no larger a graph."""

    name: str = "simplify"
    rules: Rules = field(default_factory=lambda: Rules(tuple(REWRITES)), compare=False)

    def run(self, program: Program) -> Program:
        return program.map_rules(lambda rule: rewrite_rule(rule, self.rules))
