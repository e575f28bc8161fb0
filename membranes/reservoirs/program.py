"""Reservoirs as programs: every layer a membrane inside the one that it drives, their readout in the skin."""

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
    layers: Sequence[Layer], inputs: int, readout: Array | None, squares: str, reads_inputs: bool, dtype: str
) -> tuple[Program, dict[str, NDArray[Any]]]:
    """The verified program of one instant, and the values of its weights.

    In port `u` [inputs], out port `y` (a readout) or `x` (all states). Layer i is the membrane `layer<i>` with the
    value state `x`; its children are the layers that drive it.

    Raises: ReservoirError where the layers are not a forest in post-order: a membrane has one parent.
    """
    return _Builder(layers, inputs, readout, squares, reads_inputs, dtype).program()


class _Builder:
    def __init__(
        self, layers: Sequence[Layer], inputs: int, readout: Array | None, squares: str, reads_inputs: bool, dtype: str
    ) -> None:
        self.layers, self.inputs, self.readout, self.squares = list(layers), inputs, readout, squares
        self.reads_inputs, self.dtype = reads_inputs, dtype
        self.feedback = self.layers[0].feedback.shape[1]
        self.weights: dict[str, NDArray[Any]] = {}
        self.sizes, self.hears, self.roots = _check_forest(self.layers)

    def program(self) -> tuple[Program, dict[str, NDArray[Any]]]:
        membranes: list[Membrane] = []
        for i in range(len(self.layers)):
            membranes.append(self._layer(i, membranes))
        ports: list[Port] = []
        u = port(ports, "u", "in", self.inputs, self.dtype) if self.inputs else None
        outputs: list[tuple[str, Node]] = []
        feedback = self.feedback if self.readout is not None else 0
        y = self._state("y", feedback) if feedback else None
        children = [membranes[i] for i in self.roots]
        states = self._all(ports, outputs, [(i, membranes[i].name) for i in self.roots], u, y)
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

    def _layer(self, i: int, membranes: Sequence[Membrane]) -> Membrane:
        layer = self.layers[i]
        ports: list[Port] = []
        outputs: list[tuple[str, Node]] = []
        u = port(ports, "u", "in", self.inputs, self.dtype) if self.hears[i] else None
        y = port(ports, "y", "in", self.feedback, self.dtype) if self.feedback else None
        inside = [(c, membranes[c].name) for c in layer.children]
        below = self._all(ports, outputs, inside, u, None if y is None else y) if inside else None
        x = make("read", self._state("x", layer.units))
        name = f"layer{i}"
        terms = [(self._weight(f"{name}.recurrent", layer.recurrent), x)]
        first, channels = layer.hears
        at = 1
        if channels and u is not None:
            part = self._weight(f"{name}.input", layer.input[:, at : at + channels])
            terms.append((part, slice_of(u, first, channels)))
            at += channels
        for c, child in inside:
            size = self.layers[c].units
            drive = make("port", name=f"{child}.x", shape=(size,), dtype=self.dtype)
            if all(p.name != f"{child}.x" for p in ports):
                ports.append(Port(f"{child}.x", "in", drive.tensor))
            terms.append((self._weight(f"{name}.from.{child}", layer.input[:, at : at + size]), drive))
            at += size
        if y is not None:
            terms.append((self._weight(f"{name}.feedback", layer.feedback), y))
        new = leaky_update(x, layer.leak, self._weight(f"{name}.bias", layer.input[:, 0]), terms)
        outputs.append(("x", port(ports, "x", "out", new, self.dtype)))
        if below is not None:
            everything = make("concat", *self._pieces(below), new, axis=0)
            outputs.append(("all", port(ports, "all", "out", everything, self.dtype)))
        rule = Rule("step", tuple(outputs), (("x", make("write", self._state("x", layer.units), new)),))
        state = State("x", StateType("value", (layer.units,), DType(self.dtype)))
        return Membrane(name, (state,), tuple(ports), (rule,), tuple(membranes[c] for c in layer.children))

    def _all(
        self, ports: list[Port], outputs: list[tuple[str, Node]], inside: Sequence[tuple[int, str]], u: Node | None,
        y: Node | None,
    ) -> Node:  # fmt: skip
        """Sends u and y into children; returns all states of theirs."""
        parts = []
        for c, name in inside:
            if u is not None and self.hears[c]:
                outputs.append((f"{name}.u", port(ports, f"{name}.u", "out", u, self.dtype)))
            if y is not None:
                value = make("read", y) if isinstance(y.type, StateType) else y
                outputs.append((f"{name}.y", port(ports, f"{name}.y", "out", value, self.dtype)))
            which = "all" if self.layers[c].children else "x"
            parts.append(port(ports, f"{name}.{which}", "in", self.sizes[c], self.dtype))
        return parts[0] if len(parts) == 1 else make("concat", *parts, axis=0)

    @staticmethod
    def _pieces(node: Node) -> tuple[Node, ...]:
        return node.inputs if node.op == "concat" else (node,)

    def _state(self, name: str, size: int) -> Node:
        return make("state", name=name, kind="value", shape=(size,), dtype=self.dtype)

    def _weight(self, name: str, value: NDArray[Any]) -> Node:
        self.weights[name] = np.asarray(value, DType(self.dtype).numpy)
        return make("weight", name=name, shape=value.shape, dtype=self.dtype)


def _check_forest(layers: Sequence[Layer]) -> tuple[list[int], list[bool], list[int]]:
    """Units in each subtree, whether one there hears inputs, and the layers without a parent."""
    sizes, hears, depth, begins = list[int](), list[bool](), list[int](), list[int]()
    for i, layer in enumerate(layers):
        sizes.append(layer.units + sum(sizes[c] for c in layer.children))
        hears.append(layer.hears[1] > 0 or any(hears[c] for c in layer.children))
        depth.append(1 + max((depth[c] for c in layer.children), default=0))
        at = i
        for c in reversed(layer.children):
            if c != at - 1:
                raise ReservoirError(
                    f"layer {i} is driven by the layers {layer.children}; as membranes, layers stand in post-order and "
                    "each drives at most one other"
                )
            at = begins[c]
        begins.append(at)
    if max(depth) >= MAX_DEPTH:
        raise ReservoirError(f"the layers nest {max(depth)} deep; wanted less than {MAX_DEPTH} for a program")
    inner = {c for layer in layers for c in layer.children}
    return sizes, hears, [i for i in range(len(layers)) if i not in inner]
