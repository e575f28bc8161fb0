"""The reference device: the op table's numpy meanings, evaluated node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from echoc.errors import IRError

from .membrane import Membrane, Rule
from .node import Node, is_state
from .ops import OPS, Env
from .types import DType, dim_value


def bind_symbols(
    membrane: Membrane, ports: Mapping[str, Any], given: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The values of the symbols, read off the arrays at the in ports; raises IRError where two disagree."""
    out: dict[str, int] = dict(given or {})
    for port in membrane.ports:
        if port.direction != "in" or port.name not in ports:
            continue
        array = np.asarray(ports[port.name])
        if array.ndim != port.type.rank:
            raise IRError(f"port {port.name} is {port.type}; found an array of shape {array.shape}")
        for dim, found in zip(port.type.shape, array.shape, strict=True):
            if not isinstance(dim, int) and len(dim.terms) == 1 and dim.terms[0][1] == 1 and len(dim.symbols) == 1:
                name = next(iter(dim.symbols))
                if out.setdefault(name, found) != found:
                    raise IRError(f"port {port.name}: {name} is {found} here and {out[name]} elsewhere")
            elif dim_value(dim, out) != found:
                raise IRError(f"port {port.name} is {port.type}; found an array of shape {array.shape}")
    return out


def _bodies(order: list[Node]) -> set[Node]:
    """Nodes inside inlined bodies: they are evaluated by the op that owns the body."""
    inside: set[Node] = set()
    for node in order:
        if node.op == "arg" or (node.op not in ("attention", "attend") and any(i in inside for i in node.inputs)):
            inside.add(node)
    return inside


def run_rule(
    membrane: Membrane,
    rule: Rule,
    ports: Mapping[str, Any],
    weights: Callable[[str], Any] | None = None,
    states: Mapping[str, Any] | None = None,
    symbols: Mapping[str, int] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate one rule. Returns the out ports and the next states, all numpy arrays."""
    arrays = {}
    for port in membrane.ports:
        if port.direction == "in" and port.name in ports:
            arrays[port.name] = np.asarray(ports[port.name]).astype(port.type.dtype.numpy, copy=False)
    env = Env(bind_symbols(membrane, arrays, symbols), arrays, weights, dict(states or {}))
    order = rule.order
    inside = _bodies(order)
    values: dict[Node, Any] = {}
    for node in order:
        if node in inside:
            values[node] = None
            continue
        value = OPS[node.op].meaning(node, tuple(values[i] for i in node.inputs), env)
        if not is_state(node):
            tensor = node.tensor
            value = np.asarray(value)
            if value.shape != env.shape(tensor.shape) or value.dtype != DType(tensor.dtype).numpy:
                raise IRError(f"the meaning of {node.op} gave {value.dtype}{list(value.shape)}; wanted {tensor}")
        values[node] = value
    return {k: values[n] for k, n in rule.outputs}, {k: values[n] for k, n in rule.next_states}
