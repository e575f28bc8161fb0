"""Canonical level sequences of rooted trees, and all trees of n nodes in order.

A level sequence lists the level of every node in preorder, the root's being 1 (for a membrane: how many membranes it is
inside of, itself included). It is canonical when it is the lexicographically largest one of its tree: the subtrees of
every node stand in falling order. The trees of n nodes are ordered by falling sequence: first the path (1, 2, ..., n),
last the star (1, 2, ..., 2).

Source: Beyer and Hedetniemi, Constant time generation of rooted trees, SIAM J. Comput. 9(4), 1980.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from echoc.errors import EchoError

Tree = tuple[int, ...]
"""A canonical level sequence. The empty tree of B-series is ()."""

EMPTY: Tree = ()
LEAF: Tree = (1,)

NODES_LIMIT = 1_000_000


class TreeError(EchoError, ValueError):
    """Something that is not a rooted tree, or a question about trees that has no answer or too large a one."""


def check_levels(levels: Sequence[int]) -> None:
    """Raise TreeError unless `levels` is the level sequence of a tree with root level 1, canonical or not."""
    if not levels:
        raise TreeError("an empty level sequence is no tree; the smallest one is 1")
    if len(levels) > NODES_LIMIT:
        raise TreeError(f"{len(levels)} nodes are too many; at most {NODES_LIMIT}")
    before = 0
    for position, level in enumerate(levels):
        if isinstance(level, bool) or not isinstance(level, int):
            raise TreeError(f"level {position + 1} is {level!r}; levels are whole numbers")
        if position == 0 and level != 1:
            raise TreeError(f"the first level is {level}; the root has level 1")
        if position and not 2 <= level <= before + 1:
            raise TreeError(f"level {position + 1} is {level}; after {before} come levels from 2 to {before + 1}")
        before = level


def generate(n: int) -> Iterator[list[int]]:
    """All canonical level sequences of n nodes in order, in constant amortised time each.

    The *same list* is given every time, changed in place: read it before you go on, and don't write to it.
    `trees` gives tuples. Follows Beyer and Hedetniemi's algorithm with the PREV and SAVE arrays (their section 3):
    `last[v]` is the last position with level v before the end, and `saved` what it was before a position.
    """
    if n < 0:
        raise TreeError(f"a tree of {n} nodes does not exist")
    if n > NODES_LIMIT:
        raise TreeError(f"{n} nodes are too many; at most {NODES_LIMIT}")
    if n == 0:
        return
    levels = list(range(1, n + 1))
    yield levels
    last = list(range(-1, n))  # positions count from 0, levels from 1
    saved = [0] * n
    p = n - 1 if n > 2 else 0  # the last position whose level is more than 2; 0: there is none
    while p > 0:
        levels[p] -= 1
        if p < n - 1 and (levels[p] != 2 or levels[p - 1] != 2):
            shift = p - last[levels[p]]
            while p < n - 1:
                saved[p] = last[levels[p]]
                last[levels[p]] = p
                p += 1
                levels[p] = levels[p - shift]
        while levels[p] == 2:
            p -= 1
            last[levels[p]] = saved[p]
        yield levels


def trees(n: int) -> Iterator[Tree]:
    """All trees of n nodes, each once, in order: A000081(n) of them. None for n = 0; raises TreeError for n < 0."""
    return (tuple(levels) for levels in generate(n))


def trees_up_to(order: int) -> Iterator[Tree]:
    """All trees of 1, 2, ..., `order` nodes."""
    for n in range(1, order + 1):
        yield from trees(n)


def subtree_sizes(levels: Sequence[int]) -> list[int]:
    """How many nodes hang at each node, itself included; in preorder, in linear time."""
    sizes = [1] * len(levels)
    for node, parent in reversed(list(enumerate(parents_of(levels)))):
        if parent is not None:
            sizes[parent] += sizes[node]
    return sizes


def parents_of(levels: Sequence[int]) -> list[int | None]:
    """The position of each node's parent, None for the root."""
    path: list[int] = []
    parents: list[int | None] = []
    for node, level in enumerate(levels):
        del path[level - 1 :]
        parents.append(path[-1] if path else None)
        path.append(node)
    return parents


def branches(tree: Tree) -> list[Tree]:
    """The subtrees at the root's children, largest first: each is canonical when `tree` is."""
    bounds = [*(i for i, level in enumerate(tree) if level == 2), len(tree)]
    return [tuple(level - 1 for level in tree[i:j]) for i, j in pairwise(bounds)]


def graft(subtrees: Iterable[Tree]) -> Tree:
    """The tree [t1, ..., tk]: a new root above canonical trees, in canonical order."""
    return (1, *(level + 1 for tree in sorted(subtrees, reverse=True) for level in tree))
