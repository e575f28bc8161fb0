"""Echo state networks: the equation, known answers, several series, feedback, free run, and what they refuse."""

import warnings

import numpy as np
import pytest

from echoc.membranes.reservoirs import ESN, DeepESN, ReadoutWarning, Reservoir, ReservoirError

RNG = np.random.default_rng(11)
NOISE = RNG.uniform(-0.5, 0.5, (1200, 1))
SINE = np.sin(np.arange(1500) * 0.2)[:, None]


def test_the_states_follow_the_equation() -> None:
    model = ESN(20, 2, leak=0.3, bias=0.5, feedback=1, feedback_scaling=0.4, seed=4)
    layer, x, late = model.layers[0], np.zeros(20), 0.0
    u, y = RNG.standard_normal((6, 2)), RNG.standard_normal((6, 1))
    states = model.states(u, teacher=y)
    for t in range(6):
        drive = layer.input @ np.r_[1.0, u[t]] + layer.recurrent @ x + layer.feedback[:, 0] * late
        x, late = 0.7 * x + 0.3 * np.tanh(drive), y[t, 0]
        np.testing.assert_allclose(states[t], x, rtol=1e-12, atol=1e-14)


def test_a_deep_layer_is_driven_by_the_one_below() -> None:
    model = DeepESN([15, 10], 1, leak=[1.0, 0.5], seed=2)
    low, high = model.layers
    states, x = model.states(NOISE[:50]), np.zeros(10)
    alone = Reservoir([low]).states(NOISE[:50])
    np.testing.assert_allclose(states[:, :15], alone, rtol=1e-12, atol=1e-14)
    for t in range(50):
        x = 0.5 * x + 0.5 * np.tanh(high.recurrent @ x + high.input @ np.r_[1.0, alone[t]])
        np.testing.assert_allclose(states[t, 15:], x, rtol=1e-11, atol=1e-13)


def test_two_initial_states_converge() -> None:
    model = ESN(100, spectral_radius=0.9, seed=1)
    apart = model.states(NOISE, initial=RNG.uniform(-1, 1, 100)) - model.states(NOISE, initial=RNG.uniform(-1, 1, 100))
    assert np.abs(apart[0]).max() > 0.1
    assert np.abs(apart[-1]).max() < 1e-12


def test_memory_capacity_stays_below_the_number_of_units() -> None:
    units, delays, steps = 20, 40, 3000
    u = np.random.default_rng(5).uniform(-1, 1, (steps, 1))
    targets = np.hstack([np.vstack([np.zeros((k, 1)), u[: steps - k]]) for k in range(1, delays + 1)])
    model = ESN(units, input_scaling=0.1, connectivity=0.3, input_to_readout=False, ridge=1e-12, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReadoutWarning)
        found = model.fit(u[:2000], targets[:2000], washout=100).predict(u)[2000:]
    capacity = sum(np.corrcoef(found[:, k], targets[2000:, k])[0, 1] ** 2 for k in range(delays))
    assert 8 < capacity <= units


def test_narma10_is_learnt() -> None:
    u, y = np.random.default_rng(0).uniform(0, 0.5, 2400), np.zeros(2400)
    for t in range(10, 2399):
        y[t + 1] = 0.3 * y[t] + 0.05 * y[t] * y[t - 9 : t + 1].sum() + 1.5 * u[t - 9] * u[t] + 0.1
    model = ESN(150, input_scaling=0.1, bias=0.2, spectral_radius=0.95, seed=0)
    found = model.fit(u[:1999], y[1:2000], washout=200).predict(u[:-1])[2000:, 0]
    assert np.sqrt(np.mean((found - y[2001:]) ** 2) / y[2001:].var()) < 0.3


def test_a_closed_loop_carries_a_sine_on() -> None:
    model = ESN(60, spectral_radius=0.9, input_scaling=0.5, seed=0, ridge=1e-9)
    model.fit(SINE[:999], SINE[1:1000], washout=100)
    np.testing.assert_allclose(model.free_run(200), SINE[1000:1200], atol=1e-3)
    again = model.free_run(100, warmup=SINE[:1200])
    np.testing.assert_allclose(again, SINE[1201:1301], atol=1e-3)
    np.testing.assert_allclose(model.free_run(100), SINE[1301:1401], atol=3e-3)


def test_feedback_generates_without_inputs() -> None:
    model = ESN(60, 0, feedback=1, spectral_radius=0.8, feedback_scaling=0.5, bias=0.1, seed=1, ridge=1e-7)
    none = np.zeros((1000, 0))
    model.fit(none, SINE[:1000], washout=100)
    np.testing.assert_allclose(model.free_run(100), SINE[1000:1100], atol=1e-2)
    taught = model.predict(none, teacher=SINE[:1000])
    np.testing.assert_allclose(taught[200:], SINE[200:1000], atol=1e-4)


def test_feedback_with_inputs_hears_its_own_outputs() -> None:
    u = NOISE[:600]
    y = np.zeros((600, 1))
    for t in range(1, 600):
        y[t] = 0.5 * y[t - 1] + u[t]
    model = ESN(50, 1, feedback=1, feedback_scaling=0.3, seed=3, ridge=1e-6).fit(u[:500], y[:500])
    own = model.predict(u)
    assert np.sqrt(np.mean((own[100:] - y[100:]) ** 2)) < 0.1 * y.std()
    assert model.free_run(100, inputs=u[500:]).shape == (100, 1)
    with pytest.raises(ReservoirError, match="wanted `inputs`"):
        model.free_run(10)


def test_series_are_learnt_together_and_start_anew() -> None:
    parts = [NOISE[:500], NOISE[500:1100]]
    targets = [np.roll(p, 2, axis=0) for p in parts]
    model = ESN(40, seed=2).fit(parts, targets, washout=[30, 50])
    one = [model.states(p) for p in parts]
    rows = np.vstack(
        [np.hstack([np.ones((len(p) - w, 1)), p[w:], s[w:]]) for p, s, w in zip(parts, one, (30, 50), strict=True)]
    )
    wanted = np.vstack([targets[0][30:], targets[1][50:]])
    expected = np.linalg.solve(rows.T @ rows + 1e-8 * np.eye(42), rows.T @ wanted)
    assert np.linalg.norm(rows @ (model.readout.T - expected)) < 1e-6
    found = model.predict(parts)
    assert [len(f) for f in found] == [500, 600]
    np.testing.assert_allclose(found[1], model.predict(parts[1]))


def test_a_saturated_readout_warns() -> None:
    with pytest.warns(ReadoutWarning, match="condition number"):
        ESN(30, input_scaling=0.0, bias=0.0, ridge=0.0).fit(NOISE, NOISE)


def broken(step: int, channel: int, value: float) -> np.ndarray:
    signal = np.zeros((300, 2))
    signal[step, channel] = value
    return signal


@pytest.mark.parametrize(
    ("u", "y", "washout", "words"),
    [
        (broken(7, 1, np.nan), np.zeros(300), 10, r"nan at step 7, channel 1 \(series 0\)"),
        ([np.zeros((300, 2)), broken(9, 0, np.inf)], [np.zeros(300)] * 2, 10, r"inf at step 9, channel 0 \(series 1\)"),
        (np.zeros((300, 2)), broken(3, 1, -np.inf), 10, "targets holds -inf at step 3, channel 1"),
        (np.zeros((300, 3)), np.zeros(300), 10, "3 channels; wanted 2"),
        (np.zeros((2, 3, 4)), np.zeros(300), 10, "has shape"),
        (np.full((300, 2), "a"), np.zeros(300), 10, "wanted real numbers"),
        (np.zeros((300, 2), complex), np.zeros(300), 10, "wanted real numbers"),
        (np.zeros((300, 2)), np.zeros(299), 10, "300 steps and the targets 299"),
        (np.zeros((300, 2)), np.zeros(300), 300, "nothing is left to learn from"),
        (np.zeros((300, 2)), np.zeros(300), -1, "washout of series 0 is -1"),
        (np.zeros((300, 2)), np.zeros(300), [1, 2], "2 washouts for 1 series"),
        (np.zeros((0, 2)), np.zeros(0), 0, "no steps"),
        ([], [], 0, "wanted"),
        (None, np.zeros(3), 0, "wanted real numbers"),
        ([[1.0, 2.0], [3.0]], np.zeros(2), 0, "wanted"),
    ],
)
def test_signals_that_do_not_fit_are_refused(u: object, y: object, washout: object, words: str) -> None:
    with pytest.raises(ReservoirError, match=words):
        ESN(10, 2).fit(u, y, washout=washout)


@pytest.mark.parametrize(
    "options",
    [
        {"units": 0}, {"units": 2.5}, {"units": "ten"}, {"inputs": -1}, {"leak": 0.0}, {"leak": 1.5}, {"leak": "x"},
        {"connectivity": -0.1}, {"spectral_radius": float("nan")}, {"input_scaling": [1.0, 2.0]}, {"seed": -1},
        {"ridge": -1.0}, {"squares": "some"}, {"distribution": "cauchy"}, {"feedback": 1.5},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ReservoirError):
        ESN(**({"units": 20} | options))


def test_runs_that_make_no_sense_are_refused() -> None:
    model = ESN(20)
    with pytest.raises(ReservoirError, match="call fit first"):
        model.predict(NOISE)
    model.fit(NOISE, np.hstack([NOISE, NOISE]))
    with pytest.raises(ReservoirError, match="2 outputs and the reservoir 1 inputs"):
        model.free_run(5)
    with pytest.raises(ReservoirError, match="number of steps is 0"):
        model.free_run(0)
    with pytest.raises(ReservoirError, match="layers"):
        DeepESN([])
    with pytest.raises(ReservoirError, match="2 values for 3 layers"):
        DeepESN([5, 5, 5], leak=[0.1, 0.2])


def test_online_learning_ends_near_the_ridge_solution() -> None:
    targets = np.hstack([np.roll(NOISE, 1, axis=0), np.roll(NOISE, 3, axis=0)])
    model = ESN(30, seed=1, connectivity=0.3)
    learner, errors = model.fit_online(NOISE[:800], targets[:800], washout=50, ridge=1e-6)
    assert errors.shape == (750, 2)
    assert np.abs(errors[-100:]).mean() < 0.2 * np.abs(errors[:20]).mean()
    online = model.predict(NOISE)[800:]
    batch = (
        ESN(30, seed=1, connectivity=0.3, ridge=1e-6).fit(NOISE[:800], targets[:800], washout=50).predict(NOISE)[800:]
    )
    np.testing.assert_allclose(online, batch, atol=1e-5)
    learner.update(model.observe(NOISE)[900], targets[900])


def test_inputs_beyond_float32_are_refused() -> None:
    with pytest.raises(ReservoirError, match="beyond f32"):
        ESN(20, dtype="f32").states(np.full((5, 1), 1e300))
    assert np.isfinite(ESN(20).states(np.full((5, 1), 1e300))).all()
