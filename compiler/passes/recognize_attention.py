"""Attention that a model computes by hand becomes the op `attention`, so that it can be made stateful.

What is looked for is a contraction of probabilities with values over the tokens, where the probabilities are a softmax,
over the keys, of scores; and the scores are one contraction of queries with keys, changed in any way that depends on
head and positions alone (scale, soft cap, bias, masks). That change is written as the scalar body of `attention`.

Each tensor is followed element by element: an element of the probabilities is named by head and positions, and every
reshape, transpose and broadcast on the way is followed by what it does to these names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, Program, Rule, make
from echoc.compiler.ir.membrane import substitute
from echoc.compiler.ir.node import topological, users
from echoc.compiler.ir.ops import POINTWISE, Env
from echoc.compiler.ir.ops.stateful import evaluate_body
from echoc.compiler.ir.types import Dim, dim_product, symbol
from echoc.compiler.passes.make_stateful import refuse
from echoc.compiler.passes.scalarize import Scalarizer, argument, relative, replaced
from echoc.errors import CompileError, IRError

S = symbol("S")
PROBABILITY = "probability"
MOVES = {"reshape", "transpose", "broadcast", "slice", "concat"}
HEAD, QPOS, KPOS = "head", "qpos", "kpos"


@dataclass(frozen=True)
class RecognizeAttention:
    """Requires a prompt rule over the token axis S. Ensures: softmax over tokens stands in `attention` ops alone."""

    name: str = "recognize_attention"

    def run(self, program: Program) -> Program:
        return program.map_rules(_recognize)


def _recognize(rule: Rule) -> Rule:
    """Replaces the attentions one by one: those of later layers read what earlier ones gave."""
    while True:
        for node in rule.order:
            if node.op == "contract" and _sums_over_tokens(node):
                found = _attention(node)
                if found is not None:
                    rule = substitute(rule, {node: found})
                    break
        else:
            return rule


def _letters(node: Node) -> tuple[list[str], str]:
    left, _, out = node["spec"].partition("->")
    return left.split(","), out


def _sums_over_tokens(node: Node) -> bool:
    names, out = _letters(node)
    summed = [d for n, d in zip(names[0], node.inputs[0].shape, strict=True) if n in names[1] and n not in out]
    return summed == [S]


def softmax_of(node: Node) -> tuple[Node, int] | None:
    """The argument and axis of a softmax over S as importers build it: exp(x - max x) / sum(exp(x - max x))."""
    if node.op != "div" or node.inputs[0].op != "exp":
        return None
    top, total = node.inputs[0], node.inputs[1]
    while total.op in ("reshape", "broadcast"):
        total = total.inputs[0]
    if total.op != "sum" or total.inputs[0] is not top or len(total["axes"]) != 1 or top.inputs[0].op != "sub":
        return None
    (axis,) = total["axes"]
    x, shift = top.inputs[0].inputs
    if top.shape[axis] != S or shift.shape != tuple(1 if i == axis else d for i, d in enumerate(top.shape)):
        return None
    return x, axis


class _Probabilities(Scalarizer):
    """Follows an element of the probabilities down to the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.found: tuple[Node, int, tuple[Node, ...]] | None = None

    def build(self, node: Node, index: tuple[Node, ...]) -> Node:
        softmax = softmax_of(node)
        if softmax is None:
            return super().build(node, index)
        if self.found is not None and self.found != (*softmax, index):
            raise CompileError("it sums several softmaxes")
        self.found = (*softmax, index)
        return make("arg", name=PROBABILITY, dtype=node.tensor.dtype)


class _Scores(Scalarizer):
    """Follows an element of the scores; the contraction of queries and keys becomes the argument `score`."""

    def __init__(self) -> None:
        super().__init__()
        self.product: Node | None = None
        self.index: tuple[Node, ...] = ()

    def build(self, node: Node, index: tuple[Node, ...]) -> Node:
        if node.op != "contract":
            return super().build(node, index)
        if self.product is not None and (self.product, self.index) != (node, index):
            raise CompileError("its scores are a sum of several products of queries and keys")
        self.product, self.index = node, index
        return b.cast(argument("score"), node.tensor.dtype)


def _attention(node: Node) -> Node | None:
    """The contraction as an attention; None when it is something else."""
    for which in (0, 1):
        if sum(d == S for d in node.inputs[which].shape) != 2:
            continue
        match = _Match(node, which)
        try:
            if match.find_softmax():
                return match.build()
        except (CompileError, IRError) as error:
            raise refuse(node, f"attention written by hand: {error}") from None
    return None


class _Match:
    """One contraction of probabilities (operand `which`) with values."""

    def __init__(self, node: Node, which: int) -> None:
        names, self.out = _letters(node)
        self.node = node
        self.weights, self.values = node.inputs[which], node.inputs[1 - which]
        self.weight_names, self.value_names = names[which], names[1 - which]
        (self.key,) = (n for n in self.weight_names if n in self.value_names and n not in self.out)
        sizes = dict(zip(self.weight_names, self.weights.shape, strict=True))
        (self.query,) = (n for n, d in sizes.items() if d == S and n != self.key)
        shared = [n for n in self.weight_names if n in self.value_names and n != self.key]
        own = [n for n in self.weight_names if n not in (self.key, self.query, *shared)]
        self.heads = [*shared, *own]  # the order in which query heads are counted: those of a value head together
        self.sizes = sizes
        self.num_heads = _static(dim_product(tuple(sizes[n] for n in self.heads)))

    def find_softmax(self) -> bool:
        """Whether the probabilities are a softmax over the keys. Raises CompileError when they are one, but changed."""
        if not _below(self.weights, lambda n: softmax_of(n) is not None):
            return False
        place: dict[str, Node] = {self.query: argument(QPOS), self.key: argument(KPOS)}
        stride = self.num_heads
        for name in self.heads:
            size = _static(self.sizes[name])
            stride //= size
            value = argument(HEAD) if stride == 1 else b.binary("floordiv", argument(HEAD), stride)
            place[name] = value if name == self.heads[0] else b.binary("mod", value, size)
        finder = _Probabilities()
        whole = finder.at(self.weights, tuple(place[n] for n in self.weight_names))
        while whole.op == "cast":
            whole = whole.inputs[0]
        if finder.found is None or whole.op != "arg":
            raise CompileError("its probabilities are changed after the softmax")
        self.scores, axis, self.index = finder.found
        if self.index[axis] is not argument(KPOS):
            raise CompileError("its softmax does not run over the keys")
        return True

    def build(self) -> Node:
        scores = _Scores()
        tail = self.index[len(self.index) - len(self.scores.shape) :]
        zero = b.const(0, DType.I64)
        aligned = tuple(zero if d == 1 else i for d, i in zip(self.scores.shape, tail, strict=True))
        body = b.cast(scores.at(self.scores, aligned), DType.F32)
        if scores.product is None:
            raise CompileError("its scores are no product of queries and keys")
        q, k = self.queries_and_keys(scores.product, scores.index)
        v = self.operand(self.values, self.value_names, self.key, {n: n for n in self.heads}, "values")
        group = self.num_heads // _static(v.shape[0])
        k_group = self.num_heads // _static(k.shape[0])
        k, v = (_repeat(x, n // min(group, k_group)) for x, n in ((k, k_group), (v, group)))
        body, scale = _without_scale(relative(body))
        plain = body is argument("score")
        extras = [] if plain else [body]
        out = make(
            "attention", q, k, v, *extras, scale=scale, window=0, softcap=0.0, causal=False, sinks=False, body=not plain
        )
        return self.result(out)

    def result(self, out: Node) -> Node:
        """[S, H, Dv] as the contraction gives it."""
        sizes = self.sizes | dict(zip(self.value_names, self.values.shape, strict=True))
        own = [n for n in self.value_names if n not in self.heads and n != self.key]
        order = [self.query, *self.heads, *own]
        return b.transpose(b.reshape(out, [sizes[n] for n in order]), [order.index(n) for n in self.out])

    def queries_and_keys(self, product: Node, index: tuple[Node, ...]) -> tuple[Node, Node]:
        names, out = _letters(product)
        kinds = dict(zip(out, (self.kind(i) for i in index), strict=True))
        tokens = {kind: n for n, kind in kinds.items() if isinstance(kind, str)}
        if set(tokens) != {QPOS, KPOS}:
            raise CompileError("its scores do not relate each query to each key")
        sides = [[n for n in names[i] if kinds.get(n) == QPOS] for i in (0, 1)]
        which = 0 if sides[0] else 1
        if tokens[KPOS] in names[which] or tokens[QPOS] in names[1 - which]:
            raise CompileError("its queries and keys share a token axis")
        heads = {n: kind for n, kind in kinds.items() if not isinstance(kind, str)}
        q = self.placed(product.inputs[which], names[which], tokens[QPOS], heads, "queries")
        k = self.placed(product.inputs[1 - which], names[1 - which], tokens[KPOS], heads, "keys")
        if q.shape[0] != self.num_heads:
            q = _repeat(q, self.num_heads // _static(q.shape[0]))
        return q, k

    def kind(self, place: Node) -> str | tuple[int, ...]:
        """What an index of the product runs over: qpos, kpos, or the value it has for each query head."""
        for name in (QPOS, KPOS):
            if place is argument(name):
                return name
        heads = np.arange(self.num_heads)
        values = []
        for seed in (3, 11):
            given: dict[str, NDArray[Any]] = {HEAD: heads, QPOS: np.asarray(seed), KPOS: np.asarray(seed + 1)}
            values.append(tuple(int(v) for v in np.broadcast_to(evaluate_body(place, Env(), given), heads.shape)))
        if values[0] != values[1]:
            raise CompileError("its heads and tokens are mixed in one axis")
        return values[0]

    def placed(self, x: Node, names: str, token: str, heads: dict[str, Any], what: str) -> Node:
        """[heads, S, D] of an operand of the scores, whose axes in `heads` take the given value for each query head."""
        own = [n for n in names if n in heads]
        feature = [n for n in names if n not in own and n != token]
        sizes = dict(zip(names, x.shape, strict=True))
        flat = np.zeros(self.num_heads, np.int64)
        for n in own:
            flat = flat * _static(sizes[n]) + np.asarray(heads[n])
        count = _static(dim_product(tuple(sizes[n] for n in own)))
        out = b.transpose(x, [names.index(n) for n in (*own, token, *feature)])
        out = b.reshape(out, (count, S, dim_product(tuple(sizes[n] for n in feature))))
        if self.num_heads % count == 0 and (flat == np.arange(self.num_heads) // (self.num_heads // count)).all():
            return out
        picked = [b.slice_axis(out, 0, int(h), int(h) + 1) for h in flat]
        if len(picked) > 1 << 10:
            raise CompileError(f"the {what} of {self.num_heads} heads lie in an order of their own")
        return make("concat", *picked, axis=0)

    def operand(self, x: Node, names: str, token: str, heads: dict[str, str], what: str) -> Node:
        """[heads, S, D] of the values."""
        count = {}
        stride = self.num_heads
        for n in self.heads:
            stride //= _static(self.sizes[n])
            count[n] = tuple(int(h) // stride % _static(self.sizes[n]) for h in range(self.num_heads))
        return self.placed(x, names, token, {n: v for n, v in count.items() if n in names}, what)


def _repeat(x: Node, times: int) -> Node:
    """Each head `times` times in a row."""
    if times == 1:
        return x
    heads, *rest = x.shape
    wide = b.broadcast(b.reshape(x, (heads, 1, *rest)), (heads, times, *rest))
    return b.reshape(wide, (_static(heads) * times, *rest))


def _static(dim: Dim) -> int:
    if not isinstance(dim, int):
        raise CompileError(f"an axis of heads has the size {dim}")
    return dim


def _below(node: Node, wanted: Callable[[Node], bool]) -> bool:
    """Whether such a node is reached through pointwise ops and views alone."""
    stack, seen = [node], set()
    while stack:
        node = stack.pop()
        if wanted(node):
            return True
        if node in seen or not (
            node.op in POINTWISE or node.op in ("reshape", "transpose", "broadcast", "slice", "concat")
        ):
            continue
        seen.add(node)
        stack += node.inputs
    return False


def _without_scale(body: Node) -> tuple[Node, float]:
    """The body with a constant factor of the score taken out of it, where the score occurs in one product alone."""
    score = argument("score")
    uses = users(topological([body]))[score]
    if body is score or len(uses) != 1:
        return body, 1.0
    (use,) = uses
    constants = [i for i in use.inputs if i.op == "const"]
    if use.op == "mul" and len(constants) == 1:
        return replaced(body, {use: score}), float(constants[0]["value"])
    if use.op == "div" and use.inputs[0] is score and len(constants) == 1 and constants[0]["value"]:
        return replaced(body, {use: score}), 1.0 / float(constants[0]["value"])
    return body, 1.0
