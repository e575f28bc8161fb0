"""B-series with exact coefficients, truncated at an order p:

    B(a, h f, y) = a(empty) y + sum over trees t of h^|t| / sigma(t) a(t) F(t)(y)

Every one-step method that commutes with affine maps is one: y1 = B(a, h f, y0), a(t) = phi(t) for a Runge-Kutta method
and 1/gamma(t) for the exact flow. Sources: Hairer, Lubich and Wanner, Geometric Numerical Integration, III.1 and IX.9;
Chartier, Hairer and Vilmart, Algebraic structures of B-series, Found. Comput. Math. 10, 2010. Normalised as there (and
as in BSeries.jl): the symmetry stands outside of the coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from .coproducts import contractions, cuts
from .counting import Progress
from .invariants import density
from .keys import canonical
from .levels import EMPTY, LEAF, Tree, TreeError, branches, graft, trees, trees_up_to
from .numbers import ONE, ZERO, Scalar, as_scalar
from .tableau import Tableau, elementary_weights

ORDER_LIMIT = 10

Partition = tuple[Tree, tuple[Tree, ...], int]


@dataclass(frozen=True, slots=True)
class BSeries:
    """Coefficients of all trees of at most `order` nodes, and of the empty tree (). `series` makes and checks one."""

    order: int
    coefficients: Mapping[Tree, Scalar]

    def __getitem__(self, tree: Tree) -> Scalar:
        """The coefficient of a canonical tree. Raises TreeError for one beyond the truncation, or not canonical."""
        if tree not in self.coefficients:
            raise TreeError(f"{tree} is no canonical tree of at most {self.order} nodes")
        return self.coefficients[tree]

    def truncated(self, order: int) -> BSeries:
        """The same up to a lower order."""
        if not 0 <= order <= self.order:
            raise TreeError(f"this series is known up to order {self.order}, not {order}")
        return BSeries(order, {t: value for t, value in self.coefficients.items() if len(t) <= order})


def series(order: int, coefficients: Mapping[Tree, object] | Callable[[Tree], object]) -> BSeries:
    """A B-series of a function of trees, or of a mapping from level sequences (left out: 0).

    Raises TreeError for trees that are none, beyond the order, or twice there, and for numbers that are not exact.
    """
    _check_order(order)
    if callable(coefficients):
        return BSeries(order, {t: as_scalar(coefficients(t)) for t in (EMPTY, *trees_up_to(order))})
    given: dict[Tree, Scalar] = {}
    for levels, value in coefficients.items():
        tree = canonical(levels) if levels else EMPTY
        if len(tree) > order:
            raise TreeError(f"{levels} has more than {order} nodes")
        if tree in given:
            raise TreeError(f"the tree {tree} is there twice")
        given[tree] = as_scalar(value)
    return BSeries(order, {t: given.get(t, ZERO) for t in (EMPTY, *trees_up_to(order))})


def identity(order: int) -> BSeries:
    """B(a, h f, y) = y: neutral for `compose`."""
    return series(order, {EMPTY: 1})


def vector_field(order: int) -> BSeries:
    """B(a, h f, y) = h f(y): neutral for `substitute`."""
    return series(order, {LEAF: 1})


def exact_flow(order: int, time: Fraction | int = 1) -> BSeries:
    """The flow of y' = f(y) over `time` h: time^|t| / gamma(t)."""
    return series(order, lambda t: Fraction(time) ** len(t) / density(t))


def of_method(method: Tableau, order: int, progress: Progress | None = None) -> BSeries:
    """The B-series of a Runge-Kutta method: its elementary weights."""
    _check_order(order)
    return BSeries(order, {EMPTY: ONE, **dict(elementary_weights(method, order, progress))})


def rescaled(a: BSeries, factor: Fraction | int) -> BSeries:
    """The same series with step size `factor` h."""
    return BSeries(a.order, {t: value * Fraction(factor) ** len(t) for t, value in a.coefficients.items()})


def compose(first: BSeries, second: BSeries) -> BSeries:
    """B(second, h f, B(first, h f, y)): the step `first`, then the step `second` (HLW III.1.4).

    The sum, over all subtrees s that hold the root or are empty, of second(s) times `first` of the forest left over.
    Truncated at the lower order. Raises TreeError unless first(empty) = 1.
    """
    if first[EMPTY] != 1:
        raise TreeError(f"the first series has the coefficient {first[EMPTY]} at the empty tree; a step has 1")
    order = min(first.order, second.order)

    def coefficient(t: Tree) -> Scalar:
        return second[EMPTY] * first[t] + _pair(second, first, cuts(t))

    return _build(order, second[EMPTY], coefficient)


def inverse(a: BSeries) -> BSeries:
    """The step back: compose(a, inverse(a)) = identity = compose(inverse(a), a). Raises TreeError unless a(empty)=1."""
    if a[EMPTY] != 1:
        raise TreeError(f"a series with the coefficient {a[EMPTY]} at the empty tree has no inverse here; a step has 1")
    found: dict[Tree, Scalar] = {EMPTY: ONE}
    for t in trees_up_to(a.order):
        # The subtree that is all of t has the coefficient looked for; the rest is known.
        known = sum((found[s] * _forest(a, rest) * m for s, rest, m in cuts(t) if s != t), start=ZERO)
        found[t] = -(a[t] + known)
    return BSeries(a.order, found)


def adjoint(a: BSeries) -> BSeries:
    """The adjoint method: the inverse with step -h (HLW II.3). A method is symmetric when it is its own adjoint."""
    return rescaled(inverse(a), -1)


def substitute(field: BSeries, outer: BSeries) -> BSeries:
    """B(outer, h g, y) for the vector field h g(y) = B(field, h f, y) (Chartier, Hairer, Vilmart, section 3).

    The sum, over all ways to cut t into connected parts, of `outer` of the tree that the parts form, times `field` of
    every part. Truncated at the lower order. Raises TreeError unless field(empty) = 0.
    """
    if field[EMPTY] != 0:
        raise TreeError(f"the field has the coefficient {field[EMPTY]} at the empty tree; a vector field has 0")
    order = min(field.order, outer.order)
    return _build(order, outer[EMPTY], lambda t: _pair(outer, field, contractions(t)))


def modified_equation(method: BSeries, progress: Progress | None = None) -> BSeries:
    """The vector field whose exact flow is the method: substitute(it, exact_flow) = method (backward error analysis).

    h f~(y) = B(it, h f, y) (HLW IX.9.1). Raises TreeError unless method(empty) = 1; the coefficients of the trees up
    to the method's order, but the first, are 0.
    """
    return _solve_field(exact_flow(method.order), method, progress)


def modifying_integrator(method: BSeries) -> BSeries:
    """The vector field to which the method must be applied to give the exact flow of f: substitute(it, method) =
    exact_flow (Chartier, Hairer, Vilmart, Numerical integrators based on modified differential equations, 2007).

    Raises TreeError unless method(empty) = 1 and the method is consistent up to a factor.
    """
    return _solve_field(method, exact_flow(method.order))


def order_of(a: BSeries) -> int:
    """The highest p, at most the truncation, with a(t) = 1/gamma(t) for all trees of at most p nodes; a step must have
    a(empty) = 1, or TreeError is raised."""
    if a[EMPTY] != 1:
        raise TreeError(f"a series with the coefficient {a[EMPTY]} at the empty tree is no method; a step has 1")
    for n in range(1, a.order + 1):
        if any(a[t] != Fraction(1, density(t)) for t in trees(n)):
            return n - 1
    return a.order


def butcher_product(u: Tree, v: Tree) -> Tree:
    """u o v: v becomes one more branch of u's root."""
    return graft([*branches(u), v])


def symplecticity_defects(a: BSeries) -> list[tuple[Tree, Tree, Scalar]]:
    """(u, v, a(u o v) + a(v o u) - a(u) a(v)) for all pairs where it is not 0, |u| + |v| at most the truncation.

    None: the step keeps quadratic first integrals and is symplectic for Hamiltonian f, up to that order
    (Calvo and Sanz-Serna 1994; HLW VI.7.6 and VI.7.7).
    """
    return _pair_defects(a, lambda u, v: a[u] * a[v])


def hamiltonian_defects(field: BSeries) -> list[tuple[Tree, Tree, Scalar]]:
    """(u, v, b(u o v) + b(v o u)) for all pairs where it is not 0.

    None if and only if the field B(b) is Hamiltonian for every Hamiltonian f, up to the truncation (HLW IX.9.3).
    """
    return _pair_defects(field, lambda u, v: ZERO)


def _pair_defects(a: BSeries, wanted: Callable[[Tree, Tree], Scalar]) -> list[tuple[Tree, Tree, Scalar]]:
    found: list[tuple[Tree, Tree, Scalar]] = []
    for n in range(2, a.order + 1):
        for k in range(1, n // 2 + 1):
            for u in trees(n - k):
                for v in trees(k):
                    if n == 2 * k and v > u:
                        continue
                    defect = a[butcher_product(u, v)] + a[butcher_product(v, u)] - wanted(u, v)
                    if defect:
                        found.append((u, v, defect))
    return found


def _solve_field(flow: BSeries, wanted: BSeries, progress: Progress | None = None) -> BSeries:
    """The field with substitute(field, flow) = wanted: the uncut tree alone has the coefficient looked for."""
    for a in (flow, wanted):
        if a[EMPTY] != 1:
            raise TreeError(f"a method has the coefficient 1 at the empty tree; found {a[EMPTY]}")
    if flow.order and not flow[LEAF]:
        raise TreeError("a method with the coefficient 0 at the tree of one node moves nothing: it can't be solved for")
    found: dict[Tree, Scalar] = {EMPTY: ZERO}
    for t in trees_up_to(flow.order):
        known: Scalar = ZERO
        for skeleton, parts, times in contractions(t):
            if skeleton != LEAF and flow[skeleton]:
                known = known + flow[skeleton] * math.prod((found[part] for part in parts), start=ONE) * times
        found[t] = (wanted[t] - known) / flow[LEAF]
        if progress is not None:
            progress("modified equation", len(found), len(wanted.coefficients))
    return BSeries(flow.order, found)


def _build(order: int, empty: Scalar, coefficient: Callable[[Tree], Scalar]) -> BSeries:
    return BSeries(order, {EMPTY: empty, **{t: coefficient(t) for t in trees_up_to(order)}})


def _pair(outer: BSeries, inner: BSeries, partitions: tuple[Partition, ...]) -> Scalar:
    terms = (outer[tree] * _forest(inner, forest) * m for tree, forest, m in partitions if outer[tree])
    return sum(terms, start=ZERO)


def _forest(a: BSeries, forest: tuple[Tree, ...]) -> Scalar:
    return math.prod((a[tree] for tree in forest), start=ONE)


def _check_order(order: int) -> None:
    if not 0 <= order <= ORDER_LIMIT:
        raise TreeError(f"order {order} is outside 0 .. {ORDER_LIMIT}, the orders of series that are supported")
