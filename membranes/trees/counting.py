"""How many rooted trees there are (A000081), the position of a tree among those of its size, and the tree at one.

Positions follow `levels.trees`: falling level sequences, from 0. Both directions count instead of enumerating. Let
below(t)[m] be the number of trees of m nodes whose sequence is smaller than that of t (of any size), and G(t)[m] the
number of forests of m nodes whose trees are all smaller than t: the Euler transform of below(t). A tree smaller than
t = [t1 >= ... >= tk] agrees with it in t1 .. t(i-1), and all its further branches are smaller than ti, for one i:

    below(t)[m] = sum over i of G(ti)[m - 1 - |t1| - ... - |t(i-1)|]
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import mul

from .keys import canonical, children_of
from .levels import Tree, TreeError, subtree_sizes

Progress = Callable[[str, int, int], None]

COUNT_LIMIT = 3000
RANK_LIMIT = 200


def count(n: int, progress: Progress | None = None) -> int:
    """A000081(n): rooted trees of n unlabelled nodes; membrane structures of n membranes, the skin included.

    Raises TreeError for n < 0 and for n > COUNT_LIMIT.
    """
    return counts(n, progress)[n]


def counts(n: int, progress: Progress | None = None) -> list[int]:
    """A000081(0..n) by a(m + 1) = (1/m) sum over k = 1..m of (sum over d | k of d a(d)) a(m - k + 1) (OEIS)."""
    if n < 0:
        raise TreeError(f"a tree of {n} nodes does not exist")
    if n > COUNT_LIMIT:
        raise TreeError(f"counting trees of {n} nodes takes too long; at most {COUNT_LIMIT} nodes")
    a = [0, 1][: n + 1]
    divisor_sums = [0] * (n + 1)
    for m in range(1, n):
        for multiple in range(m, n + 1, m):
            divisor_sums[multiple] += m * a[m]
        a.append(sum(map(mul, divisor_sums[1 : m + 1], a[:0:-1])) // m)
        if progress is not None and m % 50 == 0:
            progress("counting", m, n)
    return a


def forests(tree_counts: Sequence[int]) -> list[int]:
    """The Euler transform: how many multisets of trees have m nodes in all, when tree_counts[s] trees have s nodes."""
    n = len(tree_counts) - 1
    divisor_sums = [0] * (n + 1)
    for d in range(1, n + 1):
        if tree_counts[d]:
            for multiple in range(d, n + 1, d):
                divisor_sums[multiple] += d * tree_counts[d]
    found = [1]
    for m in range(1, n + 1):
        found.append(sum(map(mul, divisor_sums[1 : m + 1], reversed(found))) // m)
    return found


def rank(levels: Sequence[int]) -> int:
    """The position of a tree among all trees of its size. The sequence need not be canonical. Raises TreeError."""
    tree = canonical(levels)
    n = len(tree)
    _check_size(n)
    children, sizes = children_of(tree), subtree_sizes(tree)
    known: dict[Tree, list[int]] = {}  # the forests smaller than a subtree; equal subtrees are met often
    below = [0] * (n + 1)
    of_node: list[list[int]] = [[]] * n
    for node in reversed(range(n)):
        shape = tuple(level - tree[node] for level in tree[node : node + sizes[node]])
        if shape in known and node:
            of_node[node] = known[shape]
            continue
        below = [0] * (n + 1)
        before = 1
        for child in children[node]:
            _add_shifted(below, of_node[child], before)
            before += sizes[child]
        if node:
            known[shape] = of_node[node] = forests(below)
    return count(n) - 1 - below[n]


def unrank(n: int, position: int, progress: Progress | None = None) -> Tree:
    """The tree of n nodes at a position: `unrank(n, rank(t)) == t` for canonical t of n nodes.

    Raises TreeError for a position outside 0 .. A000081(n) - 1 and for n > RANK_LIMIT.
    """
    _check_size(n)
    total = count(n)
    if not 0 <= position < total:
        raise TreeError(f"position {position} is outside 0 .. {total - 1}, the {total} trees of {n} nodes")
    wanted = total - 1 - position  # how many trees are smaller than the one looked for
    growing = _Growing.root(n)
    while len(growing.levels) < n:
        growing = _next_node(growing, wanted)
        if progress is not None:
            progress("unranking", len(growing.levels), n)
    return tuple(growing.levels)


def _next_node(growing: _Growing, wanted: int) -> _Growing:
    """The prefix with one node more of the tree that `wanted` trees are smaller than.

    The tree is at least as large as its prefix, read as a tree; so the next level is the highest for which that has
    at most `wanted` smaller ones. Most often it is near the highest possible: gallop down from there, then bisect.
    """
    high = growing.highest_next()
    low, stride = high, 1
    best = growing.grown(low)
    while best.smaller > wanted:
        high = low - 1
        low = max(2, low - stride)
        stride *= 2
        best = growing.grown(low)
    while low < high:
        middle = (low + high + 1) // 2
        candidate = growing.grown(middle)
        if candidate.smaller <= wanted:
            low, best = middle, candidate
        else:
            high = middle - 1
    return best


def random_tree(n: int, seed: int | random.Random, progress: Progress | None = None) -> Tree:
    """A tree drawn uniformly from all trees of n nodes. Equal seeds give equal trees. Raises TreeError."""
    generator = seed if isinstance(seed, random.Random) else random.Random(seed)
    _check_size(n)
    return unrank(n, generator.randrange(count(n)), progress)


def _check_size(n: int) -> None:
    if n < 1:
        raise TreeError(f"there is no tree of {n} nodes; the smallest has 1")
    if n > RANK_LIMIT:
        raise TreeError(f"positions among trees of {n} nodes take too long; at most {RANK_LIMIT} nodes")


def _add_shifted(into: list[int], counts_of: Sequence[int], shift: int) -> None:
    for m in range(shift, min(len(into), len(counts_of) + shift)):
        into[m] += counts_of[m - shift]


@dataclass(slots=True)
class _Open:
    """A node on the rightmost path. `below` counts by its closed branches alone, `closed` is 1 + their nodes,
    `forests` are those smaller than the node's subtree as it stands, the open branch included."""

    start: int
    below: list[int]
    closed: int
    forests: list[int]


@dataclass(slots=True)
class _Growing:
    """A prefix of a level sequence, which is itself a tree: of n nodes in the end, `smaller` trees being smaller."""

    n: int
    levels: list[int]
    path: list[_Open]
    smaller: int

    @classmethod
    def root(cls, n: int) -> _Growing:
        return cls(n, [1], [cls._leaf(n, 0)], 0)

    @staticmethod
    def _leaf(n: int, start: int) -> _Open:
        room = n - start
        return _Open(start, [0] * (room + 1), 1, [1] + [0] * room)

    def highest_next(self) -> int:
        """The highest level that keeps the sequence canonical: no branch may outgrow the one before it."""
        highest = self.levels[-1] + 1
        for level in range(2, self.levels[-1] + 1):
            start = self.path[level - 1].start
            before = self._branch_before(level, start)
            now = self.levels[start:]
            if before is not None and before[: len(now)] == now:
                highest = min(highest, before[len(now)] if len(now) < len(before) else level)
        return highest

    def _branch_before(self, level: int, start: int) -> list[int] | None:
        for i in range(start - 1, self.path[level - 2].start, -1):
            if self.levels[i] == level:
                return self.levels[i:start]
        return None

    def grown(self, level: int) -> _Growing:
        """The same with one node more, at `level`."""
        start = len(self.levels)
        path = [_Open(o.start, o.below, o.closed, o.forests) for o in self.path[: level - 1]]
        if level <= len(self.path):
            closing, parent = self.path[level - 1], path[-1]
            parent.below = list(parent.below)
            _add_shifted(parent.below, closing.forests, parent.closed)
            parent.closed += start - closing.start
        path.append(self._leaf(self.n, start))
        smaller = 0
        for at in reversed(range(level - 1)):
            node = path[at]
            below = list(node.below)
            _add_shifted(below, path[at + 1].forests, node.closed)
            if at:
                node.forests = forests(below)
            else:
                smaller = below[self.n]
        return _Growing(self.n, [*self.levels, level], path, smaller)
