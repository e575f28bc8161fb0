"""Every op of the table through generated CPU code, against its numpy meaning in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import test_attention
import test_states
from device import Built, Case, cast_to_port, dequantised, interpret, widened, widened_arrays
from op_cases import MAKERS, all_cases

from echoc.compiler.ir import DType
from echoc.compiler.ir.ops import OPS, POINTWISE, REWRITING

CASES = {case.name: case for case in all_cases()}
# Quantised weights are compared with their own dequantised values; what is left is the rounding of activations.
WEIGHT_TOLERANCE = {"f32": 1e-5, "bf16": 1e-2, "int8": 2e-2, "int4": 2e-2}
ULPS = {DType.F32: 2.0**-23, DType.F16: 2.0**-11, DType.BF16: 2.0**-8, DType.F64: 2.0**-50}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(list(CASES.values()), tmp_path_factory.mktemp("ops"))


def test_every_op_of_the_table_has_cases() -> None:
    programs = [case.program for cases in (test_attention.CASES, test_states.CASES) for case in cases.values()]
    stateful = {n.op for program in programs for n in program.skin.rules[0].order}
    assert stateful >= {"append", "attend", "arg", "state", "read", "write"}
    # attention over a whole prompt becomes append and attend, or smaller ops: tests/passes/test_expand_attention.py;
    # rewriting becomes kernels of its own: tests/membranes/population and tests/membranes/runs
    assert set(OPS) - set(MAKERS) - stateful - REWRITING == {"attention"}
    for name, maker in MAKERS.items():
        used = {n.op for case in maker() for n in case.program.skin.rules[0].order}
        assert name in used


def tolerance(case: Case, name: str) -> tuple[float, float]:
    """(relative, absolute in units of the largest value) error that an output may have."""
    node = dict(case.program.skin.rules[0].outputs)[name]
    dtype = node.tensor.dtype
    if not dtype.is_float:
        return 0.0, 0.0
    used = {n.op for n in case.program.skin.rules[0].order}
    rtol = max(OPS[op].rtol for op in used)
    if any(op in used - {"cast"} for op in POINTWISE):
        rtol = max(rtol, 8 * ULPS[DType.F32])
    if dtype is DType.F64:
        rtol = ULPS[DType.F64] * 8
    # a 16-bit result is rounded once in the kernel and after every operation by numpy
    rtol = max(rtol, 2 * ULPS[dtype] if dtype in (DType.F16, DType.BF16) else 0.0)
    return rtol, rtol if node.op not in POINTWISE or not node.inputs else 0.0


def check(case: Case, got: dict[str, Any], want: dict[str, Any], wide: dict[str, Any]) -> None:
    for port in case.program.skin.ports:
        if port.direction == "in":
            continue
        name = port.name
        assert got[name].shape == want[name].shape
        assert got[name].dtype == want[name].dtype
        expected = cast_to_port(wide[name], port.type.dtype)
        rtol, atol = tolerance(case, name)
        finite = np.abs(expected[np.isfinite(expected)]).max(initial=0) if port.type.dtype.is_float else 0
        node = dict(case.program.skin.rules[0].outputs)[name]
        # where float32 itself underflows or overflows, numpy's float32 is as good a witness
        close = np.isclose(got[name], want[name], rtol=rtol, atol=0, equal_nan=True)
        expected = np.where(close, got[name], expected)
        np.testing.assert_allclose(
            got[name], expected, rtol=rtol, atol=atol * float(finite) + (1e-37 if rtol else 0), equal_nan=True,
            err_msg=f"{name} = {node.op}({', '.join(str(i.type) for i in node.inputs)}) {dict(node.attrs)}",
        )  # fmt: skip


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("contract_weights")])
def test_generated_code_agrees_with_the_meaning(built: Built, name: str) -> None:
    case = CASES[name]
    want = interpret(case.program, case.inputs, case.weights)
    wide = interpret(widened(case.program), widened_arrays(case.inputs), case.weights)
    check(case, built.run(name), want, wide)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("contract_weights")])
def test_contractions_with_packed_weights(built: Built, name: str, deterministic: bool) -> None:
    case = CASES[name]
    assert case.low is not None or case.error is not None
    got = built.run(name, deterministic=deterministic)
    want = interpret(case.program, case.inputs, dequantised(case))
    for port, expected in want.items():
        error = np.linalg.norm(got[port] - expected) / np.linalg.norm(expected)
        assert error < WEIGHT_TOLERANCE[case.weights_dtype], f"{port}: relative error {error}"


@pytest.mark.parametrize("name", ["sum", "contract", "cumsum", "sort", "scatter", "concat"])
def test_results_do_not_depend_on_the_number_of_threads(built: Built, name: str) -> None:
    one, three = built.run(name, threads=1), built.run(name, threads=3)
    for port in one:
        np.testing.assert_array_equal(one[port], three[port])
