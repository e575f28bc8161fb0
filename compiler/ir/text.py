"""The text form `.eir`: readable and stable, with parse(show(program)) equal to the program."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from json.encoder import encode_basestring_ascii
from typing import Any

from echoc.errors import IRError

from .membrane import Membrane, Port, Program, Rule, State
from .node import Node, make
from .types import Poly, StateType, TensorType, parse_dim, parse_type

HEADER = "eir 1"


def show_value(value: Any) -> str:
    if type(value) is str:
        return encode_basestring_ascii(value)
    if type(value) is int:
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join([show_value(v) for v in value]) + "]"
    if isinstance(value, Poly):
        return f"<{value}>"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({value})"
    return json.dumps(value)


def show_attrs(node: Node) -> str:
    return " {" + ", ".join(f"{k}={show_value(v)}" for k, v in node.attrs) + "}" if node.attrs else ""


def show_rule(rule: Rule, indent: str = "", notes: dict[Node, str] | None = None) -> str:
    """A rule as text; `notes` are written below the lines of their nodes."""
    names: dict[Node, str] = {}
    lines = [f"{indent}rule @{rule.name} {{"]
    for node in rule.order:
        names[node] = f"%{len(names)}"
        inputs = ", ".join(names[i] for i in node.inputs)
        lines.append(f"{indent}  {names[node]} = {node.op}({inputs}){show_attrs(node)} : {node.type}")
        if notes and node in notes:
            lines.append(f"{indent}  {'^' * len(names[node])} {notes[node]}")
    lines += [f"{indent}  out {json.dumps(name)} = {names[node]}" for name, node in rule.outputs]
    lines += [f"{indent}  next {json.dumps(name)} = {names[node]}" for name, node in rule.next_states]
    return "\n".join([*lines, indent + "}"])


def _show_membrane(membrane: Membrane, indent: str) -> Iterable[str]:
    yield f"{indent}membrane @{membrane.name} {{"
    inner = indent + "  "
    for state in membrane.states:
        yield f"{inner}state {json.dumps(state.name)} : {state.type}"
    for port in membrane.ports:
        yield f"{inner}{port.direction} {json.dumps(port.name)} : {port.type}"
    for rule in membrane.rules:
        yield show_rule(rule, inner)
    for child in membrane.children:
        yield from _show_membrane(child, inner)
    yield indent + "}"


def show(program: Program) -> str:
    """The whole program as text."""
    lines = [HEADER]
    lines += [f"symbol {name} in {low}..{high}" for name, (low, high) in program.symbols.items()]
    return "\n".join([*lines, *_show_membrane(program.skin, "")]) + "\n"


_NODE = re.compile(r"(%\d+) = ([a-z_0-9]+)\(([^)]*)\)(?: \{(.*)\})? : (.+)")
_QUOTED = r'("(?:[^"\\]|\\.)*")'


class _Values:
    """A reader of attribute lists: JSON scalars, lists, `<dimension>` and `float(inf)`."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def skip(self, token: str) -> bool:
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def value(self, depth: int = 0) -> Any:
        if depth > 32:
            raise IRError("attribute lists nest deeper than 32")
        if self.skip("["):
            items: list[Any] = []
            while not self.skip("]"):
                items.append(self.value(depth + 1))
                if not self.skip(",") and not self.text.startswith("]", self.at):
                    raise IRError(f"found {self.text[self.at : self.at + 12]!r} in a list; wanted , or ]")
            return tuple(items)
        if self.skip("<"):
            end = self.text.index(">", self.at)
            text, self.at = self.text[self.at : end], end + 1
            return parse_dim(text)
        if self.skip("float("):
            end = self.text.index(")", self.at)
            text, self.at = self.text[self.at : end], end + 1
            return float(text)
        self.skip("")
        value, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
        if isinstance(value, list | dict):
            raise IRError(f"found {self.text[: self.at][-20:]!r}; wanted a number, a string, true, false or a list")
        return value

    def attributes(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        while self.at < len(self.text):
            found = re.compile(r"\s*([a-z_0-9]+)=").match(self.text, self.at)
            if not found:
                raise IRError(f"found {self.text[self.at : self.at + 20]!r}; wanted name=value")
            self.at = found.end()
            out[found[1]] = self.value()
            self.skip(",")
        return out


class _Parser:
    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.at = 0
        self.keep: list[Node] = []

    def next(self) -> str:
        while self.at < len(self.lines) and not self.lines[self.at].strip():
            self.at += 1
        if self.at >= len(self.lines):
            raise IRError("the text ends early; wanted a closing brace")
        self.at += 1
        return self.lines[self.at - 1].strip()

    def program(self) -> Program:
        if self.next() != HEADER:
            raise IRError(f"wanted the header {HEADER!r}")
        symbols: dict[str, tuple[int, int]] = {}
        while found := re.fullmatch(r"symbol (\w+) in (\d+)\.\.(\d+)", line := self.next()):
            symbols[found[1]] = (int(found[2]), int(found[3]))
        skin = self.membrane(line)
        if any(line.strip() for line in self.lines[self.at :]):
            raise IRError("found text behind the skin membrane")
        return Program(skin, symbols)

    def membrane(self, line: str, depth: int = 0) -> Membrane:
        found = re.fullmatch(r"membrane @(\S+) \{", line)
        if not found or depth > 200:
            raise IRError(f"found {line!r}; wanted membrane @name {{ (nested at most 200 deep)")
        states: list[State] = []
        ports: list[Port] = []
        rules: list[Rule] = []
        children: list[Membrane] = []
        while (line := self.next()) != "}":
            if state := re.fullmatch(rf"state {_QUOTED} : (.+)", line):
                type_ = parse_type(state[2])
                if not isinstance(type_, StateType):
                    raise IRError(f"a state is pages<...> or value<...>; found {state[2]}")
                states.append(State(json.loads(state[1]), type_))
            elif port := re.fullmatch(rf"(in|out) {_QUOTED} : (.+)", line):
                type_ = parse_type(port[3])
                if not isinstance(type_, TensorType):
                    raise IRError(f"a port carries a tensor; found {port[3]}")
                ports.append(Port(json.loads(port[2]), port[1], type_))
            elif rule := re.fullmatch(r"rule @(\S+) \{", line):
                rules.append(self.rule(rule[1]))
            else:
                children.append(self.membrane(line, depth + 1))
        return Membrane(found[1], tuple(states), tuple(ports), tuple(rules), tuple(children))

    def rule(self, name: str) -> Rule:
        names: dict[str, Node] = {}
        roots: dict[str, list[tuple[str, Node]]] = {"out": [], "next": []}
        while (line := self.next()) != "}":
            if root := re.fullmatch(rf"(out|next) {_QUOTED} = (%\d+)", line):
                roots[root[1]].append((json.loads(root[2]), self.lookup(names, root[3])))
                continue
            found = _NODE.fullmatch(line)
            if not found:
                raise IRError(f"found {line!r}; wanted %n = op(inputs) {{attributes}} : type")
            inputs = [self.lookup(names, i.strip()) for i in found[3].split(",") if i.strip()]
            node = make(found[2], *inputs, **_Values(found[4] or "").attributes())
            if str(node.type) != found[5].strip():
                raise IRError(f"{found[2]} yields {node.type}; the text says {found[5]}")
            names[found[1]] = node
        return Rule(name, tuple(roots["out"]), tuple(roots["next"]))

    def lookup(self, names: dict[str, Node], name: str) -> Node:
        if name not in names:
            raise IRError(f"{name} is used before it is defined")
        return names[name]


def parse(text: str) -> Program:
    """The program of a text. Raises IRError with the line and the line's text."""
    parser = _Parser(text)
    try:
        return parser.program()
    except (IRError, ValueError) as error:
        line = min(max(parser.at, 1), max(len(parser.lines), 1))
        shown = parser.lines[line - 1] if parser.lines else ""
        raise IRError(f"line {line}: {error}\n  {shown.strip()[:200]}") from None
