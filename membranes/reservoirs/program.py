"""Reservoirs as programs: layers in membranes, each inside the one that it drives, their readout in the skin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoc.compiler.ir import Membrane, Node, Port, Program, Rule, State, StateType, make
from echoc.compiler.ir.types import DType
from echoc.compiler.ir.verify import verify
from echoc.compiler.targets.cpu.reservoir_rule import leaky_update, readout_features, slice_of

from .errors import ReservoirError
from .layer import Layer
from .nesting import MAX_DEPTH, port

Array = NDArray[np.float64]


def reservoir_program(
    layers: Sequence[Layer],
    inputs: int,
    readout: Array | None,
    squares: str,
    reads_inputs: bool,
    dtype: str,
    membranes: Sequence[int] | None = None,
) -> tuple[Program, dict[str, NDArray[Any]]]:
    """The verified program of one instant, and the values of its weights.

    In port `u` [inputs], out port `y` (a readout) or `x` (all states). Layer i is the membrane `layer<i>` with the
    value state `x`; its children are the layers that drive it. With `membranes`, the numbers of layers that stand in
    one, several are the membrane `node<i>` with the states `x0`, `x1`, ...

    Raises: ReservoirError where the membranes are not a forest in post-order: a membrane has one parent.
    """
    return _Builder(layers, inputs, readout, squares, reads_inputs, dtype, membranes or [1] * len(layers)).program()


class _Group:
    """Layers that stand in one membrane, and the groups inside it."""

    def __init__(self, number: int, members: range, layers: Sequence[Layer], group_of: Sequence[int]) -> None:
        self.members = members
        outside = [c for i in members for c in layers[i].children if c not in members]
        self.children = list(dict.fromkeys(group_of[c] for c in outside))
        self.name = f"layer{members[0]}" if len(members) == 1 else f"node{number}"

    def state(self, layer: int) -> str:
        """The name of a layer's state, and of the port that gives it."""
        return "x" if len(self.members) == 1 else f"x{layer - self.members[0]}"

    @property
    def whole(self) -> str:
        """The port that gives the states of the group and all inside it."""
        return "all" if self.children or len(self.members) > 1 else "x"


class _Builder:
    def __init__(
        self, layers: Sequence[Layer], inputs: int, readout: Array | None, squares: str, reads_inputs: bool, dtype: str,
        membranes: Sequence[int],
    ) -> None:  # fmt: skip
        self.layers, self.inputs, self.readout, self.squares = list(layers), inputs, readout, squares
        self.reads_inputs, self.dtype = reads_inputs, dtype
        self.feedback = self.layers[0].feedback.shape[1]
        self.weights: dict[str, NDArray[Any]] = {}
        ends = np.cumsum(membranes).tolist()
        self.group_of = [g for g, count in enumerate(membranes) for _ in range(count)]
        self.groups = [
            _Group(g, range(end - count, end), layers, self.group_of)
            for g, (end, count) in enumerate(zip(ends, membranes, strict=True))
        ]
        self.sizes, self.hears, self.roots = _check_forest(self.layers, self.groups)

    def program(self) -> tuple[Program, dict[str, NDArray[Any]]]:
        membranes: list[Membrane] = []
        for group in self.groups:
            membranes.append(self._membrane(group, membranes))
        ports: list[Port] = []
        u = port(ports, "u", "in", self.inputs, self.dtype) if self.inputs else None
        outputs: list[tuple[str, Node]] = []
        feedback = self.feedback if self.readout is not None else 0
        y = self._state("y", feedback) if feedback else None
        children = [membranes[i] for i in self.roots]
        states = self._all(ports, outputs, self.roots, u, y)
        if self.feedback and y is None:  # without a readout the last outputs come from outside
            raise ReservoirError("a reservoir with feedback is a program only with its readout; call fit first")
        out, name = states, "x"
        if self.readout is not None:
            odd = (
                self._weight("readout.odd", np.arange(sum(x.units for x in self.layers)) % 2.0)
                if self.squares == "half"
                else None
            )
            features = readout_features(u if self.reads_inputs else None, states, self.squares, odd)
            out, name = make("contract", self._weight("readout", self.readout), features, spec="ok,k->o"), "y"
        outputs.append((name, port(ports, name, "out", out, self.dtype)))
        kept = [State("y", StateType("value", (feedback,), DType(self.dtype)))] if feedback else []
        writes = [("y", make("write", self._state("y", feedback), out))] if feedback else []
        rule = Rule("step", tuple(outputs), tuple(writes))
        skin = Membrane("reservoir", tuple(kept), tuple(ports), (rule,), tuple(children))
        return verify(Program(skin)), self.weights

    def _membrane(self, group: _Group, membranes: Sequence[Membrane]) -> Membrane:
        number = self.group_of[group.members[0]]
        ports: list[Port] = []
        outputs: list[tuple[str, Node]] = []
        u = port(ports, "u", "in", self.inputs, self.dtype) if self.hears[number] else None
        y = port(ports, "y", "in", self.feedback, self.dtype) if self.feedback else None
        below = self._all(ports, outputs, group.children, u, y) if group.children else None
        values: dict[int, Node] = {}
        for i in group.members:
            values[i] = self._layer(i, group, values, ports, u, y)
            outputs.append((group.state(i), port(ports, group.state(i), "out", values[i], self.dtype)))
        if group.whole == "all":
            everything = make("concat", *(self._pieces(below) if below is not None else ()), *values.values(), axis=0)
            outputs.append(("all", port(ports, "all", "out", everything, self.dtype)))
        states = tuple(
            State(group.state(i), StateType("value", (self.layers[i].units,), DType(self.dtype))) for i in group.members
        )
        writes = tuple(
            (group.state(i), make("write", self._state(group.state(i), self.layers[i].units), new))
            for i, new in values.items()
        )
        rule = Rule("step", tuple(outputs), writes)
        return Membrane(group.name, states, tuple(ports), (rule,), tuple(membranes[c] for c in group.children))

    def _layer(
        self, i: int, group: _Group, values: dict[int, Node], ports: list[Port], u: Node | None, y: Node | None
    ) -> Node:
        """The next value of a layer: `values` are those of the layers before it in its membrane."""
        layer, name = self.layers[i], f"layer{i}"
        x = make("read", self._state(group.state(i), layer.units))
        terms = [(self._weight(f"{name}.recurrent", layer.recurrent), x)]
        first, channels = layer.hears
        at = 1
        if channels and u is not None:
            part = self._weight(f"{name}.input", layer.input[:, at : at + channels])
            terms.append((part, slice_of(u, first, channels)))
            at += channels
        for c in layer.children:
            size = self.layers[c].units
            drive = values[c] if c in values else self._from_child(c, ports)
            terms.append((self._weight(f"{name}.from.layer{c}", layer.input[:, at : at + size]), drive))
            at += size
        if y is not None:
            terms.append((self._weight(f"{name}.feedback", layer.feedback), y))
        return leaky_update(x, layer.leak, self._weight(f"{name}.bias", layer.input[:, 0]), terms)

    def _from_child(self, layer: int, ports: list[Port]) -> Node:
        """The value of a layer in a membrane inside."""
        child = self.groups[self.group_of[layer]]
        name = f"{child.name}.{child.state(layer)}"
        drive = make("port", name=name, shape=(self.layers[layer].units,), dtype=self.dtype)
        if all(p.name != name for p in ports):
            ports.append(Port(name, "in", drive.tensor))
        return drive

    def _all(
        self, ports: list[Port], outputs: list[tuple[str, Node]], inside: Sequence[int], u: Node | None, y: Node | None
    ) -> Node:
        """Sends u and y into groups inside; returns all states of theirs."""
        parts = []
        for g in inside:
            name = self.groups[g].name
            if u is not None and self.hears[g]:
                outputs.append((f"{name}.u", port(ports, f"{name}.u", "out", u, self.dtype)))
            if y is not None:
                value = make("read", y) if isinstance(y.type, StateType) else y
                outputs.append((f"{name}.y", port(ports, f"{name}.y", "out", value, self.dtype)))
            parts.append(port(ports, f"{name}.{self.groups[g].whole}", "in", self.sizes[g], self.dtype))
        return parts[0] if len(parts) == 1 else make("concat", *parts, axis=0)

    @staticmethod
    def _pieces(node: Node) -> tuple[Node, ...]:
        return node.inputs if node.op == "concat" else (node,)

    def _state(self, name: str, size: int) -> Node:
        return make("state", name=name, kind="value", shape=(size,), dtype=self.dtype)

    def _weight(self, name: str, value: NDArray[Any]) -> Node:
        self.weights[name] = np.asarray(value, DType(self.dtype).numpy)
        return make("weight", name=name, shape=value.shape, dtype=self.dtype)


def _check_forest(layers: Sequence[Layer], groups: Sequence[_Group]) -> tuple[list[int], list[bool], list[int]]:
    """Units in each subtree, whether one there hears inputs, and the groups without a parent."""
    sizes, hears, depth, begins = list[int](), list[bool](), list[int](), list[int]()
    for g, group in enumerate(groups):
        sizes.append(sum(layers[i].units for i in group.members) + sum(sizes[c] for c in group.children))
        hears.append(any(layers[i].hears[1] > 0 for i in group.members) or any(hears[c] for c in group.children))
        depth.append(1 + max((depth[c] for c in group.children), default=0))
        at = g
        for c in reversed(group.children):
            if c != at - 1:
                driven = next(i for i in group.members if set(layers[i].children) - set(group.members))
                raise ReservoirError(
                    f"layer {driven} is driven by the layers {layers[driven].children}; as membranes, layers stand in "
                    "post-order and each drives at most one other"
                )
            at = begins[c]
        begins.append(at)
    if max(depth) >= MAX_DEPTH:
        raise ReservoirError(f"the layers nest {max(depth)} deep; wanted less than {MAX_DEPTH} for a program")
    inner = {c for group in groups for c in group.children}
    return sizes, hears, [g for g in range(len(groups)) if g not in inner]
