"""Ways to take a tree apart: the coproducts behind composition and substitution of B-series.

Both are tables of (tree, forest, multiplicity), made once for each tree from those of its branches.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from .levels import Tree, branches, graft

Forest = tuple[Tree, ...]
Partition = tuple[Tree, Forest, int]

# All trees of at most 10 nodes are 1205.
_KEPT = 4096


@lru_cache(maxsize=_KEPT)
def cuts(tree: Tree) -> tuple[Partition, ...]:
    """Every subtree that holds the root, with the forest that falls off: the Connes-Kreimer coproduct without its first
    term (the empty subtree). A tree has as many cuts as `(1 + cuts of a branch)` multiply to."""
    found: Counter[tuple[Forest, Forest]] = Counter({((), ()): 1})
    for branch in branches(tree):
        off: list[tuple[Forest, Forest, int]] = [((), (branch,), 1)]
        on = [((kept,), fallen, times) for kept, fallen, times in cuts(branch)]
        extended: Counter[tuple[Forest, Forest]] = Counter()
        for (kept, fallen), times in found.items():
            for more_kept, more_fallen, factor in (*off, *on):
                extended[_merged(kept, more_kept), _merged(fallen, more_fallen)] += times * factor
        found = extended
    return tuple((graft(kept), fallen, times) for (kept, fallen), times in found.items())


@lru_cache(maxsize=_KEPT)
def contractions(tree: Tree) -> tuple[Partition, ...]:
    """Every set of edges cut, 2^(n - 1) in all: the tree that the parts form when each shrinks to a node, and the
    parts (Calaque, Ebrahimi-Fard and Manchon 2011)."""
    found: Counter[tuple[Tree, Forest]] = Counter()
    for part, skeleton, others, times in _open_contractions(tree):
        found[graft(skeleton), _merged(others, (part,))] += times
    return tuple((skeleton, parts, times) for (skeleton, parts), times in found.items())


@lru_cache(maxsize=_KEPT)
def _open_contractions(tree: Tree) -> tuple[tuple[Tree, Forest, Forest, int], ...]:
    """(part with the root, branches of the skeleton below that part, all other parts, multiplicity)."""
    found: Counter[tuple[Forest, Forest, Forest]] = Counter({((), (), ()): 1})
    for branch in branches(tree):
        extended: Counter[tuple[Forest, Forest, Forest]] = Counter()
        for (below, skeleton, others), times in found.items():
            for part, hanging, rest, factor in _open_contractions(branch):
                joined = (_merged(below, (part,)), _merged(skeleton, hanging), _merged(others, rest))
                extended[joined] += times * factor
                apart = (below, _merged(skeleton, (graft(hanging),)), _merged(others, (*rest, part)))
                extended[apart] += times * factor
        found = extended
    return tuple((graft(below), skeleton, others, times) for (below, skeleton, others), times in found.items())


def _merged(one: Forest, other: Forest) -> Forest:
    return tuple(sorted(one + other)) if other else one
