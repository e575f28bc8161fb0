"""Compute only the rows that are asked for: the choice of rows moves up through everything that is per-token."""

from __future__ import annotations

from dataclasses import dataclass

from echoc.compiler.ir import Node, Poly, Program, Rule, make
from echoc.compiler.ir.node import users
from echoc.compiler.ir.ops import POINTWISE


@dataclass(frozen=True)
class SelectRows:
    """take(f(x), rows) = f(take(x, rows)) for f that works on each row alone, while nothing else needs f(x)."""

    name: str = "select_rows"

    def run(self, program: Program) -> Program:
        return program.map_rules(_push)


def _push(rule: Rule) -> Rule:
    roots = {n for _, n in rule.outputs}
    selections = [n for n in roots if n.op == "take" and n["axis"] == 0 and isinstance(n.shape[0], Poly)]
    mapping: dict[Node, Node] = {}
    for selection in selections:
        mapping[selection] = _Pusher(rule, selection).result
    return rule.map(lambda n: mapping.get(n, n))


class _Pusher:
    def __init__(self, rule: Rule, selection: Node) -> None:
        source, self.rows = selection.inputs
        order = rule.order
        self.uses = users(order)
        self.leading = source.shape[0]
        self.moved: set[Node] = {selection}
        for node in reversed(order):
            if node is source or any(u in self.moved for u in self.uses[node]):
                only = all(u in self.moved for u in self.uses[node]) and node not in dict(rule.next_states).values()
                if only and self.row_local(node):
                    self.moved.add(node)
        self.done: dict[Node, Node] = {}
        self.result = self.take(source)

    def row_local(self, node: Node) -> bool:
        """Whether row r of the node depends on row r of its row-carrying inputs alone."""
        if not node.inputs or node.op in ("port", "attend", "append") or node.tensor.rank == 0:
            return False
        if node.shape[0] != self.leading:
            return False
        if node.op in POINTWISE:
            return True
        if node.op == "reshape":
            return node.inputs[0].tensor.rank > 0 and node.inputs[0].shape[0] == self.leading
        if node.op in ("sum", "max", "min"):
            return 0 not in node["axes"]
        if node.op == "contract":
            left, _, out = node["spec"].partition("->")
            a, _, c = left.partition(",")
            return bool(a) and a[0] == out[0] and out[0] not in c
        if node.op == "take" and self.carries(node.inputs[1]):
            return bool(node["axis"] == 0)
        return False

    def carries(self, node: Node) -> bool:
        return node.tensor.rank > 0 and node.shape[0] == self.leading

    def take(self, node: Node) -> Node:
        if node in self.done:
            return self.done[node]
        if node not in self.moved:
            out = make("take", node, self.rows, axis=0)
        else:
            inputs = []
            for i, operand in enumerate(node.inputs):
                row_operand = self.carries(operand) and operand.tensor.rank == self.rank_needed(node, operand, i)
                inputs.append(self.take(operand) if row_operand else operand)
            attrs = dict(node.attrs)
            if node.op == "reshape":
                attrs["shape"] = (self.rows.shape[0], *node.shape[1:])
            out = make(node.op, *inputs, **attrs)
        self.done[node] = out
        return out

    def rank_needed(self, node: Node, operand: Node, place: int) -> int:
        """Operands of a pointwise op carry the rows only at full rank; other ops name their row operand."""
        if node.op in POINTWISE:
            return node.tensor.rank
        if node.op == "take":
            return operand.tensor.rank if place == 1 else -1
        if node.op == "contract":
            return operand.tensor.rank if place == 0 else -1
        return operand.tensor.rank
