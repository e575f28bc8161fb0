"""Isomorphism of rooted trees: the canonical form, after Aho, Hopcroft and Ullman (1974, section 3.2).

Level by level from the deepest, every node gets the rank of its subtree among those of its level: the nodes' lists of
their children's ranks, each in falling order, are sorted. Falling lists compare as level sequences do, because a branch
that is a proper prefix of another is followed by a smaller level. No recursion; O(n log n) time.
"""

from __future__ import annotations

from collections.abc import Sequence

from .levels import Tree, check_levels, parents_of


def canonical(levels: Sequence[int]) -> Tree:
    """The canonical level sequence of any level sequence: the isomorphism key of its tree. Raises TreeError."""
    check_levels(levels)
    return canonical_of_children(children_of(levels), 0)


def isomorphic(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two level sequences are of one tree. Raises TreeError if either is of none."""
    return canonical(one) == canonical(other)


def children_of(levels: Sequence[int]) -> list[list[int]]:
    """The positions of each node's children."""
    children: list[list[int]] = [[] for _ in levels]
    for node, parent in enumerate(parents_of(levels)):
        if parent is not None:
            children[parent].append(node)
    return children


def canonical_of_children(children: Sequence[Sequence[int]], root: int) -> Tree:
    """The canonical level sequence of the tree at `root`, where `children[node]` lists the nodes below a node."""
    ranks = subtree_ranks(children, root)
    levels: list[int] = []
    stack = [(root, 1)]
    while stack:
        node, level = stack.pop()
        levels.append(level)
        stack.extend((child, level + 1) for child in sorted(children[node], key=ranks.__getitem__))
    return tuple(levels)


def subtree_ranks(children: Sequence[Sequence[int]], root: int) -> list[int]:
    """A number for each node: on one level, numbers are equal for isomorphic subtrees and ordered as these are."""
    generations = [[root]]
    while generations[-1]:
        generations.append([child for node in generations[-1] for child in children[node]])
    ranks = [0] * len(children)
    for nodes in reversed(generations):
        keys = {node: tuple(sorted((ranks[child] for child in children[node]), reverse=True)) for node in nodes}
        place = {key: rank for rank, key in enumerate(sorted(set(keys.values())))}
        for node, key in keys.items():
            ranks[node] = place[key]
    return ranks
