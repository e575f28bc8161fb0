"""A bias of attention that the keys' own tokens decide, carried by the keys: one more feature of them.

Such a bias f(head, key) may be masked by positions on its way to the scores. Where that is all, the scores with it are
those of queries [q, 1 / scale] and keys [k, f] under the mask alone.
"""

from __future__ import annotations

import numpy as np

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, make
from echoc.compiler.ir.node import topological
from echoc.compiler.ir.ops import Env
from echoc.compiler.ir.ops.stateful import evaluate_body
from echoc.compiler.passes.scalarize import Scalarizer, argument, bias_places, relative, replaced
from echoc.errors import CompileError

KEY_BIAS = "key_bias"
HIDDEN = -1e4


class _Split(Scalarizer):
    """Follows an element of the bias; the part that depends on tokens, but not on the query, becomes an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.part: Node | None = None
        self.index: tuple[Node, ...] = ()

    def build(self, node: Node, index: tuple[Node, ...]) -> Node:
        if argument("qpos") in topological(index) or not _reads_tokens(node):
            return super().build(node, index)
        if self.part is not None and (self.part, self.index) != (node, index):
            raise CompileError("several biases of the scores depend on the tokens")
        self.part, self.index = node, index
        return b.cast(make("arg", name=KEY_BIAS, dtype=DType.F32), node.tensor.dtype)


def _reads_tokens(node: Node) -> bool:
    return any(n.op == "port" and n["name"] == "tokens" for n in topological([node]))


def split_key_bias(q: Node, k: Node, v: Node, bias: Node, scale: float) -> tuple[Node, Node, Node, Node]:
    """q, k, v and body of the attention whose scores q.k have `bias` added.

    Args:
        q: [H, S, D]; k: [KH, S, D]; v: [KH, S, Dv].
        bias: broadcasts to [1, H, S, S].
    Raises:
        CompileError: the bias depends on more than masks, positions and one value of each key.
    """
    split = _Split()
    body = make("add", argument("score"), b.cast(split.at(bias, bias_places(bias)), DType.F32))
    if split.part is None:
        raise CompileError("no part of the bias is a value of each key alone")
    body = relative(body) if argument("last") in topological([body]) else body
    heads = q.shape[0]
    assert isinstance(heads, int)
    _check_masked_only(body, heads)
    values = _by_head(split.part, split.index, heads)
    shared = k.shape[0]
    assert isinstance(shared, int)
    group = heads // shared
    if any(values[h] is not values[h - h % group] for h in range(heads)):
        k, v = (_repeated(x, group) for x in (k, v))
        group = 1
    tokens = q.shape[1]
    column = make("concat", *values[::group], axis=0) if len(values[::group]) > 1 else values[0]
    one = b.broadcast(b.const(1.0 / scale, q.tensor.dtype), (heads, tokens, 1))
    q, k = make("concat", q, one, axis=2), make("concat", k, b.cast(column, k.tensor.dtype), axis=2)
    return q, k, v, replaced(body, {make("arg", name=KEY_BIAS, dtype=DType.F32): b.const(0.0, DType.F32)})


def _check_masked_only(body: Node, heads: int) -> None:
    """Whether the value adds to every score that the mask leaves, and to nothing else."""
    generator = np.random.default_rng(0)
    shape = (heads, 24, 24)
    score, value = 4.0 * generator.standard_normal((2, *shape))
    places = {"head": np.arange(heads)[:, None, None], "qpos": np.arange(24)[:, None], "kpos": np.arange(24)[None, :]}
    apart = np.broadcast_to(evaluate_body(body, Env(), {"score": score, KEY_BIAS: value, **places}), shape)
    joined = np.broadcast_to(
        evaluate_body(body, Env(), {"score": score + value, KEY_BIAS: 0.0 * value, **places}), shape
    )
    seen = (apart > HIDDEN) | (joined > HIDDEN)
    if not np.allclose(apart[seen], joined[seen], rtol=1e-5, atol=1e-4):
        raise CompileError("a bias that depends on the tokens is more than masked")


def _by_head(part: Node, index: tuple[Node, ...], heads: int) -> list[Node]:
    """[1, S, 1] for each query head, the same node for the same values."""
    token = [axis for axis, place in enumerate(index) if place is argument("kpos")]
    if len(token) != 1:
        raise CompileError("a bias that depends on the tokens does not count the keys along one axis")
    tables = [
        np.broadcast_to(evaluate_body(place, Env(), {"head": np.arange(heads), "kpos": np.asarray(0)}), (heads,))
        for place in index
    ]
    found = []
    for h in range(heads):
        value = part
        for axis in range(len(index)):
            if axis != token[0]:
                value = b.slice_axis(value, axis, int(tables[axis][h]), int(tables[axis][h]) + 1)
        found.append(b.reshape(value, (1, part.shape[token[0]], 1)))
    return found


def _repeated(x: Node, times: int) -> Node:
    heads, *rest = x.shape
    wide = b.broadcast(b.reshape(x, (heads, 1, *rest)), (heads, times, *rest))
    return b.reshape(wide, (heads * times, *rest))
