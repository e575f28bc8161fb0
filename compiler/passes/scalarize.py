"""A tensor as a scalar expression of its indices: how masks and biases become the inlined body of attention."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, make
from echoc.compiler.ir.node import rebuild, topological
from echoc.compiler.ir.ops import POINTWISE, Env
from echoc.compiler.ir.ops.stateful import evaluate_body
from echoc.compiler.ir.types import Dim, Poly, dim_div, dim_mul
from echoc.errors import CompileError

POSITIONS_PORT = "positions"
LAST = "last"  # the last place of the sequence: an argument while a body is built, never in a finished one


def argument(name: str) -> Node:
    return make("arg", name=name, dtype=DType.F32 if name == "score" else DType.I64)


def attention_body(bias: Node, heads: Dim) -> Node:
    """score + bias[0, head, qpos, kpos] as a scalar, for a bias that broadcasts to [1, H, S, S].

    Raises CompileError naming the node where the bias depends on more than head and positions.
    """
    return relative(make("add", argument("score"), b.cast(scalarize(bias, bias_places(bias)), DType.F32)))


def bias_places(bias: Node) -> tuple[Node, ...]:
    """The index of a bias that broadcasts to [1, H, S, S]."""
    zero = b.const(0, DType.I64)
    index = (zero, argument("head"), argument("qpos"), argument("kpos"))[4 - len(bias.shape) :]
    return tuple(zero if d == 1 else i for d, i in zip(bias.shape, index, strict=True))


def relative(body: Node) -> Node:
    """The body without the length of the sequence, which a step does not know.

    Softmax does not change when the scores of one query all move by the same amount: where the last place matters only
    so, the query's own place stands for it. Raises CompileError where it matters otherwise.
    """
    if argument(LAST) not in topological([body]):
        return body
    heads, qpos, kpos = np.arange(8)[:, None, None], np.arange(16)[None, :, None], np.arange(16)[None, None, :]
    moved = []
    for last in (15, 40):
        given = {"score": np.zeros((8, 16, 16)), "head": heads, "qpos": qpos, "kpos": kpos, LAST: np.asarray(last)}
        moved.append(np.broadcast_to(evaluate_body(body, Env(), given), (8, 16, 16)).astype(np.float64))
    seen = np.broadcast_to(kpos <= qpos, (8, 16, 16))
    change = np.where(seen, moved[1] - moved[0], 0.0)
    own = np.diagonal(change, axis1=1, axis2=2)[..., None]
    if not np.allclose(change, np.where(seen, own, 0.0), rtol=1e-5, atol=1e-5):
        raise CompileError("the bias depends on the length of the sequence")
    return replaced(body, {argument(LAST): argument("qpos")})


def replaced(body: Node, mapping: Mapping[Node, Node]) -> Node:
    """A scalar graph with some nodes replaced."""
    done = dict(mapping)
    for node in topological([body]):
        if node not in done:
            done[node] = rebuild(node, tuple(done[i] for i in node.inputs))
    return done[body]


def scalarize(node: Node, index: tuple[Node, ...]) -> Node:
    """The scalar node[index], as a graph over the index nodes (i64 scalars)."""
    return Scalarizer().at(node, index)


class Scalarizer:
    """Follows one element of a tensor back through the graph."""

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
            if not node.shape:
                return node
            return make("take", b.reshape(node, (node.tensor.size,)), _flat(index, node.shape), axis=0)
        view = getattr(self, f"_{node.op}", None)
        if view is None:
            raise CompileError(f"{node.op} : {node.type} depends on more than head and positions")
        out: Node = view(node, index)
        return out

    def _reshape(self, node: Node, index: tuple[Node, ...]) -> Node:
        source = node.inputs[0]
        places: list[Node] = [b.const(0, DType.I64)] * len(source.shape)
        for before, after in _shared_axes(source.shape, node.shape):
            flat = _flat(tuple(index[a] for a in after), tuple(node.shape[a] for a in after))
            inner = _unflat(flat, tuple(source.shape[a] for a in before))
            for axis, place in zip(before, inner, strict=True):
                places[axis] = place
        return self.at(source, tuple(places))

    def _max(self, node: Node, index: tuple[Node, ...]) -> Node:
        """The largest place of a counted axis of c*S + d: how graphs speak of its size."""
        size = node.inputs[0].get("size") if node.inputs[0].op == "iota" else None
        if isinstance(size, Poly) and all(names in ((), ("S",)) for names, _ in size.terms):
            terms = dict(size.terms)
            slope, start = terms[("S",)], terms.get((), 0)
            own = argument(LAST) if slope == 1 else b.binary("mul", argument(LAST), slope)
            constant = slope + start - 1
            return b.binary("add", own, constant) if constant else own
        raise CompileError(f"{node.op} : {node.type} depends on more than head and positions")

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
            tests += [make("lt", place, _size(size))] if high else []
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


def _shared_axes(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes (without those of size 1) that hold the same elements on both sides of a reshape."""
    left, right = ([i for i, d in enumerate(s) if d != 1] for s in (before, after))
    out = []
    while left or right:
        run: tuple[list[int], list[int]] = ([], [])
        sizes: list[Dim] = [1, 1]
        while not run[0] or not run[1] or sizes[0] != sizes[1]:
            behind = 0 if not run[0] or (run[1] and dim_div(sizes[1], sizes[0]) is not None) else 1
            if not (left, right)[behind]:
                behind = 1 - behind
            axes, shape = ((left, before), (right, after))[behind]
            sizes[behind] = dim_mul(sizes[behind], shape[axes[0]])
            run[behind].append(axes.pop(0))
        out.append(run)
    return out


def _size(dim: Dim) -> Node:
    return Scalarizer().at(b.dim_scalar(dim, DType.I64), ())


def _flat(index: tuple[Node, ...], shape: tuple[Dim, ...]) -> Node:
    out = index[0]
    for i, size in zip(index[1:], shape[1:], strict=True):
        out = make("add", make("mul", out, _size(size)), i)
    return out


def _unflat(flat: Node, shape: tuple[Dim, ...]) -> tuple[Node, ...]:
    out: list[Node] = []
    for size in reversed(shape[1:]):
        step = _size(size)
        out.append(make("mod", flat, step))
        flat = make("floordiv", flat, step)
    return (flat, *reversed(out))
