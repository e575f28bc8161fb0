"""A tensor as a scalar expression of its indices: how masks and biases become the inlined body of attention."""

from __future__ import annotations

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, make
from echoc.compiler.ir.ops import POINTWISE
from echoc.compiler.ir.types import Dim
from echoc.errors import CompileError

POSITIONS_PORT = "positions"


def argument(name: str) -> Node:
    return make("arg", name=name, dtype=DType.F32 if name == "score" else DType.I64)


def attention_body(bias: Node, heads: Dim) -> Node:
    """score + bias[0, head, qpos, kpos] as a scalar, for a bias that broadcasts to [1, H, S, S].

    Raises CompileError naming the node where the bias depends on more than head and positions.
    """
    zero = b.const(0, DType.I64)
    index = (zero, argument("head"), argument("qpos"), argument("kpos"))[4 - len(bias.shape) :]
    places = tuple(zero if d == 1 else i for d, i in zip(bias.shape, index, strict=True))
    return make("add", argument("score"), b.cast(scalarize(bias, places), DType.F32))


def scalarize(node: Node, index: tuple[Node, ...]) -> Node:
    """The scalar node[index], as a graph over the index nodes (i64 scalars)."""
    return _Scalarizer().at(node, index)


class _Scalarizer:
    def __init__(self) -> None:
        self.done: dict[tuple[Node, tuple[Node, ...]], Node] = {}

    def at(self, node: Node, index: tuple[Node, ...]) -> Node:
        key = (node, index)
        if key not in self.done:
            self.done[key] = self.build(node, index)
        return self.done[key]

    def build(self, node: Node, index: tuple[Node, ...]) -> Node:
        if node.op in POINTWISE:
            inputs = [self.at(i, _aligned(i, index)) for i in node.inputs]
            return make(node.op, *inputs, **dict(node.attrs))
        if node.op in ("const", "arg"):
            return node
        if node.op == "iota":
            return index[0]
        if node.op == "port" and node["name"] == POSITIONS_PORT:
            return b.cast(index[0], node.tensor.dtype)
        if node.op == "broadcast":
            return self.at(node.inputs[0], _aligned(node.inputs[0], index))
        if node.op == "weight":
            return make("take", b.reshape(node, (node.tensor.size,)), _flat(index, node.shape), axis=0)
        view = getattr(self, f"_{node.op}", None)
        if view is None:
            raise CompileError(f"{node.op} : {node.type} depends on more than head and positions")
        out: Node = view(node, index)
        return out

    def _reshape(self, node: Node, index: tuple[Node, ...]) -> Node:
        source = node.inputs[0]
        kept_in = [d for d in source.shape if d != 1]
        kept_out = [(d, i) for d, i in zip(node.shape, index, strict=True) if d != 1]
        zero = b.const(0, DType.I64)
        if kept_in == [d for d, _ in kept_out]:
            rest = iter(i for _, i in kept_out)
            return self.at(source, tuple(zero if d == 1 else next(rest) for d in source.shape))
        return self.at(source, _unflat(_flat(index, node.shape), source.shape))

    def _transpose(self, node: Node, index: tuple[Node, ...]) -> Node:
        places = list(index)
        for out_axis, in_axis in enumerate(node["perm"]):
            places[in_axis] = index[out_axis]
        return self.at(node.inputs[0], tuple(places))

    def _slice(self, node: Node, index: tuple[Node, ...]) -> Node:
        places = [
            b.binary("add", i if step == 1 else b.binary("mul", i, step), start) if (start or step != 1) else i
            for i, start, step in zip(index, node["starts"], node["steps"], strict=True)
        ]
        return self.at(node.inputs[0], tuple(places))

    def _take(self, node: Node, index: tuple[Node, ...]) -> Node:
        source, places = node.inputs
        axis, rank = node["axis"], len(places.shape)
        inner = self.at(places, index[axis : axis + rank])
        return self.at(source, (*index[:axis], inner, *index[axis + rank :]))

    def _pad(self, node: Node, index: tuple[Node, ...]) -> Node:
        inside: Node | None = None
        places = []
        for i, low, high, size in zip(index, node["low"], node["high"], node.inputs[0].shape, strict=True):
            place = b.binary("sub", i, low) if low else i
            places.append(place)
            tests = [make("le", b.const(0, DType.I64), place)] if low else []
            tests += [make("lt", place, b.dim_scalar(size, DType.I64))] if high else []
            for test in tests:
                inside = test if inside is None else make("and", inside, test)
        value = self.at(node.inputs[0], tuple(places))
        return value if inside is None else make("where", inside, value, b.const(node["value"], node.tensor.dtype))

    def _concat(self, node: Node, index: tuple[Node, ...]) -> Node:
        axis = node["axis"]
        place, start, out = index[axis], 0, None
        for part in node.inputs:
            size = part.shape[axis]
            if not isinstance(size, int):
                raise CompileError(f"a concatenation along the token axis ({part.type}) inside a mask")
            shifted = b.binary("sub", place, start) if start else place
            value = self.at(part, (*index[:axis], shifted, *index[axis + 1 :]))
            out = value if out is None else make("where", make("lt", place, b.const(start, DType.I64)), out, value)
            start += size
        assert out is not None
        return out

    def _gather(self, node: Node, index: tuple[Node, ...]) -> Node:
        place = self.at(node.inputs[1], index)
        return self.at(node.inputs[0], tuple(place if a == node["axis"] else i for a, i in enumerate(index)))


def _aligned(node: Node, index: tuple[Node, ...]) -> tuple[Node, ...]:
    """The index of a broadcast operand: trailing axes, with 0 where it has one element."""
    tail = index[len(index) - len(node.shape) :]
    return tuple(b.const(0, DType.I64) if d == 1 else i for d, i in zip(node.shape, tail, strict=True))


def _flat(index: tuple[Node, ...], shape: tuple[Dim, ...]) -> Node:
    out = b.const(0, DType.I64)
    for i, size in zip(index, shape, strict=True):
        out = make("add", make("mul", out, b.dim_scalar(size, DType.I64)), i)
    return out


def _unflat(flat: Node, shape: tuple[Dim, ...]) -> tuple[Node, ...]:
    out: list[Node] = []
    for size in reversed(shape):
        step = b.dim_scalar(size, DType.I64)
        out.append(make("mod", flat, step))
        flat = make("floordiv", flat, step)
    return tuple(reversed(out))
