"""Where the keys of a TOML text stand: a light scan beside tomllib, which tells values but no places.

It follows table headers and the keys at the start of lines, over strings and brackets of several lines. Keys inside of
inline tables get no place of their own; a message then points to the line of the key before them.
"""

from __future__ import annotations

import re
from collections import defaultdict

_MOST_PARTS = 200  # of a key that are looked at
Keys = dict[tuple[str | int, ...], tuple[int, int]]
_PART = re.compile(r"""\s*(?:"((?:[^"\\\n]|\\.)*)"|'([^'\n]*)'|([A-Za-z0-9_-]+))\s*""")
_BLANK = re.compile(r"[ \t]*")
_SKIP = re.compile(r'"""|\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}]|\n')


def places_of(text: str) -> Keys:
    """(line, column) of tables and keys, counted from 1, in a text that is TOML; in any other they are arbitrary."""
    found: Keys = {}
    lists: dict[tuple[str | int, ...], int] = defaultdict(int)
    table: tuple[str | int, ...] = ()
    at, line, start = 0, 1, 0
    while at < len(text):
        begin = _BLANK.match(text, at).end()  # type: ignore[union-attr]
        head = text[begin : begin + 2]
        if head[:1] == "[":
            double = head == "[["
            parts, _ = _dotted(text, begin + 1 + double)
            table = _resolved(parts, lists, double)
            found.setdefault(table, (line, begin - start + 1))
            at = _end(text, begin)
        elif head[:1] not in ("#", "\n", "\r", ""):
            parts, after = _dotted(text, begin)
            for n in range(1, len(parts) + 1):
                found.setdefault((*table, *parts[:n]), (line, begin - start + 1))
            at = _value_end(text, after)
        else:
            at = _end(text, begin)
        line += text.count("\n", start, at + 1)
        at += 1
        start = at
    return found


def _end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _dotted(text: str, at: int) -> tuple[list[str], int]:
    """The parts of a key and where it ends."""
    parts: list[str] = []
    while found := _PART.match(text, at):
        if len(parts) < _MOST_PARTS:
            parts.append(next(g for g in found.groups() if g is not None))
        at = found.end()
        if text[at : at + 1] != ".":
            break
        at += 1
    return parts, at


def _resolved(parts: list[str], lists: dict[tuple[str | int, ...], int], double: bool) -> tuple[str | int, ...]:
    """The path of a header: names that are lists get the index of their last table."""
    path: tuple[str | int, ...] = ()
    for i, part in enumerate(parts):
        path = (*path, part)
        if double and i == len(parts) - 1:
            lists[path] += 1
        if path in lists:
            path = (*path, lists[path] - 1)
    return path


def _value_end(text: str, at: int) -> int:
    """The end of the line on which a value ends."""
    depth = 0
    while found := _SKIP.search(text, at):
        token = found[0]
        at = found.end()
        if token in ('"""', "'''"):
            end = at
            while (end := text.find(token, end)) >= 0 and token == '"""' and _escaped(text, end):
                end += 1
            if end < 0:
                return len(text)
            at = end + 3
        elif token in "[{":
            depth += 1
        elif token in "]}":
            depth -= 1
        elif token == "\n" and depth <= 0:
            return found.start()
    return len(text)


def _escaped(text: str, at: int) -> bool:
    """Whether an odd number of backslashes stands before a place."""
    count = 0
    while at > count and text[at - count - 1] == "\\":
        count += 1
    return count % 2 == 1
