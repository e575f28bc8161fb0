"""A topology in the IR: nested membranes with their ports; what a wire does to tensors and objects is a rule.

As in every program of nested membranes, the rule of a membrane sends into its child c by its own out port `c.p`, and
reads what the child gave as its own in port `c.q`. Objects cross as counts, i64 in the order of the declared alphabet;
a text as bytes, u8[L]. Wires that make or take texts have no ops: their ports are declared, their meaning stands in the
manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from echoc.compiler.ir import DType, Node, Program, StateType, TensorType, make, symbol
from echoc.compiler.ir import Membrane as IRMembrane
from echoc.compiler.ir import Port as IRPort
from echoc.compiler.ir import Rule as IRRule
from echoc.compiler.ir import State as IRState
from echoc.compiler.ir.verify import verify

from .checking import End, Joint, Path
from .contents import Content
from .topology import Membrane, Port, PortType

MAX_TEXT = 1 << 20
LENGTH = "L"


def lower(root: Membrane, joints: dict[Path, list[Joint]], contents: dict[Path, Content]) -> Program:
    """The verified program of a topology."""
    done: dict[Path, IRMembrane] = {}
    for path, membrane in reversed(list(root.walk())):
        if membrane.kind:
            done[path] = _content(membrane, contents[path])
        else:
            children = tuple(done.pop((*path, name)) for name in membrane.children)
            done[path] = _parent(membrane, joints[path], children)
    texts = any(port.type.kind == "text" for _, m in root.walk() for port in m.ports.values())
    return verify(Program(done[()], {LENGTH: (0, MAX_TEXT)} if texts else {}))


def _type(kind: PortType) -> TensorType:
    if kind.kind == "text":
        return TensorType((symbol(LENGTH),), DType.U8)
    if kind.kind == "objects":
        return TensorType((len(kind.objects),), DType.I64)
    return TensorType((kind.size,), DType(kind.dtype))


def _ports(ports: Sequence[Port], prefix: str = "", turned: bool = False) -> list[IRPort]:
    other = {"in": "out", "out": "in"}
    return [IRPort(prefix + p.name, other[p.direction] if turned else p.direction, _type(p.type)) for p in ports]


def _content(membrane: Membrane, content: Content) -> IRMembrane:
    declared = _ports(list(membrane.ports.values()))
    if content.program is None:
        return IRMembrane(membrane.name, ports=tuple(declared))
    skin = content.program.skin
    known = {port.name for port in skin.ports}
    return replace(skin, name=membrane.name, ports=(*skin.ports, *(p for p in declared if p.name not in known)))


def _parent(membrane: Membrane, joints: Sequence[Joint], children: tuple[IRMembrane, ...]) -> IRMembrane:
    ports = _ports(list(membrane.ports.values()))
    for child in membrane.children.values():
        ports += _ports(list(child.ports.values()), f"{child.name}.", turned=True)
    wiring = _Wiring()
    for joint in joints:
        wiring.add(joint)
    rules = (IRRule("step", tuple(wiring.outputs.items()), tuple(wiring.writes)),) if wiring.outputs else ()
    states = tuple(wiring.states) if wiring.outputs else ()
    return IRMembrane(membrane.name, states, tuple(ports), rules, children)


class _Wiring:
    """The rule of a membrane's wires."""

    def __init__(self) -> None:
        self.outputs: dict[str, Node] = {}
        self.states: list[IRState] = []
        self.writes: list[tuple[str, Node]] = []

    def add(self, joint: Joint) -> None:
        source, target = joint.source.port, joint.target
        if target is None or "text" in (source.type.kind, target.port.type.kind):
            return
        kind = _type(source.type)
        value = make("port", name=_name(joint.source), shape=kind.shape, dtype=kind.dtype)
        names = source.type.objects
        for step in joint.steps:
            value, names = self._step(dict(step), value, names)
        if target.port.type.kind == "objects":
            value = _arranged(value, names, target.port.type.objects)
        name = _name(target)
        before = self.outputs.get(name)
        self.outputs[name] = value if before is None else make("add", before, value)

    def _step(self, step: dict[str, Any], value: Node, names: tuple[str, ...]) -> tuple[Node, tuple[str, ...]]:
        kind = step["kind"]
        if kind == "only":
            chosen = tuple(step["objects"])
            return _arranged(value, names, chosen), chosen
        if kind == "rename":
            table: dict[str, str] = step["names"]
            renamed = tuple(table.get(n, n) for n in names)
            return value, renamed
        if kind == "channels":
            return _joined([_part(value, c) for c in step["channels"]]), ()
        if kind == "cast":
            return make("cast", value, dtype=step["dtype"]), ()
        if kind == "counts":
            arranged = _arranged(value, names, tuple(step["objects"]))
            return (arranged if step["dtype"] == "i64" else make("cast", arranged, dtype=step["dtype"])), ()
        objects = tuple(step["objects"])
        if kind == "threshold":
            return self._threshold(step, value), objects
        number = make("cast", make("round", value), dtype="i64") if value.tensor.dtype.is_float else value
        return make("maximum", number, make("const", value=0, dtype="i64")), objects

    def _threshold(self, step: dict[str, Any], value: Node) -> Node:
        limit = make("cast", make("const", value=step["above"], dtype="f64"), dtype=str(value.tensor.dtype))
        above = make("cast", make("lt", limit, value), dtype="i64")
        if step["edge"] == "none":
            return above
        name = f"above{len(self.states)}"
        shape = (len(step["objects"]),)
        before = make("state", name=name, kind="value", shape=shape, dtype="i64")
        self.states.append(IRState(name, StateType("value", shape, DType.I64)))
        self.writes.append((name, make("write", before, above)))
        new, old = (above, make("read", before)) if step["edge"] == "rising" else (make("read", before), above)
        return make("maximum", make("sub", new, old), make("const", value=0, dtype="i64"))


def _name(end: End) -> str:
    return end.port.name if end.child is None else f"{end.child}.{end.port.name}"


def _part(value: Node, at: int) -> Node:
    return make("slice", value, starts=(at,), stops=(at + 1,), steps=(1,))


def _joined(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else make("concat", *parts, axis=0)


def _arranged(value: Node, names: tuple[str, ...], wanted: tuple[str, ...]) -> Node:
    """Counts in the order of another alphabet; objects of one name are added, and what is not there is 0."""
    if names == wanted:
        return value
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(name, []).append(i)
    parts: list[Node] = []
    for name in wanted:
        found = [_part(value, i) for i in places.get(name, ())]
        if not found:
            found = [make("broadcast", make("const", value=0, dtype="i64"), shape=(1,))]
        total = found[0]
        for other in found[1:]:
            total = make("add", total, other)
        parts.append(total)
    return _joined(parts)
