"""The spectral radius is computed, and matrices without one are refused."""

import numpy as np
import pytest

from echoc.membranes.reservoirs import ESN, ReservoirError, spectral_radius
from echoc.membranes.reservoirs.weights import _arnoldi, scaled


def test_the_radius_of_known_matrices() -> None:
    assert spectral_radius(np.diag([0.5, -3.0, 2.0])) == pytest.approx(3)
    assert spectral_radius(np.array([[0.0, -2.0], [2.0, 0.0]])) == pytest.approx(2)
    ring = np.roll(np.eye(9), 1, axis=0) * 0.7
    assert spectral_radius(ring) == pytest.approx(0.7)


@pytest.mark.parametrize("seed", range(3))
def test_a_made_reservoir_has_the_radius_asked_for(seed: int) -> None:
    model = ESN(150, spectral_radius=1.1, connectivity=0.05, seed=seed)
    found = np.abs(np.linalg.eigvals(model.layers[0].recurrent)).max()
    assert found == pytest.approx(1.1, rel=1e-6)
    assert np.mean(model.layers[0].recurrent != 0) == pytest.approx(0.05, abs=0.01)


def test_the_iteration_agrees_with_the_eigenvalues() -> None:
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((500, 500)) * (rng.random((500, 500)) < 0.05) / 5
    assert _arnoldi(matrix, 1e-10) == pytest.approx(np.abs(np.linalg.eigvals(matrix)).max(), rel=1e-8)


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((4, 4)),
        np.tril(np.ones((40, 40)), -1),
        np.array([[1.0, -1.0], [1.0, -1.0]]),
    ],
)
def test_a_nilpotent_matrix_cannot_be_scaled(matrix: np.ndarray) -> None:
    assert spectral_radius(matrix) == 0
    with pytest.raises(ReservoirError, match="nilpotent"):
        scaled(matrix, 0.9)


def test_a_hidden_triangle_has_the_radius_zero() -> None:
    order = np.random.default_rng(0).permutation(60)
    assert spectral_radius(np.eye(60, k=1)[np.ix_(order, order)] * 5) == 0


@pytest.mark.parametrize("matrix", [np.ones((2, 3)), np.array([[np.nan]]), np.ones(4)])
def test_what_has_no_radius_is_refused(matrix: np.ndarray) -> None:
    with pytest.raises(ReservoirError):
        spectral_radius(matrix)


def test_one_unit_without_a_connection_is_refused() -> None:
    with pytest.raises(ReservoirError, match="nilpotent"):
        ESN(1, connectivity=0.0)
