"""The compiled kernel against numpy: packings, dtypes, CPU levels, batches, closed loops, and the accuracy of tanh."""

import numpy as np
import pytest

from echoc.compiler.targets.cpu.reservoir import LayerPlan, NetworkPlan, batch_kernel, is_wide, pack
from echoc.compiler.targets.cpu.reservoir_run import ReservoirKernel
from echoc.errors import CompileError, DeviceError, RequestError
from echoc.membranes.reservoirs import ESN, DeepESN
from echoc.membranes.reservoirs.layer import run_layers
from echoc.membranes.reservoirs.weights import random_recurrent

RNG = np.random.default_rng(3)


def plan_of(model: ESN, readout: np.ndarray | None = None, squares: str = "none") -> NetworkPlan:
    layer = model.layers[0]
    return NetworkPlan(
        (LayerPlan(layer.matrix, layer.leak, ((False, 0, model.inputs),)),),
        model.inputs,
        model.feedback,
        readout,
        squares,
    )


def kernel_of(
    plan: NetworkPlan, dtype: str = "f64", wide: bool | None = None, level: str = "native"
) -> ReservoirKernel:
    packed = pack(plan, dtype, is_wide(level) if wide is None else wide)
    code = batch_kernel(dtype, level)
    return ReservoirKernel(code.library, code.name, dtype, packed.data, packed.scratch_bytes, 2)


@pytest.mark.parametrize("level", ["native", "x86-64-v3", "x86-64-v2"])
@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize(("units", "connectivity"), [(1, 1.0), (7, 0.5), (64, 0.1), (131, 0.3), (90, 1.0)])
def test_states_are_those_of_numpy(units: int, connectivity: float, dtype: str, level: str) -> None:
    model = ESN(units, 2, connectivity=connectivity, leak=0.6, bias=0.3, seed=units)
    u, x = RNG.uniform(-1, 1, (3, 150, 2)), RNG.uniform(-1, 1, (3, units))
    kernel = kernel_of(plan_of(model), dtype, level=level)
    state = x.astype(kernel.dtype)
    found, _ = kernel.run(u, state)
    for i in range(3):
        wanted = run_layers(model.layers, u[i], np.zeros((150, 0)), x[i])
        np.testing.assert_allclose(found[i], wanted, atol=1e-13 if dtype == "f64" else 3e-6)
    np.testing.assert_array_equal(state, found[:, -1])


@pytest.mark.parametrize("dtype", ["f64", "f32"])
def test_every_weight_is_in_the_stream_once(dtype: str) -> None:
    matrix = RNG.standard_normal((53, 53 + 4)) * (RNG.random((53, 57)) < 0.2)
    sums = []
    for wide in {False, is_wide("native")}:
        kernel = kernel_of(NetworkPlan((LayerPlan(matrix, 1.0, ((False, 0, 3),)),), 3, 0), dtype, wide)
        state = RNG.uniform(-1, 1, (1, 53)).astype(kernel.dtype)
        before, u = state[0].astype(np.float64), RNG.uniform(-1, 1, (1, 1, 3))
        found, _ = kernel.run(u, state)
        wanted = np.tanh(matrix @ np.r_[before, 1.0, u[0, 0]])
        np.testing.assert_allclose(found[0, 0], wanted, atol=1e-14 if dtype == "f64" else 2e-6)
        sums.append(found)
    assert sums


def test_weights_with_more_than_24_bits_keep_them() -> None:
    model = ESN(80, seed=1)
    longer = plan_of(model).layers[0].matrix * (1 + 1e-9)
    u = RNG.uniform(-1, 1, (1, 100, 1))
    plan = NetworkPlan((LayerPlan(longer, 1.0, ((False, 0, 1),)),), 1, 0)
    found, _ = kernel_of(plan).run(u, np.zeros((1, 80)))
    x = np.zeros(80)
    for t in range(100):
        x = np.tanh(longer @ np.r_[x, 1.0, u[0, t]])
    np.testing.assert_allclose(found[0, -1], x, atol=1e-14)
    assert pack(plan, "f64", True).stream_bytes > 1.3 * pack(plan_of(model), "f64", True).stream_bytes


@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("connectivity", [0.02, 0.1, 0.5, 1.0])
def test_balanced_weights_fill_the_slots(connectivity: float, dtype: str) -> None:
    packed = pack(drawn(512, connectivity, "balanced"), dtype, True)
    assert packed.weights / packed.slots > 0.99


@pytest.mark.parametrize("dtype", ["f64", "f32"])
def test_packing_fills_most_slots_of_any_weights(dtype: str) -> None:
    packed = pack(drawn(500, 0.1, "uniform"), dtype, True)
    assert packed.weights / packed.slots > 0.75


def drawn(units: int, connectivity: float, pattern: str) -> NetworkPlan:
    recurrent = random_recurrent(units, connectivity, np.random.default_rng(units), "uniform", pattern)
    matrix = np.hstack([recurrent, np.zeros((units, 1)), RNG.uniform(-1, 1, (units, 1))])
    return NetworkPlan((LayerPlan(matrix, 1.0, ((False, 0, 1),)),), 1, 0)


@pytest.mark.parametrize("level", ["native", "x86-64-v3"])
@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("pattern", ["balanced", "uniform"])
@pytest.mark.parametrize(("units", "inputs"), [(65, 1), (200, 7), (130, 30)])
def test_patterns_run_as_numpy_does(units: int, inputs: int, pattern: str, dtype: str, level: str) -> None:
    model = ESN(
        units, inputs, pattern=pattern, connectivity=0.2, input_connectivity=0.5, leak=0.8, bias=0.1, seed=units
    )
    u = RNG.uniform(-1, 1, (1, 90, inputs))
    kernel = kernel_of(plan_of(model), dtype, level=level)
    found, _ = kernel.run(u, np.zeros((1, units), kernel.dtype))
    wanted = run_layers(model.layers, u[0], np.zeros((90, 0)), np.zeros(units))
    np.testing.assert_allclose(found[0], wanted, atol=1e-13 if dtype == "f64" else 5e-6)


@pytest.mark.parametrize(("dtype", "unit", "most"), [("f64", 2.0**-52, 2.25), ("f32", 2.0**-23, 2.5)])
def test_tanh_is_accurate_to_units_in_the_last_place(dtype: str, unit: float, most: float) -> None:
    kernel = kernel_of(NetworkPlan((LayerPlan(np.array([[0.0, 0.0, 1.0]]), 1.0, ((False, 0, 1),)),), 1, 0), dtype)
    x = np.concatenate([RNG.uniform(-25, 25, 20000), RNG.standard_normal(20000) * 10.0 ** RNG.uniform(-12, 0, 20000)])
    x = np.concatenate([x, [0.0, -0.0, 1e300 if dtype == "f64" else 1e30, -1e30, 20.0, -19.0]]).astype(kernel.dtype)
    found, _ = kernel.run(x.reshape(1, -1, 1), np.zeros((1, 1), kernel.dtype))
    wanted = np.tanh(x.astype(np.longdouble))
    spacing = np.maximum(np.exp2(np.floor(np.log2(np.maximum(np.abs(wanted), 1e-30)))) * unit, 1e-45)
    assert float((np.abs(found.reshape(-1) - wanted) / spacing).max()) < most


def test_a_batch_gives_what_each_series_gives_alone() -> None:
    model = ESN(40, 1, seed=2)
    kernel = kernel_of(plan_of(model))
    u, x = RNG.uniform(-1, 1, (5, 70, 1)), RNG.uniform(-1, 1, (5, 40))
    together, _ = kernel.run(u, x.copy())
    for i in range(5):
        alone, _ = kernel.run(u[i : i + 1], x[i : i + 1].copy())
        np.testing.assert_array_equal(alone[0], together[i])


def test_a_run_in_two_parts_is_the_run() -> None:
    model = DeepESN([30, 20], 1, seed=2, leak=0.5)
    whole = model.states(u := RNG.uniform(-1, 1, (200, 1)))
    first = model.states(u[:77])
    np.testing.assert_array_equal(whole[77:], model.states(u[77:], initial=first[-1]))


@pytest.mark.parametrize("squares", ["none", "half", "all"])
@pytest.mark.parametrize("feedback", [0, 2])
def test_closed_loops_are_those_of_numpy(feedback: int, squares: str) -> None:
    u = np.stack([np.sin(np.arange(600) * 0.1), np.cos(np.arange(600) * 0.1)], 1)
    options = {"feedback": feedback, "squares": squares, "ridge": 1e-4, "bias": 0.2, "seed": 5, "input_scaling": 0.5}
    drive = u if not feedback else np.zeros((600, 0))
    runs = []
    for device in ("cpu", "ref"):
        model = ESN(50, 0 if feedback else 2, device=device, **options)
        runs.append(model.fit(drive[:499], u[1:500], washout=50).free_run(40))
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-7)


def test_float32_runs_stay_near_float64() -> None:
    u = RNG.uniform(-1, 1, (300, 1))
    wide, short = ESN(100, seed=3).states(u), ESN(100, seed=3, dtype="f32").states(u)
    assert 0 < np.abs(wide - short).max() < 1e-5


def test_arrays_and_options_that_do_not_fit_are_refused() -> None:
    plan = plan_of(ESN(10))
    kernel = kernel_of(plan)
    with pytest.raises(RequestError, match="state is float64 of shape"):
        kernel.run(np.zeros((1, 5, 1)), np.zeros((1, 11)))
    with pytest.raises(RequestError, match="inputs is"):
        kernel.run(np.zeros((1, 5, 2)), np.zeros((1, 10)))
    with pytest.raises(RequestError, match="as many outputs"):
        kernel.run(np.zeros((1, 5, 1)), np.zeros((1, 10)), closed=True)
    with pytest.raises(CompileError, match="unknown reservoir dtype"):
        pack(plan, "f16", False)
    with pytest.raises(CompileError, match="readout has 3 features"):
        pack(plan_of(ESN(10), np.zeros((1, 3))), "f64", False)
    with pytest.raises(DeviceError, match="does not load"):
        ReservoirKernel(b"no library", "reservoir", "f64", pack(plan, "f64", False).data, 4096)


@pytest.mark.parametrize("dtype", ["f64", "f32"])
def test_a_matrix_of_zeros_and_one_of_a_single_weight_run(dtype: str) -> None:
    matrix = np.zeros((70, 72))
    for wanted in (0.0, np.tanh(0.5)):
        kernel = kernel_of(NetworkPlan((LayerPlan(matrix, 1.0, ((False, 0, 1),)),), 1, 0), dtype)
        found, _ = kernel.run(np.full((1, 4, 1), 0.5), np.ones((1, 70), kernel.dtype))
        np.testing.assert_allclose(found[0, :, 69], wanted, atol=1e-6)
        assert not found[0, :, :69].any()
        matrix[69, 71] = 1.0
