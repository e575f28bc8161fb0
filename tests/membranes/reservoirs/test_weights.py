"""The spectral radius is computed, and matrices without one are refused."""

import numpy as np
import pytest

from echoc.compiler.targets.cpu.reservoir import EVEN_COLUMNS, EVEN_ROWS
from echoc.membranes.reservoirs import ESN, ReservoirError, spectral_radius
from echoc.membranes.reservoirs.weights import _arnoldi, random_recurrent, scaled


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


@pytest.mark.parametrize(
    ("size", "connectivity"), [(64, 1.0), (200, 0.3), (333, 0.1), (129, 0.02), (96, 0.0), (65, 0.5)]
)
def test_a_balanced_pattern_has_equal_rows_in_every_tile(size: int, connectivity: float) -> None:
    there = random_recurrent(size, connectivity, np.random.default_rng(size), "bipolar") != 0
    wanted = connectivity * size
    assert set(there.sum(1).tolist()) <= {int(np.floor(wanted + 1e-9)), int(np.ceil(wanted - 1e-9))}
    assert there.mean() == pytest.approx(connectivity, abs=1 / size)
    for row in range(0, size, EVEN_ROWS):
        for column in range(0, size, EVEN_COLUMNS):
            tile = there[row : row + EVEN_ROWS, column : column + EVEN_COLUMNS]
            assert len(set(tile.sum(1).tolist())) == 1
            assert abs(tile[0].sum() - connectivity * tile.shape[1]) < 1


def test_every_entry_of_a_balanced_pattern_is_as_likely() -> None:
    size, connectivity, draws = 72, 0.15, 1000
    rng = np.random.default_rng(11)
    found = np.zeros((size, size))
    for _ in range(draws):
        found += random_recurrent(size, connectivity, rng, "bipolar") != 0
    spread = np.sqrt(connectivity * (1 - connectivity) / draws)
    assert np.abs(found / draws - connectivity).max() < 6 * spread  # 5184 entries: chance of a false alarm 1e-5
    rows = 2 * EVEN_ROWS  # a corner of the last tiles, of fewer rows and columns
    assert (found[rows:, -8:] / draws).mean() == pytest.approx(connectivity, abs=6 * spread)


def test_rows_of_a_tile_have_places_of_their_own() -> None:
    there = random_recurrent(64, 0.25, np.random.default_rng(2), "bipolar") != 0
    assert len({row.tobytes() for row in there}) == 64


def test_patterns() -> None:
    model = ESN(200, connectivity=0.1, pattern="uniform", seed=1)
    assert len(set((model.layers[0].recurrent != 0).sum(1).tolist())) > 5
    with pytest.raises(ReservoirError, match="unknown pattern 'even'; wanted balanced or uniform"):
        ESN(200, pattern="even")
