"""The verifier: what every program must satisfy, checked after every pass under tests and when a program is loaded."""

from __future__ import annotations

from echoc.errors import IRError

from .membrane import Membrane, Program, Rule
from .node import Node
from .ops import OPS
from .text import show_rule
from .types import StateType


def _reject(rule: Rule, node: Node, message: str) -> None:
    raise IRError(f"rule @{rule.name}: {message}\n{show_rule(rule, notes={node: message})}")


def _check_nodes(rule: Rule, membrane: Membrane, symbols: frozenset[str]) -> None:
    states = {s.name: s.type for s in membrane.states}
    ports = {p.name: p for p in membrane.ports if p.direction == "in"}
    consumed: dict[Node, Node] = {}
    for node in rule.order:
        if node.op not in OPS:
            _reject(rule, node, f"unknown op {node.op!r}")
        if OPS[node.op].infer(node.inputs, dict(node.attrs)) != node.type:
            _reject(rule, node, f"the type rule gives {OPS[node.op].infer(node.inputs, dict(node.attrs))}")
        if not isinstance(node.type, StateType) and (free := node.type.symbols - symbols):
            _reject(rule, node, f"the symbol {sorted(free)[0]} is not declared")
        if not isinstance(node.type, StateType) and any(isinstance(d, int) and d < 0 for d in node.type.shape):
            _reject(rule, node, f"an axis of {node.type} has a negative size")
        if node.op == "port" and (node["name"] not in ports or ports[node["name"]].type != node.type):
            _reject(rule, node, f"membrane {membrane.name} declares no in port {node['name']!r} of type {node.type}")
        if node.op == "state" and states.get(node["name"]) != node.type:
            _reject(rule, node, f"membrane {membrane.name} declares no state {node['name']!r} of type {node.type}")
        if node.op in ("append", "write", "apply"):
            before = node.inputs[0]
            if before in consumed:
                _reject(rule, node, "this version of the state has already been changed; states are linear")
            consumed[before] = node


def _check_names(membrane: Membrane) -> None:
    """Names are used once, and a rule gives every out port exactly one value."""
    for kind, names in (
        ("ports", [p.name for p in membrane.ports]),
        ("states", [s.name for s in membrane.states]),
        ("rules", [r.name for r in membrane.rules]),
    ):
        if twice := [n for i, n in enumerate(names) if n in names[:i]]:
            raise IRError(f"membrane {membrane.name} has two {kind} named {twice[0]!r}")
    for rule in membrane.rules:
        given = [name for name, _ in rule.outputs]
        if twice := [n for i, n in enumerate(given) if n in given[:i]]:
            raise IRError(f"rule @{rule.name} gives the out port {twice[0]!r} twice")


def verify(program: Program) -> Program:
    """Returns the program; raises IRError that prints the rule with the message under the offending line."""
    symbols = frozenset(program.symbols)
    for name, (low, high) in program.symbols.items():
        if not 0 <= low <= high:
            raise IRError(f"symbol {name} has the empty range {low}..{high}")
    for membrane in program.skin.walk():
        _check_names(membrane)
        for rule in membrane.rules:
            _check_nodes(rule, membrane, symbols)
            outs = {p.name: p.type for p in membrane.ports if p.direction == "out"}
            for name, node in rule.outputs:
                if rule.name != "weights" and outs.get(name) != node.type:
                    _reject(rule, node, f"the out port {name!r} is {outs.get(name, 'not declared')}; found {node.type}")
            for name, node in rule.next_states:
                if name not in {s.name for s in membrane.states} or not isinstance(node.type, StateType):
                    _reject(rule, node, f"membrane {membrane.name} has no state {name!r}")
    return program
