"""Rules that are reservoirs: how they are written in the IR, and how the CPU target finds in one what its kernel runs.

A layer with the value state x is

    x' = (1 - leak) * x + leak * tanh(bias + sum of contract("nk,k->n", weight, operand))

with operands read(x), slices of in ports, the x' of other layers, and read(y), where y is the state that holds the
output. A readout is contract("ok,k->o", weight, features).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoc.compiler.ir import Membrane, Node, Rule, make
from echoc.compiler.ir.node import rebuild
from echoc.compiler.ir.types import Dim
from echoc.compiler.targets.cpu.reservoir import SQUARES, LayerPlan, NetworkPlan
from echoc.errors import CompileError

Array = NDArray[np.float64]
Values = Callable[[str], NDArray[Any]]


def constant(value: float, like: Node) -> Node:
    """A number in a node's dtype."""
    return make("const", value=float(value), dtype=like.tensor.dtype)


def leaky_update(x: Node, leak: float, bias: Node, terms: Sequence[tuple[Node, Node]]) -> Node:
    """The next value of a layer: `terms` are (weight [units, k], operand [k])."""
    drive = bias
    for weight, operand in terms:
        drive = make("add", drive, make("contract", weight, operand, spec="nk,k->n"))
    new = make("tanh", drive)
    if leak == 1.0:
        return new
    return make("add", make("mul", x, constant(1.0 - leak, x)), make("mul", new, constant(leak, x)))


def slice_of(vector: Node, begin: int, count: int) -> Node:
    """`count` elements of a vector."""
    if (begin, count) == (0, vector.shape[0]):
        return vector
    return make("slice", vector, starts=(begin,), stops=(begin + count,), steps=(1,))


def readout_features(inputs: Node | None, states: Node, squares: str, odd: Node | None) -> Node:
    """[1, inputs, states] with the squares asked for; `odd` [units] is 1 at every second unit (for `half`)."""
    one = make("broadcast", constant(1.0, states), shape=(1,))
    if squares == "half":
        assert odd is not None
        squared = make("mul", make("mul", states, states), odd)
        states = make("add", make("mul", states, make("sub", constant(1.0, states), odd)), squared)
    seen = [one, *([inputs] if inputs is not None else []), states]
    if squares == "all":
        seen.append(make("mul", states, states))
    return make("concat", *seen, axis=0)


def network_of(skin: Membrane, rule: Rule, values: Values) -> NetworkPlan:
    """The network that the rule of a single membrane runs.

    Raises: CompileError naming the state or port whose rule is of another form.
    """
    return _Reading(skin, rule, values).network()


@dataclass
class _Part:
    """A layer as it is read: its state, its new value, and its terms (weight or None for the own state, operand)."""

    name: str
    value: Node
    leak: float
    bias: Node
    terms: list[tuple[Node, Node]]


class _Reading:
    def __init__(self, skin: Membrane, rule: Rule, values: Values) -> None:
        spliced: dict[Node, Node] = {}
        for node in rule.order:
            spliced[node] = _splice(rebuild(node, tuple(spliced[i] for i in node.inputs)))
        rule = rule.map(lambda n: spliced[n])
        self.skin, self.rule, self.values = skin, rule, values
        self.inputs = [p for p in skin.ports if p.direction == "in"]
        self.outputs = dict(rule.outputs)
        if len(self.inputs) > 1 or any(p.type.rank != 1 for p in skin.ports):
            raise self._refuse(f"has the ports {', '.join(p.name for p in skin.ports)}; wanted one vector in")
        if len(rule.outputs) != 1:
            raise self._refuse(f"gives {len(rule.outputs)} out ports; wanted one")
        writes = dict(rule.next_states)
        self.feedback_state = ""
        (self.out_name, self.out) = rule.outputs[0]
        parts = []
        for state in skin.states:
            written = writes.get(state.name)
            if state.type.kind != "value" or written is None or written.op != "write":
                raise self._refuse(f"does not write the value state {state.name!r}")
            if written.inputs[1] is self.out and self.out.op == "contract":
                self.feedback_state = state.name
            else:
                parts.append(self._part(state.name, written.inputs[1]))
        self.parts = self._ordered(parts)

    def network(self) -> NetworkPlan:
        begins, at = {}, 0
        for part in self.parts:
            begins[part.value] = (at, _size(part.value.shape[0]))
            at += begins[part.value][1]
        width = sum(_size(p.type.shape[0]) for p in self.inputs)
        readout, squares, reads = self._readout()
        feedback = len(readout) if self.feedback_state and readout is not None else 0
        layers = tuple(self._layer(part, begins, feedback) for part in self.parts)
        return NetworkPlan(layers, width, feedback, readout, squares, reads)

    def _refuse(self, what: str) -> CompileError:
        return CompileError(
            f"rule @{self.rule.name} of membrane {self.skin.name} {what}; as a reservoir, a rule writes value states "
            "x' = (1 - leak) x + leak tanh(bias + weights contracted with x, an in port, other layers, the last output)"
        )

    def _part(self, name: str, new: Node) -> _Part:
        leak, inner = 1.0, new
        if new.op == "add" and all(i.op == "mul" for i in new.inputs):
            kept, moved = new.inputs
            if not (moved.inputs[0].op == "tanh" and moved.inputs[1].op == kept.inputs[1].op == "const"):
                raise self._refuse(f"changes the state {name!r} in another way")
            leak, inner = float(moved.inputs[1]["value"]), moved.inputs[0]
        if inner.op != "tanh":
            raise self._refuse(f"changes the state {name!r} by {inner.op}, not tanh")
        terms, drive = [], inner.inputs[0]
        while drive.op == "add" and drive.inputs[1].op == "contract":
            product = drive.inputs[1]
            if product.inputs[0].op != "weight":
                raise self._refuse(f"contracts what is no weight for the state {name!r}")
            terms.append((product.inputs[0], product.inputs[1]))
            drive = drive.inputs[0]
        part = _Part(name, new, leak, drive, terms[::-1])
        x = make("read", make("state", name=name, kind="value", shape=new.shape, dtype=new.tensor.dtype))
        if drive.op != "weight" or new is not leaky_update(x, leak, drive, part.terms):
            raise self._refuse(f"changes the state {name!r} in another way")
        return part

    def _ordered(self, parts: list[_Part]) -> list[_Part]:
        """Layers behind those that drive them; the graph has no cycles, so there is such an order."""
        values = {p.value: p for p in parts}
        if len(values) < len(parts):
            raise self._refuse("gives two states the same value")
        return [values[n] for n in self.rule.order if n in values]

    def _layer(self, part: _Part, begins: dict[Node, tuple[int, int]], feedback: int) -> LayerPlan:
        units = _size(part.value.shape[0])
        recurrent, late = np.zeros((units, units)), np.zeros((units, feedback))
        columns: list[Array] = [self._value(part.bias)[:, None]]
        sources: list[tuple[bool, int, int]] = []
        for weight, operand in part.terms:
            matrix = self._value(weight)
            state = operand.inputs[0]["name"] if operand.op == "read" else None
            if state == part.name:
                recurrent += matrix
            elif state is not None and state == self.feedback_state:
                late += matrix
            elif operand in begins:
                columns.append(matrix)
                sources.append((True, *begins[operand]))
            else:
                columns.append(matrix)
                sources.append((False, *self._channels(operand, part.name)))
        return LayerPlan(np.hstack([recurrent, *columns, late]), part.leak, tuple(sources))

    def _channels(self, operand: Node, name: str) -> tuple[int, int]:
        port, begin = operand, 0
        if operand.op == "slice" and operand["steps"] == (1,):
            port, begin = operand.inputs[0], int(operand["starts"][0])
        if port.op != "port":
            raise self._refuse(f"drives the state {name!r} by {operand.op}")
        return begin, _size(operand.shape[0])

    def _readout(self) -> tuple[Array | None, str, bool]:
        layers = [p.value for p in self.parts]
        states = layers[0] if len(layers) == 1 else make("concat", *layers, axis=0) if layers else None
        if states is None:
            raise self._refuse("has no layer")
        if self.out is states:
            return None, "none", True
        weight = self.out.inputs[0] if self.out.op == "contract" and self.out["spec"] == "ok,k->o" else None
        ports = [make("port", name=p.name, shape=p.type.shape, dtype=p.type.dtype) for p in self.inputs]
        odd = [n for n in self.rule.order if n.op == "weight" and n.shape == states.shape]
        for squares in SQUARES:
            for inputs in (*ports, None):
                for mask in odd if squares == "half" else [None]:
                    features = _splice(readout_features(inputs, states, squares, mask))
                    if weight is None or self.out.inputs[1] is not features:
                        continue
                    if mask is not None and not _is_odd(self._value(mask)):
                        continue
                    return self._value(weight), squares, inputs is not None or not ports
        raise self._refuse(
            f"gives the out port {self.out_name!r} neither the states of its layers nor a readout of them"
        )

    def _value(self, weight: Node) -> Array:
        value = np.asarray(self.values(weight["name"]))
        if value.shape != weight.shape or value.dtype.kind not in "fiu" or not np.isfinite(value).all():
            raise CompileError(
                f"the weight {weight['name']!r} is {value.dtype} of shape {list(value.shape)}; wanted finite numbers, "
                f"{weight.type}"
            )
        return value.astype(np.float64)


def _splice(node: Node) -> Node:
    """A concatenation of concatenations as one."""
    if node.op != "concat" or not any(i.op == "concat" and i["axis"] == node["axis"] for i in node.inputs):
        return node
    parts = [i.inputs if i.op == "concat" and i["axis"] == node["axis"] else (i,) for i in node.inputs]
    return make("concat", *(p for part in parts for p in part), axis=node["axis"])


def _is_odd(mask: Array) -> bool:
    """Whether a mask is 1 at every second place."""
    return bool((mask == np.arange(len(mask)) % 2).all())


def _size(dim: Dim) -> int:
    """A dimension that is a number; a reservoir has no symbols but its time axis."""
    if not isinstance(dim, int):
        raise CompileError(f"a layer has the size {dim}; wanted a number")
    return dim
