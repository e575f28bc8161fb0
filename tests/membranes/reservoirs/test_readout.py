"""Ridge regression through QR, its warnings, and recursive least squares."""

import warnings

import numpy as np
import pytest

from echoc.membranes.reservoirs import RLS, ReadoutWarning, ReservoirError, RidgeFactor

RNG = np.random.default_rng(7)
ROWS, TARGETS = RNG.standard_normal((900, 12)), RNG.standard_normal((900, 2))


def factor_of(rows: np.ndarray, targets: np.ndarray, chunk: int) -> RidgeFactor:
    factor = RidgeFactor(rows.shape[1], targets.shape[1])
    for begin in range(0, len(rows), chunk):
        factor.add(rows[begin : begin + chunk], targets[begin : begin + chunk])
    return factor


@pytest.mark.parametrize("ridge", [0.0, 1e-12, 3.0])
@pytest.mark.parametrize("chunk", [1, 7, 900])
def test_weights_are_those_of_the_normal_equations(ridge: float, chunk: int) -> None:
    wanted = np.linalg.solve(ROWS.T @ ROWS + ridge * np.eye(12), ROWS.T @ TARGETS).T
    fit = factor_of(ROWS, TARGETS, chunk).solve(ridge)
    np.testing.assert_allclose(fit.weights, wanted, rtol=1e-10, atol=1e-13)
    assert (fit.rank, fit.samples) == (12, 900)
    errors = TARGETS - ROWS @ wanted.T
    np.testing.assert_allclose(fit.residual**2, (errors**2).sum(0) + ridge * (wanted**2).sum(1), rtol=1e-10)


def test_a_factor_holds_no_more_rows_than_it_has_columns() -> None:
    factor = factor_of(ROWS, TARGETS, 50)
    assert factor._factor.shape == (14, 14)


def test_weights_keep_digits_that_normal_equations_lose() -> None:
    rows = np.vander(np.linspace(0, 1, 200), 12)
    exact = np.arange(1.0, 13.0)[:, None]
    found = factor_of(rows, rows @ exact, 64).solve(0.0).weights[0]
    normal = np.linalg.lstsq(rows.T @ rows, rows.T @ (rows @ exact), rcond=0)[0][:, 0]
    assert np.abs(found - exact[:, 0]).max() < 1e-6
    assert np.abs(normal - exact[:, 0]).max() > 1e-5


@pytest.mark.parametrize(
    ("rows", "cause", "rank"),
    [
        (np.hstack([ROWS, np.zeros((900, 1))]), "1 features are always zero", 12),
        (np.hstack([ROWS, ROWS[:, :1] + ROWS[:, 1:2]]), "feature 12 is a combination", 12),
        (ROWS[:5], "fewer samples", 5),
    ],
)
def test_a_singular_readout_is_solved_with_least_norm_and_a_warning(rows: np.ndarray, cause: str, rank: int) -> None:
    with pytest.warns(ReadoutWarning, match=cause):
        fit = factor_of(rows, TARGETS[: len(rows)], 100).solve(0.0)
    wanted = np.linalg.lstsq(rows, TARGETS[: len(rows)], rcond=None)[0].T
    np.testing.assert_allclose(fit.weights, wanted, atol=1e-10)
    assert fit.rank == rank
    assert fit.condition > 1e12


def test_a_ridge_makes_a_singular_readout_regular() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = factor_of(np.hstack([ROWS, ROWS]), TARGETS, 100).solve(1e-3)
    np.testing.assert_allclose(fit.weights[:, :12], fit.weights[:, 12:], atol=1e-9)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ReservoirError, match="no samples"):
        RidgeFactor(3, 1).solve(1.0)


def test_recursive_least_squares_ends_at_the_ridge_solution() -> None:
    learner = RLS(12, 2, ridge=0.5)
    first = learner.update(ROWS[0], TARGETS[0])
    np.testing.assert_array_equal(first, TARGETS[0])
    for row, target in zip(ROWS[1:], TARGETS[1:], strict=True):
        learner.update(row, target)
    np.testing.assert_allclose(learner.weights, factor_of(ROWS, TARGETS, 900).solve(0.5).weights, atol=1e-11)


def test_forgetting_weighs_samples_by_their_age() -> None:
    learner = RLS(12, 2, ridge=1e-3, forgetting=0.99)
    for row, target in zip(ROWS, TARGETS, strict=True):
        learner.update(row, target)
    weight = 0.99 ** (np.arange(899, -1, -1) / 2)[:, None]
    wanted = factor_of(ROWS * weight, TARGETS * weight, 900).solve(1e-3 * 0.99**900).weights
    np.testing.assert_allclose(learner.weights, wanted, atol=1e-10)


@pytest.mark.parametrize("bad", [np.full(12, np.nan), np.zeros(11)])
def test_recursive_least_squares_refuses_bad_samples(bad: np.ndarray) -> None:
    learner = RLS(12, 2)
    with pytest.raises(ReservoirError):
        learner.update(bad, TARGETS[0])
    assert not learner.weights.any()
