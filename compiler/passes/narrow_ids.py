"""Expert choices as 32-bit ints, the form in which kernels read them."""

from __future__ import annotations

from dataclasses import dataclass, field

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, Program, make
from echoc.compiler.ir.rewrite import Rewrite, Rules, rewrite_rule


def _narrow(node: Node) -> Node | None:
    """take(w, i) = take(w, cast(i, i32)) for tables of matrices, whose first axis is far below 2**31"""
    table, index = node.inputs
    if table.tensor.rank != 3 or node["axis"] != 0 or index.tensor.dtype is not DType.I64:
        return None
    return make("take", table, b.cast(index, DType.I32), axis=0)


def _example() -> Node:
    table = make("port", name="x", shape=(4, 3, 2), dtype="f32")
    return make("take", table, make("port", name="i", shape=(5,), dtype="i64"), axis=0)


NARROW = Rewrite("narrow_ids", frozenset({"take"}), _narrow, _example, _narrow.__doc__ or "")


@dataclass(frozen=True)
class NarrowIds:
    """Requires simplified takes. Ensures: ids of expert weights are i32."""

    name: str = "narrow_ids"
    rules: Rules = field(default_factory=lambda: Rules((NARROW,)), compare=False)

    def run(self, program: Program) -> Program:
        return program.map_rules(lambda rule: rewrite_rule(rule, self.rules))
