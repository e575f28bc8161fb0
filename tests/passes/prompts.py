"""Small prompt programs by hand: tokens pick rows of tables, and what a rule gives as a prompt and in steps."""

from __future__ import annotations

import numpy as np

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Membrane, Node, Port, Program, Rule, TensorType, make
from echoc.compiler.ir.interpret import run_rule
from echoc.compiler.ir.types import Dim, symbol

S = symbol("S")
LENGTH, HEADS, SIZE = 11, 4, 6
LOWEST = float(np.finfo(np.float32).min)


def embedded(name: str, width: int) -> Node:
    """[S, width]: a row of a table for each token."""
    tokens = b.cast(b.port("tokens", TensorType((S,), DType.I32)), DType.I64)
    return make("take", b.weight(name, (32, width), DType.F32), tokens, axis=0)


def heads(name: str, count: int, size: int = SIZE) -> Node:
    """[count, S, size]."""
    return b.transpose(b.reshape(embedded(name, count * size), (S, count, size)), [1, 0, 2])


def future() -> Node:
    """bool [S, S]: whether the key lies after the query."""
    row, column = b.reshape(make("iota", size=S), (S, 1)), b.reshape(make("iota", size=S), (1, S))
    return make("lt", row, column)


def masked(scores: Node, value: float = LOWEST) -> Node:
    return make("where", future(), b.const(value, DType.F32), scores)


def program(out: Node) -> Program:
    """The prompt rule whose output is `out` as [S, features]."""
    width: Dim = 1
    for dim in out.shape[1:]:
        width = width * dim
    logits = b.reshape(out, (S, width))
    ports = (
        Port("tokens", "in", TensorType((S,), DType.I32)),
        Port("positions", "in", TensorType((S,), DType.I32)),
        Port("logits", "out", logits.tensor),
    )
    return Program(Membrane("model", (), ports, (Rule("prompt", (("logits", logits),)),)), {"S": (1, 64)})


def weight(name: str) -> np.ndarray:
    shape = SHAPES[name]
    return np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)


SHAPES = {name: (32, count * SIZE) for name, count in {"q": 4, "kk": 4, "vvv": 4, "k2222": 2, "v22222": 2}.items()}
TOKENS = np.random.default_rng(1).integers(0, 32, LENGTH).astype(np.int32)
PLACES = np.arange(LENGTH, dtype=np.int32)


def prompt(given: Program) -> np.ndarray:
    skin = given.skin
    outputs, _ = run_rule(skin, skin.rules[0], {"tokens": TOKENS, "positions": PLACES}, weight)
    return np.asarray(outputs["logits"])


def stepped(given: Program) -> np.ndarray:
    """The step program over the same tokens in chunks."""
    skin = given.skin
    states = {s.name: np.full((4, 4, *s.type.shape), np.nan, np.float32) for s in skin.states}
    rows = []
    for begin, end in ((0, 5), (5, 6), (6, LENGTH)):
        place = PLACES[: end - begin]
        ports = {"tokens": TOKENS[begin:end], "positions": PLACES[begin:end], "sequences": 0 * place, "rows": place}
        ports["block_table"] = np.array([[2, 0, 3]], np.int32)
        outputs, states = run_rule(skin, skin.rule("step"), ports, weight, states)
        rows.append(outputs["logits"])
    return np.concatenate(rows)
