"""Words of P-Lingua 5, and of version 4 where it writes them otherwise.

Runs of constant assignments, `name{1,2} = 3.5;`, which make up most of large population models, become one token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .diagnostics import Fault, Mark, Source

KEYWORDS = frozenset(
    [
        "def",
        "let",
        "call",
        "system",
        "return",
        "if",
        "else",
        "while",
        "do",
        "for",
        "int_t",
        "long_t",
        "double_t",
        "string_t",
        "prob_t",
        "rexp_t",
        "true",
        "false",
    ]
)
TYPES = frozenset({"int_t", "long_t", "double_t", "string_t", "prob_t", "rexp_t"})

# Longest first: the first alternative that matches wins.
SIGNS = [
    "<-->",
    "<<=",
    ">>=",
    "-->",
    "<->",
    "==",
    "++",
    "--",
    "&&",
    "||",
    "->",
    "::",
    "<>",
    "!=",
    "+=",
    "-=",
    "*=",
    "/=",
    "%=",
    "&=",
    "|=",
    "^=",
    "<<",
    ">>",
    "<=",
    "=<",
    ">=",
    "=>",
    "?",
    "=",
    "#",
    ";",
    "<",
    ">",
    "&",
    "|",
    "(",
    ")",
    "{",
    "}",
    ",",
    "+",
    "-",
    "*",
    "'",
    "/",
    "%",
    "^",
    ":",
    "[",
    "]",
    "!",
    "~",
    "@",
]

_TOKEN = re.compile(
    r"(?P<skip>(?:[ \t\r\n\f\v]+|//[^\n]*|/\*.*?\*/)+)"
    r"|(?P<at>@(?:include|model|marcs|mu|ms[12]?|d)(?![A-Za-z0-9_.]))"
    r"|(?P<id>[A-Za-z_][A-Za-z0-9_.]*|\.[A-Za-z_.][A-Za-z0-9_.]*)"
    r"|(?P<hex>0[xX][0-9A-Fa-f]+)"
    r"|(?P<real>(?:[0-9]+\.[0-9]+|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+)"
    r"|(?P<int>[0-9]+)"
    r'|(?P<str>"(?:[^"\\]|\\.)*")'
    r"|(?P<sign>" + "|".join(re.escape(s) for s in SIGNS) + ")",
    re.DOTALL,
)
_CONSTANT = re.compile(
    r"\s*([A-Za-z_][A-Za-z0-9_.]*\{(?:0|[1-9][0-9]{0,17})(?:,(?:0|[1-9][0-9]{0,17}))*\})"
    r"\s*=\s*(-?)(?:([0-9]{1,18})|([0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?))\s*;",
)
MAX_DIGITS = 400  # of one number; more is surely not meant


@dataclass(slots=True)
class Tokens:
    """Parallel lists. A kind is a sign or keyword itself, or `id`, `int`, `real`, `str`, `constants`, `end`."""

    source: Source
    kinds: list[str] = field(default_factory=list)
    values: list[object] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def add(self, kind: str, value: object, offset: int) -> None:
        self.kinds.append(kind)
        self.values.append(value)
        self.offsets.append(offset)


def _constants(source: Source, at: int, tokens: Tokens) -> int:
    """Reads the run of constant assignments that begins at `at`, if there is one, and returns where it ends."""
    text, match = source.text, _CONSTANT.match
    found: list[tuple[str, int | float]] = []
    start = at
    m = match(text, at)
    while m is not None:
        key, minus, whole, real = m.groups()
        value = int(whole) if whole is not None else float(real)
        found.append((key, -value if minus else value))
        at = m.end()
        m = match(text, at)
    if found:
        tokens.add("constants", found, start + len(text[start:at]) - len(text[start:at].lstrip()))
    return at


def _number(kind: str, text: str, mark: Mark) -> int | float:
    if len(text) > MAX_DIGITS:
        raise Fault(f"a number of {len(text)} digits; at most {MAX_DIGITS} are read", mark)
    if kind == "real":
        return float(text)
    value = int(text, 16) if kind == "hex" else int(text)
    if value >= 1 << 63:
        raise Fault(f"{text} does not fit in 64 bits (at most {(1 << 63) - 1})", mark)
    return value


def tokenize(source: Source) -> Tokens:
    """All tokens of a source, with `end` last. Raises Fault at the first character that begins none."""
    tokens = Tokens(source)
    text, match = source.text, _TOKEN.match
    at, parentheses = _constants(source, 0, tokens), 0
    while at < len(text):
        m = match(text, at)
        if m is None:
            raise _strange(source, at)
        kind, word = m.lastgroup, m.group()
        start, at = at, m.end()
        if kind == "skip":
            if tokens.kinds[-1:] in ([], [";"], ["}"], ["constants"]) and not parentheses:
                at = _constants(source, at, tokens)
        elif kind in ("sign", "at"):
            if word == "/" and text.startswith("/*", start):
                raise _strange(source, start)
            word = {"=<": "<=", "=>": ">=", "!=": "<>"}.get(word, word)
            tokens.add(word, word, start)
            if word == "(":
                parentheses += 1
            elif word == ")":
                parentheses -= 1
            elif word in (";", "}") and parentheses <= 0:
                parentheses = 0
                at = _constants(source, at, tokens)
        elif kind == "id":
            tokens.add(word if word in KEYWORDS else "id", word, start)
        elif kind == "str":
            tokens.add("str", re.sub(r"\\(.)", r"\1", word[1:-1], flags=re.DOTALL), start)
        else:
            assert kind is not None
            tokens.add("real" if kind == "real" else "int", _number(kind, word, Mark(source, start)), start)
    tokens.add("end", "end of file", len(text))
    return tokens


def _strange(source: Source, at: int) -> Fault:
    mark = Mark(source, at)
    if source.text.startswith("/*", at):
        return Fault("a comment that never ends; wanted */", mark)
    if source.text[at] == '"':
        return Fault('a string that never ends; wanted "', mark)
    return Fault(f"the character {source.text[at]!r} begins no word of P-Lingua", mark)
