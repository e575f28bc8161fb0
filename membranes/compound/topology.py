"""A topology as data: membranes with ports, a content or children, and wires. The same words as in the file.

top = Membrane("listener", inputs={"signal": "f64[1]"}, outputs={"heard": "objects event"})
top.add("ear", inputs={"u": "f64[1]"}, outputs={"y": "f64[1]"}, reservoir=esn)
top.add("mind", inputs={"in": "objects loud"}, outputs={"out": "objects event"}, system="mind.pli")
top.wire("signal", "ear.u")
top.wire("ear.y", "mind.in", threshold={"above": 0.5, "objects": ["loud"]})
top.wire("mind.out", "heard")
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import Place

MAX_DEPTH, MAX_MEMBRANES, MAX_SIZE, MAX_STEPS = 64, 100_000, 1 << 24, 1 << 40
CONTENTS = ("system", "pli", "kpl", "reservoir", "model", "artifact")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")
_TENSOR = re.compile(r"(f64|f32|i64)\[\s*(\d{1,9})\s*\]")
NOWHERE = "nothing"
ROOT_PLACE = Place("the topology")


@dataclass(frozen=True)
class PortType:
    """What crosses a boundary: `tensor` (dtype and size), `objects` (an alphabet), or `text`."""

    kind: str
    dtype: str = ""
    size: int = 0
    objects: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kind == "tensor":
            return f"{self.dtype}[{self.size}]"
        return " ".join(("objects", *self.objects)) if self.kind == "objects" else self.kind


@dataclass(frozen=True)
class Port:
    """A declared port. `into`: the label that receives objects (default: the skin). `of`: for a port that shows counts
    of objects without taking them, the label of the membranes that are counted."""

    name: str
    direction: str
    type: PortType
    place: Place
    into: str | None = None
    of: str | None = None
    counts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wire:
    """From a port to a port, of one membrane and its direct children; `options` are the adapters it asks for."""

    source: str
    target: str
    place: Place
    options: Mapping[str, Any] = field(default_factory=dict)


class Membrane:
    """A membrane with ports, and a content or children and wires.

    Args:
        name: letters, digits, `_` and `-`.
        inputs, outputs: types of the ports by name: `f64[3]`, `f32[3]`, `i64[3]`, `text`, `objects a b x{1}`; or
            mappings `{"objects": [...], "into": label}` and `{"counts": [...], "of": label}` (P systems).
        steps: of the content for each step of the whole.
        folder: where relative paths of contents begin; default: the working folder.
        content: one of `system` (a System, or a file), `pli` or `kpl` (a text), `reservoir` (a Reservoir, or its
            parameters), `model` (a folder, or `{"path": ..., **options}`), `artifact` (a compiled .echo).
    Raises: TopologyError.
    """

    def __init__(
        self, name: str, inputs: Mapping[str, Any] | None = None, outputs: Mapping[str, Any] | None = None, *,
        steps: int = 1, folder: str | Path | None = None, place: Place | None = None,
        places: Mapping[str, Place] | None = None, **content: Any,
    ) -> None:  # fmt: skip
        self.place = place or Place(str(name))
        self.name = _checked_name(name, "a membrane", self.place)
        self.folder = None if folder is None else Path(folder)
        self.ports: dict[str, Port] = {}
        for direction, given in (("in", inputs), ("out", outputs)):
            for port, kind in (given or {}).items():
                self._declare(port, direction, kind, (places or {}).get(port, self.place))
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
            raise self.place.error(f"steps is {steps!r}", f"wanted a whole number from 1 to {MAX_STEPS}")
        self.steps = steps
        unknown = [key for key in content if key not in CONTENTS]
        if unknown:
            raise self.place.error(f"unknown key {unknown[0]!r}", f"a membrane holds one of {', '.join(CONTENTS)}")
        if len(content) > 1:
            raise self.place.error(f"two contents, {' and '.join(content)}", "give each a membrane of its own")
        self.kind: str = next(iter(content), "")
        self.content: Any = content.get(self.kind)
        self.children: dict[str, Membrane] = {}
        self.wires: list[Wire] = []

    def add(self, child: Membrane | str, inputs: Mapping[str, Any] | None = None,
            outputs: Mapping[str, Any] | None = None, **options: Any) -> Membrane:  # fmt: skip
        """A membrane inside this one: one that was made, or what `Membrane` makes of the arguments. Returns it."""
        if isinstance(child, str):
            options.setdefault("place", Place(f"{self.place.path}/{child}"))
            options.setdefault("folder", self.folder)
            child = Membrane(child, inputs, outputs, **options)
        if self.kind:
            raise child.place.error(
                f"{self.name} holds a {self.kind} and a membrane {child.name}", "give the content a membrane of its own"
            )
        if child.name in self.children:
            raise child.place.error(f"{self.name} has two membranes named {child.name}", "rename one")
        self.children[child.name] = child
        return child

    def wire(self, source: str, target: str, *, place: Place | None = None, **options: Any) -> None:
        """A wire: `port` is this membrane's own, `child.port` a child's. The target `nothing` discards."""
        self.wires.append(Wire(source, target, place or Place(f"{self.place.path}: {source} -> {target}"), options))

    def walk(self) -> Iterator[tuple[tuple[str, ...], Membrane]]:
        """Every membrane with its path, parents first."""
        stack: list[tuple[tuple[str, ...], Membrane]] = [((), self)]
        count = 0
        while stack:
            path, membrane = stack.pop()
            count += 1
            if len(path) > MAX_DEPTH or count > MAX_MEMBRANES:
                what = f"membranes nest deeper than {MAX_DEPTH}" if len(path) > MAX_DEPTH else "too many membranes"
                raise membrane.place.error(what, f"wanted at most {MAX_MEMBRANES}, {MAX_DEPTH} deep")
            yield path, membrane
            stack += [((*path, child.name), child) for child in reversed(membrane.children.values())]

    def of(self, direction: str) -> list[Port]:
        """The ports of one direction, in the order of their declaration."""
        return [port for port in self.ports.values() if port.direction == direction]

    def _declare(self, name: str, direction: str, given: Any, place: Place) -> None:
        _checked_name(name, "a port", place)
        if name == NOWHERE or name in self.ports:
            raise place.error(f"a second port named {name!r}" if name in self.ports else f"a port named {name!r}",
                              "rename it; `nothing` is where a wire discards")  # fmt: skip
        self.ports[name] = _port(name, direction, given, place)


def _checked_name(name: Any, what: str, place: Place) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise place.error(f"{what} is named {name!r}", "wanted letters, digits, _ and -, beginning with a letter")
    return name


def _port(name: str, direction: str, given: Any, place: Place) -> Port:
    if isinstance(given, PortType):
        return Port(name, direction, given, place)
    if isinstance(given, str):
        return Port(name, direction, parse_type(given, place), place)
    if not isinstance(given, Mapping):
        raise place.error(f"port {name} is {given!r}", "wanted a type such as 'f64[3]', 'text' or 'objects a b'")
    allowed = {"objects", "into"} if direction == "in" else {"objects", "counts", "of"}
    unknown = sorted(set(given) - allowed)
    if unknown or ("objects" in given) == ("counts" in given):
        found = (
            f"port {name} has the key {unknown[0]!r}" if unknown else f"port {name} has {', '.join(given) or 'no keys'}"
        )
        raise place.error(found, f"an {direction} port is a table of {', '.join(sorted(allowed))}")
    label = given.get("into", given.get("of"))
    if label is not None and not isinstance(label, str):
        raise place.error(f"the label of port {name} is {label!r}", "wanted a text")
    if "counts" in given:
        counts = alphabet(given["counts"], place)
        return Port(name, direction, PortType("tensor", "i64", len(counts)), place, None, label, counts)
    if "of" in given:
        raise place.error(
            f"port {name} takes objects `of` a label", "objects leave through the environment of a system"
        )
    return Port(name, direction, PortType("objects", objects=alphabet(given["objects"], place)), place, label)


def parse_type(text: str, place: Place) -> PortType:
    """The type that a text spells. Raises TopologyError."""
    found = _TENSOR.fullmatch(text.strip())
    if found:
        size = int(found[2])
        if not 1 <= size <= MAX_SIZE:
            raise place.error(f"a tensor of {size} numbers", f"wanted 1 to {MAX_SIZE}")
        return PortType("tensor", found[1], size)
    words = text.split()
    if words == ["text"]:
        return PortType("text")
    if words and words[0] == "objects":
        return PortType("objects", objects=alphabet(words[1:], place))
    raise place.error(f"unknown type {text!r}", "wanted f64[N], f32[N], i64[N], text, or objects a b ...")


def alphabet(given: Any, place: Place) -> tuple[str, ...]:
    """A list of objects, each once, in its order."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise place.error(f"the objects are {given!r}", "wanted a list of at least one name")
    seen: dict[str, None] = {}
    for name in given:
        if not isinstance(name, str) or not name or name.split() != [name]:
            raise place.error(f"an object is named {name!r:.80}", "wanted a name without blanks")
        if name in seen:
            raise place.error(f"the object {name} is listed twice", "list it once")
        seen[name] = None
    return tuple(seen)
