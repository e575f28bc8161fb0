"""The order conditions of Runge-Kutta methods as formulas: `sum(i,j) b_i c_i a_ij c_j = 1/8`.

A node with children gets an index, a leaf is a factor c of its parent (c_i = sum over j of a_ij); the conditions up to
order p are 1, 2, 4, 8, 17, 37, 85, 200, 486, 1205, ... in number (partial sums of A000081).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from .invariants import density
from .levels import Tree, TreeError, check_levels, parents_of, trees_up_to

FORMULAS_LIMIT = 14
_LETTERS = "ijklmnopqr"


@dataclass(frozen=True, slots=True)
class Condition:
    """phi(tree) = 1/gamma(tree), the left side spelled by `formula`."""

    tree: Tree
    formula: str
    value: Fraction

    def __str__(self) -> str:
        return f"{self.formula} = {self.value}"


def order_condition(tree: Tree) -> Condition:
    """The condition of one canonical tree. Raises TreeError for what is no tree."""
    check_levels(tree)
    parents = parents_of(tree)
    inner = sorted({parent for parent in parents if parent is not None}) or [0]
    letters = {node: _index(place, len(inner)) for place, node in enumerate(inner)}
    leaves = dict.fromkeys(inner, 0)
    for node, parent in enumerate(parents):
        if parent is not None and node not in letters:
            leaves[parent] += 1
    factors: list[str] = []
    for node in inner:
        parent = parents[node]
        factors.append(f"b_{letters[node]}" if parent is None else f"a_{letters[parent]}{letters[node]}")
        if leaves[node]:
            power = f"^{leaves[node]}" if leaves[node] > 1 else ""
            factors.append(f"c_{letters[node]}{power}")
    formula = f"sum({','.join(letters.values())}) {' '.join(factors)}"
    return Condition(tree, formula, Fraction(1, density(tree)))


def order_conditions(order: int) -> Iterator[Condition]:
    """All conditions of order 1 .. `order`, in the order of the trees. Raises TreeError beyond FORMULAS_LIMIT."""
    if not 1 <= order <= FORMULAS_LIMIT:
        raise TreeError(f"order {order} is outside 1 .. {FORMULAS_LIMIT}")
    return (order_condition(tree) for tree in trees_up_to(order))


def _index(place: int, total: int) -> str:
    return _LETTERS[place] if total <= len(_LETTERS) else f"{{i{place + 1}}}"
