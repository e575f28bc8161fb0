"""Checks of a topology's wires, and the routes that they make from content to content.

A wire joins ports of one membrane and its direct children, so that whatever crosses a boundary is declared there.
Boundaries cost no time: a route runs through all of them at once, and what was written in a step is read in the next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from .adapters import Step, adapt
from .errors import Place, TopologyError
from .topology import NOWHERE, Membrane, Port, PortType, Wire

MAX_ROUTES, MAX_CARRIED = 1 << 18, 1 << 21
Path = tuple[str, ...]
Steps = tuple[Step, ...]


@dataclass(frozen=True)
class End:
    """A wire's end: the child whose port it is (None: the membrane's own), and the port."""

    child: str | None
    port: Port


@dataclass(frozen=True)
class Joint:
    """A wire with its ends (`target` None: discarded) and what it does."""

    wire: Wire
    source: End
    target: End | None
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Route:
    """From a port of a content (or an in port of the whole) to another (or an out port of the whole)."""

    source: tuple[Path, str]
    target: tuple[Path, str]
    steps: tuple[Step, ...]


def check_wires(root: Membrane) -> dict[Path, list[Joint]]:
    """The wires of every membrane, resolved. Raises TopologyError for the first that is wrong."""
    joints: dict[Path, list[Joint]] = {}
    carried = 0
    for path, membrane in root.walk():
        if membrane.kind and membrane.wires:
            raise membrane.wires[0].place.error(
                f"{membrane.name} holds a {membrane.kind} and has a wire", "wires join children; the content has ports"
            )
        joints[path] = []
        for wire in membrane.wires:
            joints[path].append(_joint(membrane, wire, root))
            carried += len(joints[path][-1].source.port.type.objects)
            if carried > MAX_CARRIED:
                raise wire.place.error(f"the wires carry more than {MAX_CARRIED} objects together", "wanted fewer")
    for path, membrane in root.walk():
        if not membrane.kind:
            _check_cover(membrane, joints[path])
    return joints


def _joint(membrane: Membrane, wire: Wire, root: Membrane) -> Joint:
    source = _end(membrane, wire, wire.source, root, "from")
    target = None if wire.target == NOWHERE else _end(membrane, wire, wire.target, root, "to")
    wanted = None if target is None else target.port.type
    steps, kind = adapt(source.port.type, wire.options, wire.place, wanted)
    if target is not None:
        _check_type(wire, kind, target.port)
    return Joint(wire, source, target, tuple(steps))


def _end(membrane: Membrane, wire: Wire, text: object, root: Membrane, key: str) -> End:
    place = wire.place
    if not isinstance(text, str) or not text:
        raise place.error(f"{key} is {text!r}", "wanted 'port' or 'child.port'")
    parts = text.split(".")
    owner, wants = membrane, "in" if key == "from" else "out"
    if len(parts) > 1:
        child = membrane.children.get(parts[0])
        if child is None:
            raise _unknown_child(membrane, wire, parts, root, key)
        if len(parts) > 2:
            raise _two_boundaries(membrane, wire, parts, key)
        owner, wants = child, "out" if key == "from" else "in"
    port = owner.ports.get(parts[-1])
    if port is None or port.direction != wants:
        there = ", ".join(p.name for p in owner.of(wants)) or "none"
        found = (
            f"{owner.name} has no {wants} port {parts[-1]!r}" if port is None else f"{text} is an {port.direction} port"
        )
        side = (
            "its own in ports and its children's out ports"
            if key == "from"
            else "its own out ports and its children's in ports"
        )
        raise place.error(
            found, f"its {wants} ports: {there}. A wire of {membrane.name} goes {key} {side}; declare it there"
        )
    return End(parts[0] if len(parts) > 1 else None, port)


def _two_boundaries(membrane: Membrane, wire: Wire, parts: list[str], key: str) -> Exception:
    """A wire that names what is inside a child."""
    outer, inner, port = parts[0], parts[1], parts[-1]
    direction = "out" if key == "from" else "in"
    ends = (
        f'from = "{".".join(parts[1:])}", to = "{port}"'
        if key == "from"
        else f'from = "{port}", to = "{".".join(parts[1:])}"'
    )
    return wire.place.error(
        f"{'.'.join(parts)} crosses two boundaries, of {inner} and of {outer}, and {outer} declares nothing for it",
        f'declare {direction}.{port} on {outer}, wire it inside {outer} ({ends}), and here use "{outer}.{port}"',
    )


def _unknown_child(membrane: Membrane, wire: Wire, parts: list[str], root: Membrane, key: str) -> Exception:
    """A wire that names a membrane which is none of the children: perhaps one deeper, or one outside."""
    name, port = parts[0], parts[-1]
    for path, _ in membrane.walk():
        if len(path) > 1 and path[-1] == name:
            return _two_boundaries(membrane, wire, [*path, port], key)
    known = ", ".join(membrane.children) or "none"
    for path, _ in root.walk():
        if path and path[-1] == name:
            around = path[-2] if len(path) > 1 else root.name
            direction = "in" if key == "from" else "out"
            return wire.place.error(
                f"{name} is not in {membrane.name} but in {around}: the wire crosses the boundary of {membrane.name}",
                f"declare {direction}.{port} on {membrane.name} and wire it to {name}.{port} in {around}",
            )
    return wire.place.error(f"{membrane.name} has no membrane {name!r}", f"its membranes: {known}")


def _check_type(wire: Wire, kind: PortType, port: Port) -> None:
    wanted = port.type
    if kind.kind == wanted.kind == "objects":
        there = set(wanted.objects)
        lost = [name for name in kind.objects if name not in there]
        if lost:
            raise wire.place.error(
                f"the object {lost[0]} crosses into {wire.target}, which does not declare it",
                f"declare it there ({wanted}), or choose with only = [...] and let another wire take it",
            )
        return
    if kind != wanted:
        raise wire.place.error(f"{kind} goes to {wire.target}, which takes {wanted}", _advice(kind, wanted))


def _advice(kind: PortType, wanted: PortType) -> str:
    ways = {
        ("tensor", "objects"): "threshold or round makes objects of a tensor",
        ("objects", "tensor"): "counts makes a tensor of objects",
        ("objects", "text"): "prompt makes a text of an object",
        ("text", "objects"): "contains makes objects of a text",
        ("tensor", "tensor"): "channels chooses, cast changes the dtype",
    }
    return ways.get((kind.kind, wanted.kind), "there is no adapter for that: put a membrane between")


def _check_cover(membrane: Membrane, joints: list[Joint]) -> None:
    """Everything that a wire could carry is carried or discarded, and every port is fed."""
    read: dict[tuple[str | None, str], list[Joint]] = defaultdict(list)
    fed: dict[tuple[str | None, str], list[Joint]] = defaultdict(list)
    for joint in joints:
        read[joint.source.child, joint.source.port.name].append(joint)
        if joint.target is not None:
            fed[joint.target.child, joint.target.port.name].append(joint)
    inner = [(child.name, port) for child in membrane.children.values() for port in child.ports.values()]
    for owner, port in [*((None, p) for p in membrane.ports.values()), *inner]:
        name = port.name if owner is None else f"{owner}.{port.name}"
        if (port.direction == "in") == (owner is None):
            _check_read(membrane, name, port, read[owner, port.name])
            continue
        sources = fed[owner, port.name]
        if not sources:
            raise port.place.error(f"nothing feeds {name}", f"wire something to it in {membrane.name}, or take it away")
        if port.type.kind == "tensor" and len(sources) > 1:
            raise sources[1].wire.place.error(
                f"{name} is a tensor with two sources, {sources[0].wire.source} and {sources[1].wire.source}",
                "wire one; a tensor port holds one value",
            )


def _check_read(membrane: Membrane, name: str, port: Port, joints: list[Joint]) -> None:
    if not joints:
        raise port.place.error(
            f"nothing reads {name}: what comes there would vanish",
            f'wire it in {membrane.name}, or discard it: from = "{name}", to = "{NOWHERE}"',
        )
    if port.type.kind != "objects":
        return
    taken: dict[str, Joint] = {}
    for joint in joints:
        for obj in joint.wire.options.get("only", port.type.objects):
            if obj in taken and not (joint.wire.options.get("copy") and taken[obj].wire.options.get("copy")):
                raise joint.wire.place.error(
                    f"two wires take the object {obj} of {name}, to {taken[obj].wire.target} and {joint.wire.target}",
                    "divide the objects with only = [...], or say copy = true on both",
                )
            taken[obj] = joint
    lost = [obj for obj in port.type.objects if obj not in taken]
    if lost:
        raise joints[0].wire.place.error(
            f"no wire takes the object {lost[0]} of {name}: it would vanish",
            f'wire it, or discard it: from = "{name}", to = "{NOWHERE}", only = ["{lost[0]}"]',
        )


Spot = tuple[Path, str | None, str]
Leaving = dict[Spot, list[Joint]]
"""A port as the wires of the membrane at a path see it, and the wires that leave it there."""


def routes(root: Membrane, joints: dict[Path, list[Joint]]) -> list[Route]:
    """Every route between contents, and from and to the ports of the whole, in the order of the wires.

    The whole itself holds no content (`compile` puts a membrane around one that does).
    Raises: TopologyError for wires that run in a circle without a content, and for too many routes.
    """
    members = dict(root.walk())
    leaving: Leaving = defaultdict(list)
    for path, listed in joints.items():
        for joint in listed:
            leaving[path, joint.source.child, joint.source.port.name].append(joint)
    _check_circles(members, leaving)
    found: list[Route] = []
    for path, membrane in members.items():
        begins: list[tuple[Spot, Port]] = []
        if not path:
            begins = [(((), None, port.name), port) for port in membrane.of("in")]
        elif membrane.kind:
            begins = [((path[:-1], path[-1], port.name), port) for port in membrane.of("out")]
        for spot, port in begins:
            for target, steps in _follow(spot, members, leaving):
                found.append(Route((path, port.name), target, steps))
                if len(found) > MAX_ROUTES:
                    raise _too_many(root.place)
    return found


def _too_many(place: Place) -> TopologyError:
    return place.error(f"more than {MAX_ROUTES} routes between contents", "wires that split and join multiply them")


def _next(joint: Joint, path: Path, members: dict[Path, Membrane]) -> Spot | None:
    """Where what a wire carries goes on; None at a content, at a port of the whole, and where it is discarded."""
    if joint.target is None:
        return None
    owner, name = joint.target.child, joint.target.port.name
    if owner is not None:
        return None if members[*path, owner].kind else ((*path, owner), None, name)
    return (path[:-1], path[-1], name) if path else None


def _check_circles(members: dict[Path, Membrane], leaving: Leaving) -> None:
    """Raises TopologyError for wires in a circle: boundaries take no time, so something must stand in it that does."""
    done: set[Spot] = set()
    for begin in list(leaving):
        stack: list[tuple[Spot, int]] = [(begin, 0)]
        open_: set[Spot] = {begin}
        while stack:
            spot, at = stack.pop()
            wires = leaving.get(spot, [])
            if spot in done or at == len(wires):
                done.add(spot)
                open_.discard(spot)
                continue
            stack.append((spot, at + 1))
            after = _next(wires[at], spot[0], members)
            if after in open_:
                raise wires[at].wire.place.error(
                    f"the wires run in a circle through {wires[at].wire.target} without a content on the way",
                    "boundaries take no time: put a P system, a reservoir or a model into the circle",
                )
            if after is not None and after not in done:
                open_.add(after)
                stack.append((after, 0))


def _follow(spot: Spot, members: dict[Path, Membrane], leaving: Leaving) -> Iterator[tuple[tuple[Path, str], Steps]]:
    """The ends of the routes that begin at a port, with what is done on the way."""
    stack: list[tuple[Joint, Path, Steps]] = [(joint, spot[0], ()) for joint in reversed(leaving.get(spot, []))]
    budget = MAX_ROUTES
    while stack:
        joint, path, steps = stack.pop()
        budget -= 1
        if budget < 0:
            raise _too_many(joint.wire.place)
        if joint.target is None:
            continue
        steps = (*steps, *joint.steps)
        after = _next(joint, path, members)
        if after is None:
            owner = joint.target.child
            yield (((*path, owner) if owner is not None else ()), joint.target.port.name), steps
            continue
        stack += [(wire, after[0], steps) for wire in reversed(leaving.get(after, []))]
