"""What depends on weights and constants alone is computed once, while compiling: it becomes a weight of its own.

The computations stand in the rule `weights` of the same membrane, which the compiler evaluates with the reference
device when it packs; its outputs are named after the new weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from echoc.compiler.importers import build as b
from echoc.compiler.ir import Membrane, Node, Program, Rule
from echoc.compiler.ir.membrane import substitute
from echoc.compiler.ir.node import users
from echoc.compiler.ir.ops import LEAVES
from echoc.compiler.ir.types import StateType

RULE = "weights"


@dataclass(frozen=True)
class Fold:
    """Requires: verified rules. Ensures: no node of a rule but leaves and their reshapes depends on constants alone."""

    name: str = "fold_constants"

    def run(self, program: Program) -> Program:
        return program.map_membranes(_fold)


def _constant(rule: Rule) -> set[Node]:
    """Nodes whose value is the same in every step."""
    out: set[Node] = set()
    for node in rule.order:
        if isinstance(node.type, StateType) or node.op in ("port", "arg") or node.type.symbols:
            continue
        if all(i in out for i in node.inputs):
            out.add(node)
    return out


def _fold(membrane: Membrane) -> Membrane:
    folded: dict[Node, Node] = {}
    outputs: list[tuple[str, Node]] = []
    rules = []
    for rule in membrane.rules:
        constant = _constant(rule)
        uses = users(rule.order)
        mapping: dict[Node, Node] = {}
        for node in rule.order:
            last = node in rule.roots or any(u not in constant for u in uses[node])
            cheap = node.op in LEAVES or (node.op == "reshape" and node.inputs[0].op in LEAVES)
            if node not in constant or not last or cheap or (node.tensor.rank == 0 and not _reads_weight(node)):
                continue
            if node.op == "broadcast" and node.inputs[0].op in LEAVES:
                continue
            if node not in folded:
                name = f"const.{len(folded)}"
                folded[node] = b.weight(name, node.shape, node.tensor.dtype)
                outputs.append((name, node))
            mapping[node] = folded[node]
        rules.append(substitute(rule, mapping) if mapping else rule)
    extra = (Rule(RULE, tuple(outputs)),) if outputs else ()
    return replace(membrane, rules=(*rules, *extra))


def _reads_weight(node: Node) -> bool:
    return node.op == "weight" or any(_reads_weight(i) for i in node.inputs)
