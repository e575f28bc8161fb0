"""Does attention's inlined body hide the future? A step sees the keys up to its query only, so it must.

The body is a scalar function of score, head, qpos and kpos. It is evaluated for every pair of places of a short
sequence, and for random pairs up to the longest one; weights that it reads take random values, so that a mask which
hides the future only by the values of a stored table does not pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, make
from echoc.compiler.ir.node import rebuild, topological
from echoc.compiler.ir.ops import OPS, POINTWISE, Env
from echoc.compiler.ir.ops.stateful import evaluate_body
from echoc.errors import IRError

Array = NDArray[Any]
GRID = 64  # places of which every pair is tried
SAMPLES = 4096  # random pairs beyond the grid
SAMPLED_HEADS = 16
HIDDEN = -9000.0  # exp of this is 0 in float32; masks in use add -1e4 or less


def hides_future(body: Node, heads: int, length: int) -> str:
    """Why the body does not provably hide keys after the query; empty when it does.

    Args:
        body: a scalar over the arguments score (f32), head, qpos and kpos (i64).
        heads: query heads.
        length: the longest sequence.
    """
    generator = np.random.default_rng(0)
    qpos, kpos = _pairs(length, generator)
    if not qpos.size:
        return ""
    head = np.unique(np.linspace(0, heads - 1, SAMPLED_HEADS).astype(np.int64))[:, None]
    for draw in range(2):
        env = Env({}, {}, _random_weights(body, draw))
        shape = (head.shape[0], qpos.size)
        scores = 10.0 * draw * generator.standard_normal(shape)
        try:
            hidden = evaluate_body(body, env, {"score": scores, "head": head, "qpos": qpos, "kpos": kpos})
            seen = evaluate_body(body, env, {"score": scores, "head": head, "qpos": qpos, "kpos": qpos})
        except IRError as error:
            return f"its mask cannot be evaluated ({error})"
        hidden, seen = np.broadcast_to(hidden, shape), np.broadcast_to(seen, shape)
        with np.errstate(invalid="ignore"):
            hides = (hidden == -np.inf) | ((hidden - seen <= HIDDEN) & np.isfinite(seen))
        if not hides.all():
            row, column = (int(i) for i in np.argwhere(~hides)[0])
            return (
                f"a query at place {int(qpos[column])} sees the key at place {int(kpos[column])} "
                f"(score {hidden[row, column]:.3g}, its own {seen[row, column]:.3g})"
            )
    return ""


def _pairs(length: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Pairs with qpos < kpos < length."""
    short = min(length, GRID)
    qpos, kpos = (p.astype(np.int64) for p in np.triu_indices(short, 1))
    if length > short:
        pair = np.sort(generator.integers(0, length, (2, SAMPLES)), axis=0)
        pair = pair[:, pair[0] < pair[1]]
        qpos, kpos = np.concatenate([qpos, pair[0]]), np.concatenate([kpos, pair[1]])
    return qpos, kpos


def _random_weights(body: Node, seed: int) -> Any:
    generator = np.random.default_rng(seed)
    values = {}
    for node in topological([body]):
        if node.op == "weight":
            kind = DType(node.tensor.dtype)
            shape = tuple(d for d in node.shape if isinstance(d, int))
            drawn = generator.standard_normal(shape)
            values[node["name"]] = (drawn > 0 if kind is DType.BOOL else drawn).astype(kind.numpy)
    return values.__getitem__


def within_the_past(body: Node) -> Node:
    """The body for keys at or before the query alone: tests of this fall away, and the constants that they leave."""
    qpos, kpos = (make("arg", name=name, dtype=DType.I64) for name in ("qpos", "kpos"))
    done: dict[Node, Node] = {
        make("le", kpos, qpos): b.const(True, DType.BOOL),
        make("lt", qpos, kpos): b.const(False, DType.BOOL),
    }
    for node in topological([body]):
        if node not in done:
            done[node] = _folded(rebuild(node, tuple(done[i] for i in node.inputs)))
    return done[body]


def _folded(node: Node) -> Node:
    if node.inputs and node.op in POINTWISE and all(i.op == "const" for i in node.inputs):
        values = [np.asarray(i["value"], i.tensor.dtype.numpy) for i in node.inputs]
        return b.const(OPS[node.op].meaning(node, tuple(values), Env()).item(), node.tensor.dtype)
    constants = [i["value"] if i.op == "const" else None for i in node.inputs]
    if node.op == "where" and constants[0] is not None:
        return node.inputs[1] if constants[0] else node.inputs[2]
    if node.op in ("and", "or") and node.tensor.dtype is DType.BOOL:
        for value, other in zip(constants, reversed(node.inputs), strict=True):
            if value is not None:
                return other if value == (node.op == "and") else b.const(value, DType.BOOL)
    if node.op in ("add", "sub") and constants[1] == 0:
        return node.inputs[0]
    if node.op == "add" and constants[0] == 0:
        return node.inputs[1]
    return node
