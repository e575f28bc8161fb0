"""A topology from a TOML file: tables of membranes within membranes, with the place of every key for messages.

name = "listener"
in.signal = "f64[1]"
out.heard = "objects event"

[membranes.ear]
in.u = "f64[1]"
out.y = "f64[1]"
reservoir = { units = 100, readout = "ear.npz" }

[[wires]]
from = "signal"
to = "ear.u"
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echoc.compiler.ir.algebra import Where
from echoc.membranes.source import SourceText

from .errors import Place, TopologyError
from .places import Keys, places_of
from .topology import CONTENTS, MAX_DEPTH, MAX_MEMBRANES, Membrane, Wire

MAX_BYTES, MAX_FILES, MAX_PARTS = 4 << 20, 1000, 200
_WORD = re.compile(r""""[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_-]+|[ \t]+|.|\n""")
_KEYS = ("name", "in", "out", "steps", "membranes", "wires", "topology", *CONTENTS)


def is_topology(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a topology, by its extension `.toml`."""
    return Path(os.fspath(path)).suffix.lower() == ".toml"


def read(path: str | os.PathLike[str], *, text: str | None = None) -> Membrane:
    """The topology in a file (or in `text`, under that name). Paths in it are relative to its folder.

    Whoever compiles a topology reads the files that it names, wherever they are.
    Raises: TopologyError with file, line and column; SourceError for a file that is no text.
    """
    return _read(path, text, _Budget())


@dataclass
class _Budget:
    """What all files of a topology together may hold, and how deep they nest."""

    membranes: int = MAX_MEMBRANES
    files: int = MAX_FILES
    depth: int = 0


def _read(path: str | os.PathLike[str], text: str | None, budget: _Budget) -> Membrane:
    source = SourceText.read(path, text)
    if len(source.text) > MAX_BYTES:
        raise TopologyError(f"{source.file}: {len(source.text)} characters; a topology has at most {MAX_BYTES}")
    _check_keys(source)
    try:
        document = tomllib.loads(source.text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(source, error) from None
    except (RecursionError, ValueError, MemoryError, OverflowError) as error:
        what = "tables or lists nest too deep" if isinstance(error, RecursionError) else str(error)
        raise TopologyError(f"{source.file}: not readable as TOML: {what}") from None
    name = Path(os.fspath(path)).name.split(".")[0]
    reader = _Reader(source, places_of(source.text), Path(os.fspath(path)).parent, budget)
    fallback = "".join(c if c.isalnum() or c in "_-" else "_" for c in name) or "topology"
    if not (fallback[0].isascii() and (fallback[0].isalpha() or fallback[0] == "_")) or not fallback.isascii():
        fallback = "topology"
    return reader.membrane(document, (), document.get("name", fallback))


def _check_keys(source: SourceText) -> None:
    """Refuses keys of very many parts, for which tomllib takes the square of their time."""
    if source.text.count(".") < MAX_PARTS:
        return
    dots, begin, after_dot = 0, 0, False
    for token in _WORD.finditer(source.text):
        if token[0] == ".":
            dots, after_dot = dots + 1, True
        elif token[0].isspace() and token[0] != "\n":
            continue
        elif len(token[0]) > 1 or token[0].isalnum() or token[0] in "_-":
            dots, begin, after_dot = (dots, begin, False) if after_dot else (0, token.start(), False)
        else:
            dots, after_dot = 0, False
        if dots >= MAX_PARTS:
            raise source.error(f"a key of more than {MAX_PARTS} parts", begin, "tables that nest less deep")


def _syntax_error(source: SourceText, error: tomllib.TOMLDecodeError) -> TopologyError:
    """tomllib says `message (at line L, column C)`."""
    message, _, rest = str(error).rpartition(" (at ")
    numbers = [int(word.strip(",)")) for word in rest.split() if word.strip(",)").isdecimal()]
    where = Where(source.file, numbers[0], numbers[1]) if len(numbers) == 2 else Where(source.file)
    return Place("TOML", where, source).error(message or str(error))


class _Reader:
    def __init__(self, source: SourceText, places: Keys, folder: Path, budget: _Budget) -> None:
        self.source, self.places, self.folder, self.budget = source, places, folder, budget

    def place(self, key: tuple[str | int, ...]) -> Place:
        """Where a key stands: its own line, or that of the table around it."""
        path = ".".join(str(k) for k in key) or "the topology"
        while key and key not in self.places:
            key = key[:-1]
        line, column = self.places.get(key, (1, 1))
        return Place(path, Where(self.source.file, line, column), self.source)

    def table(self, value: Any, key: tuple[str | int, ...]) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.place(key).error(f"found {value!r:.80}", "wanted a table")
        return value

    def membrane(self, table: Mapping[str, Any], key: tuple[str | int, ...], name: Any) -> Membrane:
        place = self.place(key)
        self.budget.membranes -= 1
        if len(key) // 2 + self.budget.depth > MAX_DEPTH or self.budget.membranes < 0:
            raise place.error(
                f"more than {MAX_MEMBRANES} membranes, or some {MAX_DEPTH} deep",
                "wanted a smaller tree, without circles of files",
            )
        for unknown in table:
            if unknown not in _KEYS:
                raise self.place((*key, unknown)).error(
                    f"unknown key {unknown!r}", f"a membrane has {', '.join(_KEYS)}"
                )
        inputs, outputs = (self.table(table.get(d, {}), (*key, d)) for d in ("in", "out"))
        ports = {
            port: self.place((*key, d, port)) for d, listed in (("in", inputs), ("out", outputs)) for port in listed
        }
        content = {kind: table[kind] for kind in CONTENTS if kind in table}
        at = self.place((*key, next(iter(content)))) if content else place
        if "name" in table and key:
            raise self.place((*key, "name")).error(
                "a name inside of the file", "the table's own key names the membrane"
            )
        made = Membrane(
            name, inputs, outputs, steps=table.get("steps", 1), folder=self.folder, place=at, places=ports, **content
        )
        if "topology" in table:
            self.include(made, table, key)
        for child, inner in self.table(table.get("membranes", {}), (*key, "membranes")).items():
            where = (*key, "membranes", child)
            made.add(self.membrane(self.table(inner, where), where, child))
        wires = table.get("wires", [])
        if not isinstance(wires, list):
            raise self.place((*key, "wires")).error(f"wires is {wires!r:.80}", "wanted [[wires]], or a list of tables")
        for i, wire in enumerate(wires):
            where = (*key, "wires", i)
            options = dict(self.table(wire, where))
            for end in ("from", "to"):
                if end not in options:
                    raise self.place(where).error(f"a wire without {end!r}", 'wanted from = "port" and to = "port"')
            made.wires.append(Wire(options.pop("from"), options.pop("to"), self.place(where), options))
        return made

    def include(self, made: Membrane, table: Mapping[str, Any], key: tuple[str | int, ...]) -> None:
        """Puts the inside of another file's topology into a membrane that declares the same ports."""
        place, given = self.place((*key, "topology")), table["topology"]
        others = [k for k in (*CONTENTS, "membranes", "wires", "steps") if k in table]
        if others:
            raise place.error(f"a topology and {others[0]} in one membrane", "give each a membrane of its own")
        if not isinstance(given, str) or "\0" in given or not (self.folder / given).is_file():
            raise place.error(f"the topology is {given!r:.80}", "wanted the path of a file, from this file's folder")
        self.budget.files -= 1
        if self.budget.files < 0:
            raise place.error(f"more than {MAX_FILES} topologies within each other", "wanted fewer")
        self.budget.depth += len(key) // 2 + 1
        inner = _read(self.folder / given, None, self.budget)
        self.budget.depth -= len(key) // 2 + 1
        declared, there = ({p.name: (p.direction, str(p.type)) for p in m.ports.values()} for m in (made, inner))
        for name in (*there, *declared):
            if declared.get(name) != there.get(name):
                wanted = " ".join(f'{d}.{n} = "{t}"' for n, (d, t) in there.items()) or "no ports"
                raise place.error(f"the port {name} is not declared alike here and in {given}", f"it has {wanted}")
        made.ports, made.children, made.wires = inner.ports, inner.children, inner.wires
        made.kind, made.content, made.steps, made.folder = inner.kind, inner.content, inner.steps, inner.folder
        if inner.kind:
            made.place = inner.place
