"""The integers that B-series attach to a tree t: symmetry, density, and numbers of labellings.

    sigma([t1^m1 ... tk^mk]) = prod mi! sigma(ti)^mi        gamma([t1 ... tk]) = |t| prod gamma(ti)

Source: Butcher, Numerical Methods for Ordinary Differential Equations, section 301; Hairer, Lubich and Wanner,
Geometric Numerical Integration, III.1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from .keys import children_of, subtree_ranks
from .levels import Tree, TreeError, check_levels, subtree_sizes

# A path of n nodes has density n!, and a star symmetry (n-1)!, so the answers grow with the tree.
INVARIANTS_LIMIT = 100_000


def order(tree: Tree) -> int:
    """|t|: how many nodes it has. The empty tree has order 0."""
    return len(tree)


def symmetry(tree: Tree) -> int:
    """sigma(t): the order of its automorphism group. Raises TreeError for what is no tree."""
    _check(tree)
    if not tree:
        return 1
    children = children_of(tree)
    ranks = subtree_ranks(children, 0)
    groups = (Counter(ranks[child] for child in below).values() for below in children)
    return _product(math.factorial(size) for sizes in groups for size in sizes if size > 1)


def density(tree: Tree) -> int:
    """gamma(t): the product of all subtree sizes. Raises TreeError for what is no tree."""
    _check(tree)
    return _product(size for size in subtree_sizes(tree) if size > 1)


def monotonic_labellings(tree: Tree) -> int:
    """alpha(t) = |t|! / (sigma gamma): labellings with 1..|t| that grow away from the root, up to isomorphism."""
    return math.factorial(len(tree)) // (symmetry(tree) * density(tree))


def labellings(tree: Tree) -> int:
    """beta(t) = |t|! / sigma: all labellings of the nodes with 1..|t|, up to isomorphism."""
    return math.factorial(len(tree)) // symmetry(tree)


def _check(tree: Tree) -> None:
    if not tree:
        return
    check_levels(tree)
    if len(tree) > INVARIANTS_LIMIT:
        raise TreeError(f"{len(tree)} nodes are too many for exact invariants; at most {INVARIANTS_LIMIT}")


def _product(factors: Iterable[int]) -> int:
    """The product, multiplied pairwise: numbers of like length are what fast multiplication is good at."""
    values = list(factors) or [1]
    while len(values) > 1:
        pairs = [a * b for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + values[len(values) & ~1 :]
    return values[0]
