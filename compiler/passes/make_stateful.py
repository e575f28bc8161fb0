"""From the prompt graph to the step: prove it per-token outside attention, pack tokens into one ragged axis.

Every node of the prompt graph either does not depend on the token axis S at all, or carries it on exactly one axis,
as the dimension c*S. For one token (S = 1) such a node has a fixed shape; the step computes that shape for each of T
tokens of any mixture of sequences, with T as a new leading axis. Each op has a rule that proves its tokens
independent, and the first that cannot be proven is refused by name. Attention becomes append and attend on paged state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Membrane, Node, Poly, Port, Program, Rule, State, StateType, TensorType, make
from echoc.compiler.ir.node import topological
from echoc.compiler.ir.ops import POINTWISE
from echoc.compiler.ir.text import show_attrs
from echoc.compiler.ir.types import Dim, dim_div, symbol
from echoc.compiler.kv_format import KvFormat
from echoc.compiler.passes.causality import hides_future, within_the_past
from echoc.errors import CompileError

S, T, B, M = symbol("S"), symbol("T"), symbol("B"), symbol("M")
STEP_PORTS = (
    Port("tokens", "in", TensorType((T,), DType.I32)),
    Port("positions", "in", TensorType((T,), DType.I32)),
    Port("sequences", "in", TensorType((T,), DType.I32)),
    Port("block_table", "in", TensorType((B, M), DType.I32)),
)


@dataclass(frozen=True)
class Token:
    """A value that carries the token axis: `node` is [T, *shape at S = 1], the axis of S is `axis` in prompt terms.

    The places of an axis of c*S count the c inside each token, but for `outer` > 1: then c is `outer`, and the tokens
    lie inside each of them (a copy of all tokens for each expert, say).
    """

    node: Node
    axis: int
    outer: int = 1


Lifted = Token | Node


def refuse(node: Node, reason: str) -> CompileError:
    inputs = ", ".join(str(i.type) for i in node.inputs)
    return CompileError(f"refused {node.op}({inputs}){show_attrs(node)[:200]} : {node.type}: {reason}")


def at_one(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """A prompt shape for S = 1."""
    return tuple(d if isinstance(d, int) else sum(c for _, c in d.terms) for d in shape)


def token_axis(node: Node) -> int | None:
    """The axis whose size is c*S; None where the node has none. Raises where it is unclear."""
    axes = [i for i, d in enumerate(node.shape) if isinstance(d, Poly)]
    if not axes:
        return None
    if len(axes) > 1:
        raise refuse(node, "it relates tokens to tokens outside attention")
    size = node.shape[axes[0]]
    if dim_div(size, S) is None or not isinstance(dim_div(size, S), int):
        raise refuse(node, f"its axis of {size} is not a multiple of the number of tokens")
    return axes[0]


class Lifter:
    """Builds the step graph of a prompt rule."""

    def __init__(self, kv: KvFormat, length: int) -> None:
        self.values: dict[Node, Lifted] = {}
        self.states: list[State] = []
        self.next_states: list[tuple[str, Node]] = []
        self.kv, self.length = kv, length
        self.sequences, self.table = (b.port(p.name, p.type) for p in STEP_PORTS[2:])
        self.positions = b.port("positions", STEP_PORTS[1].type)

    def lift(self, node: Node) -> Token:
        for inner in topological([node]):
            if inner not in self.values:
                self.values[inner] = self.visit(inner)
        value = self.values[node]
        if isinstance(value, Node):
            raise refuse(node, "the output does not depend on the tokens")
        return value

    def visit(self, node: Node) -> Lifted:
        if node.op == "arg" or any(i.op == "arg" for i in node.inputs):
            return node
        inputs = [self.values[i] for i in node.inputs]
        rule: Callable[[Node, list[Lifted]], Lifted] | None = getattr(self, f"_{node.op}", None)
        if rule is None and node.op in POINTWISE:
            rule = self.pointwise
        tokens = any(isinstance(i, Token) for i in inputs)
        if not tokens and token_axis_or_none(node) is None and node.op != "port":
            return node
        if rule is None:
            raise refuse(node, "no rule proves that its tokens are independent")
        if any(isinstance(i, Token) and i.outer > 1 for i in inputs) and node.op not in POINTWISE | {"reshape"}:
            raise refuse(node, "its axis of tokens repeats the whole sequence")
        return rule(node, inputs)

    def spread(self, node: Node, axis: int, value: Lifted) -> Node:
        """`value` as [T, *prompt shape at S = 1] for an operand of a node whose token axis is `axis`."""
        if isinstance(value, Token):
            return value.node
        return b.broadcast(value, (T, *value.shape))

    def pointwise(self, node: Node, inputs: list[Lifted]) -> Lifted:
        rank = len(node.shape)
        axes = {rank - len(i.shape) + v.axis for i, v in zip(node.inputs, inputs, strict=True) if isinstance(v, Token)}
        outer = {v.outer for v in inputs if isinstance(v, Token)}
        if len(axes) != 1 or len(outer) != 1:
            raise refuse(node, "it relates tokens to tokens outside attention")
        operands = []
        for before, value in zip(node.inputs, inputs, strict=True):
            if isinstance(value, Token):
                shape = value.node.shape
                value = b.reshape(value.node, (shape[0], *([1] * (rank - len(before.shape))), *shape[1:]))
            operands.append(value)
        return Token(make(node.op, *operands, **dict(node.attrs)), axes.pop(), outer.pop())

    def _port(self, node: Node, inputs: list[Lifted]) -> Lifted:
        return Token(b.reshape(b.port(node["name"], TensorType((T,), DType.I32)), (T, 1)), 0)

    def _iota(self, node: Node, inputs: list[Lifted]) -> Lifted:
        if node["size"] != S:
            raise refuse(node, "it counts something other than the tokens")
        return Token(b.reshape(b.cast(self.positions, DType.I64), (T, 1)), 0)

    def _broadcast(self, node: Node, inputs: list[Lifted]) -> Lifted:
        (value,), lead = inputs, len(node.shape) - len(node.inputs[0].shape)
        axis = token_axis(node)
        assert axis is not None
        shape = (T, *at_one(node.shape))
        if isinstance(value, Node):
            return Token(b.broadcast(value, shape), axis)
        if value.axis + lead != axis:
            raise refuse(node, "it relates tokens to tokens outside attention")
        old = value.node.shape
        return Token(b.broadcast(b.reshape(value.node, (T, *([1] * lead), *old[1:])), shape), axis)

    def _reshape(self, node: Node, inputs: list[Lifted]) -> Lifted:
        (value,) = inputs
        assert isinstance(value, Token)
        axis = token_axis(node)
        assert axis is not None
        before, after = _product(node.inputs[0].shape[: value.axis]) * value.outer, _product(node.shape[:axis])
        out = b.reshape(value.node, (T, *at_one(node.shape)))
        if before == after:
            return Token(out, axis)
        outer = dim_div(before, after)
        if not isinstance(outer, int) or node.shape[axis] != S * outer:
            raise refuse(node, "it moves the token axis across others")
        return Token(out, axis, outer)

    def _transpose(self, node: Node, inputs: list[Lifted]) -> Lifted:
        (value,) = inputs
        assert isinstance(value, Token)
        perm = node["perm"]
        return Token(b.transpose(value.node, [0, *(p + 1 for p in perm)]), perm.index(value.axis))

    def _slice(self, node: Node, inputs: list[Lifted]) -> Lifted:
        (value,) = inputs
        assert isinstance(value, Token)
        whole = at_one(node.inputs[0].shape)
        stops = [w if isinstance(s, Poly) else s for s, w in zip(node["stops"], whole, strict=True)]
        return Token(
            make("slice", value.node, starts=(0, *node["starts"]), stops=(T, *stops), steps=(1, *node["steps"])),
            value.axis,
        )

    def _pad(self, node: Node, inputs: list[Lifted]) -> Lifted:
        (value,) = inputs
        assert isinstance(value, Token)
        if node["low"][value.axis] or node["high"][value.axis]:
            raise refuse(node, "it shifts tokens against each other (a convolution or token shift over the sequence)")
        low, high = (0, *node["low"]), (0, *node["high"])
        return Token(make("pad", value.node, low=low, high=high, value=node["value"]), value.axis)

    def _concat(self, node: Node, inputs: list[Lifted]) -> Lifted:
        axes = {v.axis for v in inputs if isinstance(v, Token)}
        if len(axes) != 1 or node["axis"] in axes:
            raise refuse(node, "it joins along the token axis")
        (axis,) = axes
        return Token(make("concat", *(self.spread(node, axis, v) for v in inputs), axis=node["axis"] + 1), axis)

    def reduce(self, node: Node, inputs: list[Lifted]) -> Lifted:
        (value,) = inputs
        assert isinstance(value, Token)
        if value.axis in node["axes"]:
            raise refuse(node, "it reduces over the tokens of the sequence")
        axis = value.axis - sum(a < value.axis for a in node["axes"])
        return Token(make(node.op, value.node, axes=tuple(a + 1 for a in node["axes"])), axis)

    _sum = _max = _min = reduce

    def along(self, node: Node, inputs: list[Lifted]) -> Lifted:
        (value,) = inputs
        assert isinstance(value, Token)
        if value.axis == node["axis"]:
            raise refuse(node, "it works along the token axis")
        axis = value.axis - (1 if node.op == "argmax" and node["axis"] < value.axis else 0)
        return Token(make(node.op, value.node, **{**dict(node.attrs), "axis": node["axis"] + 1}), axis)

    _cumsum = _topk = _sort = _argmax = along

    def _contract(self, node: Node, inputs: list[Lifted]) -> Lifted:
        left, _, out = node["spec"].partition("->")
        names = left.split(",")
        letters = {n[v.axis] for n, v in zip(names, inputs, strict=True) if isinstance(v, Token)}
        if len(letters) != 1 or not letters <= set(out):
            raise refuse(node, "it mixes tokens of the sequence outside attention")
        (letter,) = letters
        marked = ["T" + n if isinstance(v, Token) else n for n, v in zip(names, inputs, strict=True)]
        if any(isinstance(v, Node) and letter in n for n, v in zip(names, inputs, strict=True)):
            raise refuse(node, "it contracts the token axis with a constant")
        operands = [v.node if isinstance(v, Token) else v for v in inputs]
        return Token(make("contract", *operands, spec=f"{marked[0]},{marked[1]}->T{out}"), out.index(letter))

    def _take(self, node: Node, inputs: list[Lifted]) -> Lifted:
        source, index = inputs
        axis, rank = node["axis"], len(node.inputs[1].shape)
        if isinstance(source, Node) and isinstance(index, Token):
            out = make("take", source, index.node, axis=axis)
            perm = [axis, *(i for i in range(len(out.shape)) if i != axis)]
            return Token(b.transpose(out, perm), axis + index.axis)
        if isinstance(source, Token) and isinstance(index, Node) and source.axis != axis:
            out = make("take", source.node, index, axis=axis + 1)
            return Token(out, source.axis + (rank - 1 if axis < source.axis else 0))
        raise refuse(node, "it picks tokens of the sequence by index")

    def _gather(self, node: Node, inputs: list[Lifted]) -> Lifted:
        axes = {v.axis for v in inputs if isinstance(v, Token)}
        if len(axes) != 1 or node["axis"] in axes:
            raise refuse(node, "it picks tokens of the sequence by index")
        (axis,) = axes
        operands = [self.spread(node, axis, v) for v in inputs]
        return Token(make(node.op, *operands, **{**dict(node.attrs), "axis": node["axis"] + 1}), axis)

    _scatter = _gather

    def _attention(self, node: Node, inputs: list[Lifted]) -> Lifted:
        parts = []
        for value in inputs[:3]:
            if not isinstance(value, Token) or value.axis != 1:
                raise refuse(node, "queries, keys and values must all depend on the tokens")
            shape = value.node.shape
            parts.append(b.reshape(value.node, (shape[0], shape[1], shape[3])))
        extras = [v for v in inputs[3:] if isinstance(v, Node)]
        if len(extras) != len(inputs) - 3:
            raise refuse(node, "sinks must not depend on the tokens")
        attrs = dict(node.attrs)
        if not node["causal"]:
            extras, attrs = self.causal(node, extras, attrs)
        where = f"layer{len(self.states) // 2}"
        head_dims = [part.shape[2] for part in parts[1:]]
        dtype = self.kv.of(*(d for d in head_dims if isinstance(d, int)))
        states = [self.append(f"{where}.{kind}", value, dtype) for kind, value in zip("kv", parts[1:], strict=True)]
        out = make("attend", parts[0], *states, self.sequences, self.positions, self.table, *extras, **attrs)
        return Token(b.reshape(out, (T, 1, *out.shape[1:])), 0)

    def causal(self, node: Node, extras: list[Node], attrs: dict[str, Any]) -> tuple[list[Node], dict[str, Any]]:
        """Attention whose body hides the future, as causal attention with what else the body does."""
        if not node["body"]:
            raise refuse(node, "attention that is not causal: a step cannot see later tokens")
        heads = node.inputs[0].shape[0]
        assert isinstance(heads, int)
        reason = hides_future(extras[-1], heads, self.length)
        if reason:
            raise refuse(node, f"attention that is not causal: {reason}")
        body = within_the_past(extras[-1])
        kept = [] if body.op == "arg" else [body]
        return extras[:-1] + kept, {**attrs, "causal": True, "body": bool(kept)}

    def append(self, name: str, values: Node, dtype: DType) -> Node:
        entry = values.shape[1:]
        assert all(isinstance(d, int) for d in entry)
        type_ = StateType("pages", tuple(d for d in entry if isinstance(d, int)), dtype)
        self.states.append(State(name, type_))
        before = make("state", name=name, kind="pages", shape=type_.shape, dtype=type_.dtype)
        after = make("append", before, values, self.sequences, self.positions, self.table)
        self.next_states.append((name, after))
        return after


def token_axis_or_none(node: Node) -> int | None:
    if node.op in ("arg", "state"):
        return None
    return next((i for i, d in enumerate(node.shape) if isinstance(d, Poly)), None)


def _product(dims: tuple[Dim, ...]) -> Dim:
    out: Dim = 1
    for dim in dims:
        out = out * dim
    return out


PLAIN = KvFormat(DType.F32)


@dataclass(frozen=True)
class MakeStateful:
    """Turns the membrane's rule `prompt` into the rule `step`. Requires ports tokens and positions over S."""

    kv: KvFormat = PLAIN
    name: str = "make_stateful"

    def run(self, program: Program) -> Program:
        symbols: dict[str, Any] = dict(program.symbols)
        _, high = symbols.pop("S")
        symbols.update({"T": (1, high), "R": (1, high), "B": (1, high), "M": (1, high)})
        return replace(program.map_membranes(lambda m: self.membrane(m, high)), symbols=symbols)

    def membrane(self, membrane: Membrane, length: int) -> Membrane:
        prompt = membrane.rule("prompt")
        lifter = Lifter(self.kv, length)
        outputs = []
        for name, node in prompt.outputs:
            token = lifter.lift(node)
            outputs.append((name, b.reshape(token.node, (T, *(d for d in token.node.shape[1:] if d != 1)))))
        rows = Port("rows", "in", TensorType((symbol("R"),), DType.I32))
        picked = [(name, make("take", node, b.port("rows", rows.type), axis=0)) for name, node in outputs]
        out_ports = tuple(Port(name, "out", node.tensor) for name, node in picked)
        step = Rule("step", tuple(picked), tuple(lifter.next_states))
        return replace(
            membrane, states=tuple(lifter.states), ports=(*STEP_PORTS[:3], rows, STEP_PORTS[3], *out_ports),
            rules=(step,),
        )  # fmt: skip
