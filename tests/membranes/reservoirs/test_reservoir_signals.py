"""The benchmark's signals: their integrators' order, and what is known of the systems; small versions of its tasks."""

import numpy as np

from echoc.bench.membranes.reservoirs import LORENZ, MACKEY_GLASS
from echoc.bench.membranes.signals import lorenz, mackey_glass, narma10
from echoc.membranes.reservoirs import ESN


def test_mackey_glass_converges_with_the_substep() -> None:
    runs = [mackey_glass(60, substep=s, discard=0)[:, 0] for s in (0.1, 0.05, 0.025)]
    coarse, fine = np.abs(runs[0] - runs[2]).max(), np.abs(runs[1] - runs[2]).max()
    assert coarse < 1e-4
    assert fine < coarse
    series = mackey_glass(2000)
    assert 0.2 < series.min() < 0.6
    assert 1.2 < series.max() < 1.4


def test_lorenz_is_integrated_to_nine_digits_over_a_unit_of_time() -> None:
    coarse, fine = lorenz(50, discard=0), lorenz(50, substeps=40, discard=0)
    assert np.abs(coarse - fine).max() < 1e-9
    assert np.isclose(lorenz(4000)[:, 2].mean(), 23.5, atol=0.7)


def test_narma_follows_its_recurrence() -> None:
    u, y = (s[:, 0] for s in narma10(60, seed=2))
    wanted = 0.3 * y[40] + 0.05 * y[40] * y[31:41].sum() + 1.5 * u[31] * u[40] + 0.1
    assert y[41] == wanted


def test_a_small_reservoir_goes_on_with_mackey_glass() -> None:
    series = mackey_glass(2100, seed=3) - 1.0
    model = ESN(300, 1, seed=0, **(dict(MACKEY_GLASS) | {"ridge": 1e-10, "squares": "none"}))
    model.fit(series[:2000], series[1:2001], washout=300)
    found = model.free_run(84)[:, 0]
    assert np.abs(found - series[2001:2085, 0]).max() < 0.1 * series.std()


def test_a_small_reservoir_goes_on_with_lorenz() -> None:
    raw = lorenz(4200, seed=1)
    series = (raw - raw.mean(0)) / raw.std(0)
    model = ESN(200, 3, seed=0, **(dict(LORENZ) | {"ridge": 1e-9}))
    model.fit(series[:4000], series[1:4001], washout=300)
    found = model.free_run(100)
    assert np.linalg.norm(found - series[4001:4101], axis=1).max() < 0.4
