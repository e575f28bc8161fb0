"""The op table: one row per op with its arity, type rule, numpy meaning, tolerance and one line of documentation."""

from . import memory, pointwise, reductions, rewriting, stateful, views
from .row import Env, Op

OPS: dict[str, Op] = {
    row.name: row for module in (pointwise, views, reductions, memory, stateful, rewriting) for row in module.ROWS
}

POINTWISE = frozenset(row.name for row in pointwise.ROWS)
VIEWS = frozenset({"reshape", "transpose", "broadcast", "slice", "pad", "concat"})
REDUCTIONS = frozenset({"sum", "max", "min", "argmax", "cumsum", "topk", "sort"})
LEAVES = frozenset({"const", "iota", "weight", "port", "state", "arg"})
STATEFUL = frozenset({"append", "attend", "read", "write"})

REWRITING = frozenset(row.name for row in rewriting.ROWS)

__all__ = ["LEAVES", "OPS", "POINTWISE", "REDUCTIONS", "REWRITING", "STATEFUL", "VIEWS", "Env", "Op"]
