"""What a rule shares with the world, for every device: ports and states as outputs with nodes of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from echoc.compiler.ir import Membrane, Node, Rule, StateType, make
from echoc.compiler.ir.node import rebuild
from echoc.compiler.ir.types import Dim, Poly, symbol
from echoc.compiler.passes.fold import RULE as WEIGHTS_RULE
from echoc.compiler.passes.fuse import LEAF_OPS, root
from echoc.errors import CompileError

PAGE_SIZE = 16
SCALE_BYTES = 4
_NAMED_BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2}


def only_rule(skin: Membrane) -> Rule:
    """The one rule of a program that steps, its ports checked. Raises CompileError."""
    rules = [r for r in skin.rules if r.name != WEIGHTS_RULE]
    if len(rules) != 1 or skin.children:
        raise CompileError(
            f"membrane {skin.name} has {len(rules)} rules and {len(skin.children)} children; one rule is compiled"
        )
    check_ports(skin, rules[0])
    return rules[0]


def check_ports(skin: Membrane, rule: Rule) -> None:
    """Raises CompileError for a port that gets no value, or whose dimensions are not numbers and single symbols."""
    for port in skin.ports:
        for dim in port.type.shape:
            if isinstance(dim, Poly) and dim != symbol(str(dim)):
                raise CompileError(
                    f"port {port.name} of membrane {skin.name} is {port.type}; wanted numbers and symbols as its "
                    f"dimensions: reshape or cut {dim} inside the rule"
                )
    for port in skin.ports:
        if port.direction == "out" and port.name not in dict(rule.outputs):
            raise CompileError(f"rule @{rule.name} of membrane {skin.name} gives nothing to the out port {port.name!r}")


class StateName(str):
    """The name of an output that is the next value of a state."""


def state_outputs(rule: Rule) -> Rule:
    """The rule with writes of value states as outputs, made when everything that reads the old value is done."""
    settled: dict[Node, Node] = {}
    for node in rule.order:
        inputs = tuple(settled[i] for i in node.inputs)
        read_back = node.op == "read" and inputs[0].op == "write"
        settled[node] = inputs[0].inputs[1] if read_back else rebuild(node, inputs)
    rule = rule.map(lambda n: settled[n])
    outputs = list(rule.outputs)
    for name, node in rule.next_states:
        if node.op == "write":
            # computed apart, then copied: the states of a rule change together
            outputs.append((StateName(name), _copy(_copy(node.inputs[1]))))
    paged = tuple((name, node) for name, node in rule.next_states if node.op not in ("write", "state"))
    return replace(rule, outputs=tuple(outputs), next_states=paged)


def own_outputs(rule: Rule) -> Rule:
    """The rule with a node of its own for every output, so that each can be written in place."""
    used: set[Node] = set()
    outputs = []
    for name, node in rule.outputs:
        source = root(node)
        half = node.tensor.dtype in ("f16", "bf16")  # in memory a port has 16 bits, a value between kernels 32
        if source.op in LEAF_OPS or source in used or half:
            node = _copy(node)
            while root(node) in used:
                node = _copy(node)
        used.add(root(node))
        outputs.append((name, node))
    return replace(rule, outputs=tuple(outputs))


def _copy(node: Node) -> Node:
    if not node.tensor.rank:
        return make("reshape", _copy(make("reshape", node, shape=(1,))), shape=())
    zeros = tuple(0 for _ in node.shape)
    return make("slice", node, starts=zeros, stops=node.shape, steps=tuple(1 for _ in node.shape))


def states_of(skin: Membrane) -> list[dict[str, Any]]:
    """The manifest's entries for the membrane's states."""
    out = []
    for state in skin.states:
        type_: StateType = state.type
        paged = type_.kind == "pages"
        nbytes = math.prod(type_.shape) * _NAMED_BYTES.get(str(type_.dtype), 1) * (PAGE_SIZE if paged else 1)
        entry = {
            "name": state.name, "kind": type_.kind, "page_size": PAGE_SIZE if paged else 0,
            "bytes_per_page": nbytes, "dtype": str(type_.dtype), "shape": list(type_.shape),
        }  # fmt: skip
        if type_.scaled:  # a page holds the codes of its 16 entries' first head, their scales, those of the next head
            scales = math.prod(type_.shape[:-1]) * SCALE_BYTES * PAGE_SIZE
            entry |= {"scale_dtype": "f32", "bytes_per_page": nbytes + scales}
        out.append(entry)
    return out


def shape_json(shape: Sequence[Dim]) -> list[int | str]:
    return [str(d) if isinstance(d, Poly) else d for d in shape]
