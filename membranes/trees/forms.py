"""Other ways to write a tree: membrane structures in brackets, nested tuples, parent arrays, and systems.

Labels and charges of membranes are free: they are read and left aside. Whatever comes in, a canonical level sequence
comes out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

from .keys import canonical, canonical_of_children
from .levels import NODES_LIMIT, Tree, TreeError, check_levels, parents_of

if TYPE_CHECKING:
    from echoc.compiler.ir.algebra import System

PARENT_OF_ROOT = -1
CLOSING = {"[": "]", "(": ")"}
CONTEXT = 40
_WANTED = "wanted brackets [[][]], levels 1,2,2 or parents -1,0,0"

_LABEL = re.compile(r"'\s*(?:[A-Za-z0-9_]+(?:\{[^{}\[\]]*\})?|\{[^{}\[\]]*\})")
_BLANK = re.compile(r"[\s,]+")
_INTEGER = re.compile(r"-?\d{1,9}\Z", re.ASCII)


class Form(StrEnum):
    """How a tree is written."""

    levels = "levels"
    brackets = "brackets"
    parents = "parents"


def write(tree: Tree, form: Form = Form.levels) -> str:
    """A tree as text: levels `1,2,2`, brackets `[[][]]`, or parents `-1,0,0` (in preorder). `parse` reads all three."""
    check_levels(tree)
    if form is Form.brackets:
        return to_brackets(tree)
    values = tree if form is Form.levels else to_parents(tree)
    return ",".join(map(str, values))


def parse(text: str) -> Tree:
    """The tree of a text: brackets, nested tuples, or whole numbers separated by commas or blanks.

    Numbers with a -1 among them are a parent array, others a level sequence; its root may have level 0 or 1.
    Raises TreeError with the place.
    """
    start = text.strip()[:1]
    if start in ("[", "(", "+", "-") and not re.match(r"\s*-\s*\d", text):
        return from_brackets(text)
    words = [word for word in _BLANK.split(text) if word]
    if not words:
        raise TreeError(f"an empty text is no tree; {_WANTED}")
    for word in words:
        if not _INTEGER.match(word):
            found = word[:CONTEXT]
            raise TreeError(f"{found!r} is no whole number of at most 9 digits; {_WANTED}")
    numbers = [int(word) for word in words]
    if PARENT_OF_ROOT in numbers:
        return from_parents(numbers)
    return canonical([number + 1 for number in numbers] if numbers[0] == 0 else numbers)


def from_brackets(text: str) -> Tree:
    """The tree of a membrane structure as P-Lingua writes it, `[[]'2[]'3]'1`, or of nested tuples, `((), ())`.

    Labels `'name`, `'{1,2}` after a closing bracket and charges + - 0 before an opening one are left aside, and so are
    blanks and commas. Raises TreeError with line, column and a caret.
    """
    levels: list[int] = []
    opened: list[int] = []  # positions of brackets that are still open
    at = 0
    labelled = False  # a closing bracket stands right before, so that a label may follow
    while at < len(text):
        blank = _BLANK.match(text, at)
        if blank:
            at = blank.end()
            continue
        letter = text[at]
        if letter in CLOSING:
            if levels and not opened:
                _refuse(text, at, "a second tree begins; wanted one root around everything")
            if len(levels) == NODES_LIMIT:
                _refuse(text, at, f"too many brackets; at most {NODES_LIMIT}")
            opened.append(at)
            levels.append(len(opened))
        elif letter in CLOSING.values():
            if not opened:
                _refuse(text, at, f"{letter} closes nothing")
            if CLOSING[text[opened[-1]]] != letter:
                wanted = CLOSING[text[opened[-1]]]
                _refuse(text, at, f"{letter} closes {text[opened[-1]]} of column {opened[-1] + 1}; wanted {wanted}")
            opened.pop()
        elif letter == "'":
            label = _LABEL.match(text, at)
            if not labelled or label is None:
                _refuse(text, at, "a label stands after a closing bracket and has a name: ]'skin")
            at = label.end() - 1
        elif letter not in "+-0" or text[at + 1 : at + 2].strip() not in CLOSING:
            _refuse(text, at, f"found {letter!r}; wanted a bracket or a label (objects are not part of a structure)")
        labelled = letter in CLOSING.values()
        at += 1
    if opened:
        _refuse(text, opened[-1], f"this bracket is not closed; wanted {CLOSING[text[opened[-1]]]}")
    if not levels:
        _refuse(text, 0, "there is no bracket; the smallest tree is []")
    return canonical(levels)


def _refuse(text: str, at: int, message: str) -> NoReturn:
    line = text.count("\n", 0, at) + 1
    begin = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    end = len(text) if end < 0 else end
    left, right = max(begin, at - CONTEXT), min(end, at + CONTEXT)
    shown = re.sub(r"\s", " ", text[left:right])
    raise TreeError(f"line {line}, column {at - begin + 1}: {message}\n  {shown}\n  {' ' * (at - left)}^")


def to_brackets(tree: Tree) -> str:
    """`[[][]]`, without labels."""
    parts: list[str] = []
    depth = 0
    for level in tree:
        parts.append("]" * (depth - level + 1) + "[")
        depth = level
    return "".join(parts) + "]" * depth


def from_nested(nested: object) -> Tree:
    """The tree of nested tuples or lists: `()` is one node, `((), ())` a root with two. Raises TreeError.

    A list inside of itself is endless and refused.
    """
    levels: list[int] = []
    path: list[int] = []
    stack: list[tuple[object, int]] = [(nested, 1)]
    while stack:
        value, level = stack.pop()
        if not isinstance(value, tuple | list):
            raise TreeError(f"found {type(value).__name__} at level {level}; wanted tuples or lists of such")
        del path[level - 1 :]
        path.append(id(value))
        if len(levels) == NODES_LIMIT:
            endless = len(set(path)) < len(path) and any(path.count(i) > 1 for i in path[-1:])
            raise TreeError("a list is inside of itself" if endless else f"more than {NODES_LIMIT} nodes")
        levels.append(level)
        stack.extend((child, level + 1) for child in value)
    return canonical(levels)


def to_nested(tree: Tree) -> tuple[object, ...]:
    """Nested tuples, `((), ())` for a root with two children. Printing very deep ones is Python's own limit."""
    check_levels(tree)
    below: list[list[object]] = [[] for _ in range(max(tree) + 2)]
    for level in reversed(tree):
        node = tuple(reversed(below[level + 1]))
        below[level + 1] = []
        below[level].append(node)
    root = below[1][0]
    assert isinstance(root, tuple)
    return root


def from_parents(parents: Sequence[int | None]) -> Tree:
    """The tree of a parent array: `parents[i]` is the index of the parent of node i, None or -1 for the root.

    Nodes may stand in any order. Raises TreeError for no root, two roots, an index out of range, or a cycle.
    """
    size = len(parents)
    if size > NODES_LIMIT:
        raise TreeError(f"{size} nodes are too many; at most {NODES_LIMIT}")
    children: list[list[int]] = [[] for _ in parents]
    roots: list[int] = []
    for node, parent in enumerate(parents):
        if parent is None or (parent == PARENT_OF_ROOT and not isinstance(parent, bool)):
            roots.append(node)
        elif isinstance(parent, bool) or not isinstance(parent, int) or not 0 <= parent < size:
            raise TreeError(f"the parent of node {node} is {parent!r}; wanted an index from 0 to {size - 1}, or -1")
        else:
            children[parent].append(node)
    if len(roots) > 1:
        raise TreeError(f"nodes {roots[0]} and {roots[1]} have no parent; a tree has one root")
    reached = set(roots)
    stack = list(roots)
    while stack:
        below = children[stack.pop()]
        reached.update(below)
        stack.extend(below)
    if not size or len(reached) < size:
        raise TreeError(_cycle(parents, reached) if size else "an empty parent array is no tree; the smallest is -1")
    return canonical_of_children(children, roots[0])


def _cycle(parents: Sequence[int | None], reached: set[int]) -> str:
    """Every node that the root does not reach leads up into a cycle: say which."""
    node: int = next(i for i in range(len(parents)) if i not in reached)
    seen: dict[int, None] = {}
    while node not in seen:
        seen[node] = None
        parent = parents[node]
        assert parent is not None
        node = parent
    walked = list(seen)
    cycle = walked[walked.index(node) :]
    shown = " -> ".join(map(str, cycle[:8])) + (f" -> ... ({len(cycle)} nodes)" if len(cycle) > 8 else f" -> {node}")
    return f"nodes are their own ancestors: {shown}; a tree has no cycle"


def to_parents(tree: Tree) -> list[int]:
    """The parent array in preorder, -1 for the root."""
    check_levels(tree)
    return [PARENT_OF_ROOT if parent is None else parent for parent in parents_of(tree)]


def from_system(system: System) -> Tree:
    """The membrane structure of a P system's start configuration, labels aside. Raises TreeError for a graph."""
    return from_parents([cell.parent for cell in system.cells])
