"""Exact numbers, tableaus, their orders, and the formulas of order conditions."""

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tableaus import DORMAND_PRINCE, EULER, GAUSS2, HEUN, KNOWN, RK4

from echoc.membranes.trees.conditions import order_condition, order_conditions
from echoc.membranes.trees.levels import TreeError, trees_up_to
from echoc.membranes.trees.numbers import Scalar, as_scalar, spell, square_root, surd
from echoc.membranes.trees.tableau import (
    Tableau,
    elementary_weight,
    elementary_weights,
    exact_order,
    is_symplectic,
    read_tableau,
    stage_weights,
    tableau,
)

rationals = st.fractions(-5, 5, max_denominator=6)
surds = st.builds(surd, rationals, rationals, st.just(3))


@pytest.mark.parametrize(
    ("method", "order", "embedded", "explicit", "symplectic"), KNOWN, ids=[case[0].name for case in KNOWN]
)
def test_known_methods_have_their_order(
    method: Tableau, order: int, embedded: int | None, explicit: bool, symplectic: bool
) -> None:
    report = exact_order(method)
    assert (report.order, report.exact) == (order, True)
    assert {len(failure.tree) for failure in report.failures} == {order + 1}
    assert method.explicit == explicit
    assert is_symplectic(method) == symplectic
    if embedded is not None:
        assert exact_order(method.embedded()).order == embedded


def test_failures_are_all_conditions_that_fail_and_only_those() -> None:
    report = exact_order(HEUN)
    assert [str(failure) for failure in report.failures] == [
        "[[[]]]: phi = 0, wanted 1/gamma = 1/6",
        "[[][]]: phi = 1/2, wanted 1/gamma = 1/3",
    ]
    assert len(exact_order(RK4).failures) == 9
    # Of the 20 conditions of order 6, Dormand and Prince's method meets 9.
    assert len(exact_order(DORMAND_PRINCE).failures) == 11


def test_a_limit_gives_a_lower_bound() -> None:
    report = exact_order(RK4, limit=3)
    assert (report.order, report.exact, report.failures, report.searched) == (3, False, (), 3)
    assert exact_order(tableau([[]], [2])).order == 0


@pytest.mark.parametrize("limit", [0, -1, 15, 10**9])
def test_limits_out_of_range_are_refused(limit: int) -> None:
    with pytest.raises(TreeError, match="order"):
        exact_order(EULER, limit=limit)


def test_weights_one_by_one_are_those_in_a_row() -> None:
    for tree, weight in elementary_weights(GAUSS2, 6):
        assert elementary_weight(GAUSS2, tree) == weight
    assert elementary_weight(GAUSS2, ()) == 1
    path = tuple(range(1, 2001))
    assert stage_weights(EULER, path) == [0]
    assert elementary_weight(tableau([[1]], [1]), path) == 1


@given(surds, surds, surds)
def test_numbers_are_a_field(x: Scalar, y: Scalar, z: Scalar) -> None:
    assert (x + y) * z == x * z + y * z
    assert x - y == -(y - x)
    if y:
        assert x / y * y == x
        assert 1 / y * y == 1
    assert as_scalar(spell(x)) == x
    assert hash(x + y - y) == hash(x)
    assert math.isclose(float(x * y), float(x) * float(y), rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/2", Fraction(1, 2)),
        (" -3 / 4 ", Fraction(-3, 4)),
        ("0.25", Fraction(1, 4)),
        ("1/2-1/3*2", Fraction(-1, 6)),
        ("sqrt(4)", Fraction(2)),
        ("sqrt(0)", Fraction(0)),
        ("sqrt(12)/2", square_root(3)),
        ("sqrt(3/4)", surd(Fraction(0), Fraction(1, 2), 3)),
        ("(3 - sqrt(3))/6", surd(Fraction(1, 2), Fraction(-1, 6), 3)),
        ("sqrt(3)*sqrt(3)", Fraction(3)),
        (7, Fraction(7)),
    ],
)
def test_numbers_as_text(text: object, value: Scalar) -> None:
    assert as_scalar(text) == value


@pytest.mark.parametrize(
    "value",
    [
        *("", "1/0", "1//2", "x", "1/2)", "(" * 60, "sqrt(-1)", "1e999999999", "sqrt(2)+sqrt(3)", "nan", "1 2"),
        *("sqrt 2", "sqrt(sqrt(2))", "sqrt(10000000019)", "9" * 5000, "1/(2-2)", "--1", "٣"),
        *(0.5, None, True, [], b"1"),
    ],
)
def test_what_is_no_exact_number_is_refused(value: object) -> None:
    with pytest.raises(TreeError):
        as_scalar(value)


def test_integers_too_long_to_print_are_refused() -> None:
    with pytest.raises(TreeError, match="bits"):
        as_scalar(10**5000)
    assert spell(Fraction(1, 3**5000)) == "(a number of 7925 bits)"


@given(st.text(alphabet="0123456789./*+-() sqrt", max_size=25))
def test_any_text_is_a_number_or_refused(text: str) -> None:
    try:
        value = as_scalar(text)
    except TreeError:
        return
    assert as_scalar(spell(value)) == value


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "wanted an object"),
        ({"A": [[]]}, '"b" is missing'),
        ({"A": [[]], "b": [1], "d": 2}, "unknown key 'd'"),
        ({"A": [[]], "b": []}, "b has 0 weights"),
        ({"A": [[]], "b": [0] * 65}, "at most 64"),
        ({"A": [[]], "b": "1"}, "b is str"),
        ({"A": 3, "b": [1]}, "A is int"),
        ({"A": [3], "b": [1]}, r"A\[1\] is int"),
        ({"A": [[], [1]], "b": [1]}, "A has 2 rows and b has 1 weights"),
        ({"A": [[], [1, 0, 0]], "b": [1, 0]}, "row 2 of A has 3 numbers"),
        ({"A": [[], ["1/x"]], "b": [1, 0]}, r"A\[2\]\[1\]: '1/x', column 3"),
        ({"A": [[0.5]], "b": [1]}, "is a float"),
        ({"A": [[], ["1/2"]], "b": [0, 1], "c": [0, "1/3"]}, "row 2 of A sums to 1/2"),
        ({"A": [[]], "b": [1], "c": []}, "c has 0 nodes"),
        ({"A": [[]], "b": [1], "b_hat": [1, 0]}, "b_hat has 2 weights"),
        ({"A": [[]], "b": [1], "name": 3}, '"name" must be a text'),
    ],
)
def test_malformed_tableaus_are_refused(tmp_path: Path, document: object, message: str) -> None:
    path = tmp_path / "method.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(TreeError, match=message) as caught:
        read_tableau(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b" " * ((1 << 20) + 1), b"1" * 5000])
def test_files_that_hold_no_tableau_are_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "method.json"
    path.write_bytes(raw)
    with pytest.raises(TreeError, match=r"method\.json"):
        read_tableau(path)


def test_floats_need_a_tolerance() -> None:
    root = math.sqrt(3) / 6
    rows = [[0.25, 0.25 - root], [0.25 + root, 0.25]]
    with pytest.raises(TreeError, match="is a float"):
        tableau(rows, [0.5, 0.5])
    method = tableau(rows, [0.5, 0.5], [0.5 - root, 0.5 + root], tolerance=1e-14)
    assert method.a[0][0] == Fraction(1, 4)
    assert exact_order(method, tolerance=1e-14).order == 4
    assert exact_order(method).order < 4
    assert is_symplectic(method, tolerance=1e-14)
    for tolerance in (math.nan, math.inf, -1.0):
        with pytest.raises(TreeError, match="tolerance"):
            exact_order(method, tolerance=tolerance)
    with pytest.raises(TreeError, match="is a float"):
        tableau([[math.nan]], [1], tolerance=1.0)


def test_a_method_without_embedded_weights_says_so() -> None:
    with pytest.raises(TreeError, match="b_hat"):
        EULER.embedded()


def test_coefficients_without_a_common_denominator_are_given_up_on() -> None:
    rows = [[Fraction(1, 10**120 + 64 * i + j + 1) for j in range(20)] for i in range(20)]
    method = tableau(rows, [1, *[0] * 19])
    with pytest.raises(TreeError, match="simplify the coefficients"):
        for _ in elementary_weights(method, 8):
            pass


def test_formulas() -> None:
    assert [str(condition) for condition in order_conditions(4)] == [
        "sum(i) b_i = 1",
        "sum(i) b_i c_i = 1/2",
        "sum(i,j) b_i a_ij c_j = 1/6",
        "sum(i) b_i c_i^2 = 1/3",
        "sum(i,j,k) b_i a_ij a_jk c_k = 1/24",
        "sum(i,j) b_i a_ij c_j^2 = 1/12",
        "sum(i,j) b_i c_i a_ij c_j = 1/8",
        "sum(i) b_i c_i^3 = 1/4",
    ]
    assert "a_{i1}{i2}" in order_condition(tuple(range(1, 13))).formula


def test_numbers_of_conditions() -> None:
    """Hairer, Norsett and Wanner, table II.2.3."""
    assert [sum(1 for _ in order_conditions(p)) for p in range(1, 11)] == [1, 2, 4, 8, 17, 37, 85, 200, 486, 1205]
    for order in (0, -1, 99):
        with pytest.raises(TreeError, match="outside"):
            order_conditions(order)


def test_formulas_mean_the_elementary_weights() -> None:
    """Each formula, read and summed over its indices by itself, is the weight computed from the tree."""
    method = GAUSS2
    for tree in trees_up_to(6):
        formula = order_condition(tree).formula
        head, *factors = formula.split(" ")
        indices = head.removeprefix("sum(").removesuffix(")").split(",")
        total: Scalar = Fraction(0)
        for code in range(method.stages ** len(indices)):
            at = {name: code // method.stages**place % method.stages for place, name in enumerate(indices)}
            term: Scalar = Fraction(1)
            for factor in factors:
                symbol, rest = factor.split("_")
                letters, _, power = rest.partition("^")
                if symbol == "a":
                    term = term * method.a[at[letters[0]]][at[letters[1]]]
                else:
                    for _ in range(int(power or 1)):
                        term = term * (method.b if symbol == "b" else method.c)[at[letters]]
            total = total + term
        assert total == elementary_weight(method, tree)
