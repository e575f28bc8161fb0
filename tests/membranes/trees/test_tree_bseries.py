"""Composition, substitution, modified equations, and conservation, on known answers and by their laws."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tableaus import EULER, GAUSS2, IMPLICIT_EULER, IMPLICIT_MIDPOINT, KNOWN, RK4, TRAPEZOID

from echoc.membranes.trees.bseries import (
    ORDER_LIMIT,
    BSeries,
    adjoint,
    butcher_product,
    compose,
    exact_flow,
    hamiltonian_defects,
    identity,
    inverse,
    modified_equation,
    modifying_integrator,
    of_method,
    order_of,
    rescaled,
    series,
    substitute,
    symplecticity_defects,
    vector_field,
)
from echoc.membranes.trees.coproducts import contractions, cuts
from echoc.membranes.trees.levels import Tree, TreeError, trees, trees_up_to
from echoc.membranes.trees.tableau import Tableau, tableau

P = 5
TREES = tuple(trees_up_to(P))


def random_series(empty: int) -> st.SearchStrategy[BSeries]:
    values = st.lists(st.fractions(-3, 3, max_denominator=4), min_size=len(TREES), max_size=len(TREES))
    return values.map(lambda found: series(P, {(): empty, **dict(zip(TREES, found, strict=True))}))


steps, fields = random_series(1), random_series(0)
laws = settings(max_examples=15, deadline=None)


@laws
@given(steps, steps, random_series(2))
def test_composition_is_associative(a: BSeries, b: BSeries, c: BSeries) -> None:
    assert compose(compose(a, b), c) == compose(a, compose(b, c))
    assert compose(identity(P), c) == c
    assert compose(a, identity(P)) == a


@laws
@given(steps)
def test_the_inverse_goes_back(a: BSeries) -> None:
    assert compose(a, inverse(a)) == identity(P) == compose(inverse(a), a)
    assert adjoint(adjoint(a)) == a


@laws
@given(fields, fields, steps, steps)
def test_laws_of_substitution(f: BSeries, g: BSeries, a: BSeries, b: BSeries) -> None:
    assert substitute(f, substitute(g, a)) == substitute(substitute(f, g), a)
    assert substitute(f, compose(a, b)) == compose(substitute(f, a), substitute(f, b))
    assert substitute(vector_field(P), a) == a
    assert substitute(f, vector_field(P)) == f


@given(st.fractions(-2, 2, max_denominator=5), st.fractions(-2, 2, max_denominator=5))
def test_exact_flows_are_a_group(s: Fraction, t: Fraction) -> None:
    assert compose(exact_flow(P, s), exact_flow(P, t)) == exact_flow(P, s + t)
    assert rescaled(exact_flow(P), s) == exact_flow(P, s)


def test_two_half_steps_of_the_exact_flow_are_one() -> None:
    half = exact_flow(8, Fraction(1, 2))
    assert compose(half, half) == exact_flow(8)


def test_composition_of_methods_is_the_method_of_the_joint_tableau() -> None:
    """Two Euler steps of h/2 are a method of two stages; implicit Euler after Euler is the trapezoidal rule."""
    half = rescaled(of_method(EULER, 7), Fraction(1, 2))
    assert compose(half, half) == of_method(tableau([[], ["1/2"]], ["1/2", "1/2"]), 7)
    backward = rescaled(of_method(IMPLICIT_EULER, 7), Fraction(1, 2))
    assert compose(half, backward) == of_method(TRAPEZOID, 7)
    assert compose(backward, half) == of_method(IMPLICIT_MIDPOINT, 7)
    assert adjoint(of_method(EULER, 7)) == of_method(IMPLICIT_EULER, 7)


@pytest.mark.parametrize(("method", "order"), [case[:2] for case in KNOWN], ids=[case[0].name for case in KNOWN])
def test_the_order_of_the_series_is_that_of_the_tableau(method: Tableau, order: int) -> None:
    assert order_of(of_method(method, 7)) == order


def test_modified_equation_of_explicit_euler() -> None:
    """y' = f - h/2 f'f + h^2 (f''(f, f)/12 + f'f'f/3) + ... (Hairer, Lubich and Wanner, IX.1)."""
    field = modified_equation(of_method(EULER, 6))
    assert field[1,] == 1
    assert field[1, 2] == Fraction(-1, 2)
    assert field[1, 2, 3] == Fraction(1, 3)
    assert field[1, 2, 2] == Fraction(1, 12) * 2  # sigma = 2
    assert substitute(field, exact_flow(6)) == of_method(EULER, 6)


def test_modified_equation_of_euler_on_a_linear_equation() -> None:
    """For f = y only paths count: 1 + h = exp(h~), so their coefficients are those of log(1 + h)."""
    field = modified_equation(of_method(EULER, 8))
    paths = [field[tuple(range(1, n + 1))] for n in range(1, 9)]
    assert paths == [Fraction((-1) ** (n + 1), n) for n in range(1, 9)]


def test_modified_equation_of_implicit_midpoint() -> None:
    """y' = f + h^2 (-f''(f, f)/24 + f'f'f/12) + ...; only even powers of h, as the method is symmetric (HLW IX.2)."""
    step = of_method(IMPLICIT_MIDPOINT, 8)
    field = modified_equation(step)
    assert field[1, 2, 3] == Fraction(1, 12)
    assert field[1, 2, 2] == Fraction(-1, 24) * 2
    assert adjoint(step) == step
    assert all(not field[tree] for tree in trees_up_to(8) if len(tree) % 2 == 0)
    assert any(field[tree] for tree in trees(7))


def test_modified_equations_start_where_the_order_ends() -> None:
    field = modified_equation(of_method(GAUSS2, 6))
    assert all(not field[tree] for tree in trees_up_to(4) if tree != (1,))
    assert [tree for tree in trees(5) if field[tree]] == list(trees(5))
    assert all(not field[tree] for tree in trees(6))
    assert modified_equation(exact_flow(6)) == vector_field(6)


def test_modifying_integrators_make_a_method_exact() -> None:
    for method in (EULER, IMPLICIT_MIDPOINT, RK4):
        step = of_method(method, 6)
        assert substitute(modifying_integrator(step), step) == exact_flow(6)
    # Euler's is the exact flow's own expansion, without its start.
    assert modifying_integrator(of_method(EULER, 6)) == series(6, lambda t: exact_flow(6)[t] if t else 0)


def test_symplectic_methods_and_their_modified_hamiltonians() -> None:
    for method in (IMPLICIT_MIDPOINT, GAUSS2):
        step = of_method(method, 7)
        assert symplecticity_defects(step) == []
        assert hamiltonian_defects(modified_equation(step)) == []
    assert symplecticity_defects(exact_flow(7)) == []
    defects = symplecticity_defects(of_method(EULER, 3))
    assert defects == [((1,), (1,), -1)]
    assert hamiltonian_defects(modified_equation(of_method(EULER, 3)))
    # A method of order p keeps quadratic invariants up to order p.
    assert {len(u) + len(v) for u, v, _ in symplecticity_defects(of_method(RK4, 6))} == {5, 6}


def test_butcher_product() -> None:
    assert butcher_product((1,), (1,)) == (1, 2)
    assert butcher_product((1, 2), (1, 2, 2)) == (1, 2, 3, 3, 2)
    assert butcher_product((1, 2, 2), (1, 2)) == (1, 2, 3, 2, 2)


def test_numbers_of_ways_to_take_a_tree_apart() -> None:
    for tree in trees_up_to(7):
        assert sum(times for _, _, times in contractions(tree)) == 2 ** (len(tree) - 1)
        for parts in (cuts(tree), contractions(tree)):
            for kept, forest, _ in parts:
                nodes = len(kept) + sum(map(len, forest)) - (len(forest) if parts is contractions(tree) else 0)
                assert nodes == len(tree)
    assert sum(times for _, _, times in cuts((1, *(2,) * 5))) == 2**5
    assert len(cuts(tuple(range(1, 8)))) == 7


def test_series_check_what_they_are_given() -> None:
    assert series(2, {(1, 2): "1/2"})[1, 2] == Fraction(1, 2)
    bad: list[tuple[int, dict[Tree, object], str]] = [
        (2, {(1, 2, 3): 1}, "more than 2 nodes"),
        (4, {(1, 2, 3, 2): 1, (1, 2, 2, 3): 1}, "there twice"),
        (2, {(1, 3): 1}, "level 2 is 3"),
        (2, {(1,): 0.5}, "float"),
        (-1, {}, "outside"),
        (ORDER_LIMIT + 1, {}, "outside"),
    ]
    for order, coefficients, message in bad:
        with pytest.raises(TreeError, match=message):
            series(order, coefficients)
    with pytest.raises(TreeError, match="no canonical tree"):
        exact_flow(2)[1, 2, 3]
    with pytest.raises(TreeError, match="up to order 2"):
        exact_flow(2).truncated(3)
    assert exact_flow(4).truncated(2) == exact_flow(2)


def test_operations_refuse_series_of_the_wrong_kind() -> None:
    step, field = exact_flow(3), vector_field(3)
    for call in (
        lambda: compose(field, step),
        lambda: inverse(field),
        lambda: substitute(step, step),
        lambda: modified_equation(field),
        lambda: modifying_integrator(identity(3)),
        lambda: order_of(field),
    ):
        with pytest.raises(TreeError, match="coefficient"):
            call()
