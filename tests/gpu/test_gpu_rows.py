"""Every op of the table through generated Triton kernels in the interpreter, against its numpy meaning in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from device import (
    Arrays,
    Case,
    dequantised,
    from_device,
    interpret,
    port,
    program_of,
    to_device,
    widened,
    widened_arrays,
)
from interpreter import Machine, bind
from op_cases import MAKERS
from random_programs import random_case
from test_ops import check
from test_random_programs import TOLERANCE as FUZZ_TOLERANCE
from test_random_programs import differences

from echoc.compiler.api import lookup
from echoc.compiler.ir import Node, make, symbol
from echoc.compiler.targets.gpu.lower import lower
from echoc.compiler.targets.gpu.render import Device
from echoc.compiler.weights import Weights

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns where values are special
DEVICE = Device("cuda")
CASES = {case.name: case for maker in MAKERS.values() for case in maker() if not case.name.startswith("contract_w")}


def run(case: Case, deterministic: bool = False) -> dict[str, np.ndarray]:
    """The out ports of one case, its kernels interpreted."""
    low = lower(case.program, case.weights_dtype, case.group, DEVICE)
    types = {p.name: p.type for p in case.program.skin.ports}
    inputs = {n: to_device(a, types[n].dtype) for n, a in case.inputs.items()}
    machine = Machine(low, Weights(case.program.skin, lookup(case.weights), {}))
    out = machine.step(inputs, bind(low, case.inputs), deterministic)
    return {n: from_device(a, types[n].dtype) for n, a in out.items()}


@pytest.mark.parametrize("name", list(CASES))
def test_generated_triton_agrees_with_the_meaning(name: str) -> None:
    case = CASES[name]
    want = interpret(case.program, case.inputs, case.weights)
    wide = interpret(widened(case.program), widened_arrays(case.inputs), case.weights)
    check(case, run(case), want, wide)


def rows_of(name: str, outputs: dict[str, Node], inputs: Arrays, high: int = 4096) -> Case:
    symbols = {"T": (1, high)} if any("T" in n.tensor.symbols for n in outputs.values()) else {}
    return Case(name, program_of(outputs, symbols), inputs)


def norm(x: Node) -> Node:
    """x over the root of its last axis' mean square."""
    kept = (*x.shape[:-1], 1)
    square = make("sum", make("mul", x, x), axes=(x.tensor.rank - 1,))
    return make("mul", x, make("rsqrt", make("reshape", square, shape=kept)))


def awkward() -> Iterator[Case]:
    """Rows that a program does not hold at once, symbolic ones, and values that are read at other places."""
    generator = np.random.default_rng(3)

    def draw(*shape: int) -> Any:
        return np.round(generator.standard_normal(shape) * 4).astype(np.float32) / 4  # sums of them are exact

    wide = port("x", 2, 9001)
    scan = make("cumsum", wide, axis=1)
    yield rows_of("a row in chunks", {"y": make("tanh", norm(wide)), "z": scan}, {"x": draw(2, 9001)})
    best = make("argmax", wide, axis=1)
    yield rows_of("the best of a row in chunks", {"y": best, "z": make("max", wide, axes=(1,))}, {"x": draw(2, 9001)})
    across = port("x", 3, symbol("T"))
    yield rows_of("symbolic rows", {"y": norm(across), "z": make("cumsum", across, axis=1)}, {"x": draw(3, 2500)})
    heads = port("x", symbol("T"), 5, 48)
    first = make("slice", heads, starts=(0, 0, 0), stops=(symbol("T"), 5, 24), steps=(1, 1, 1))
    last = make("slice", heads, starts=(0, 0, 24), stops=(symbol("T"), 5, 48), steps=(1, 1, 1))
    turned = make("concat", make("neg", last), first, axis=2)
    both = make("add", norm(heads), norm(turned))
    yield rows_of("heads with norms and halves that turn", {"y": both}, {"x": draw(3, 5, 48)})
    many = port("x", 2, 6, 700)
    yield rows_of("few reduced into many", {"y": make("sum", many, axes=(1,))}, {"x": draw(2, 6, 700)})
    yield rows_of("all in one", {"y": make("sum", make("exp", many), axes=(0, 1, 2))}, {"x": draw(2, 6, 700)})
    tall = port("x", symbol("T"), 600)
    yield rows_of("offsets of more than 32 bits", {"y": norm(tall)}, {"x": draw(3, 600)}, high=1 << 22)
    column = port("x", symbol("T"))
    order = make("sort", column, axis=0, part="indices")
    yield rows_of("a whole axis", {"y": make("take", column, order, axis=0), "z": make("exp", column)}, {"x": draw(90)})


@pytest.mark.parametrize("case", list(awkward()), ids=lambda c: c.name)
def test_awkward_rows(case: Case) -> None:
    want = interpret(widened(case.program), widened_arrays(case.inputs))
    for name, found in run(case).items():
        np.testing.assert_allclose(found, want[name], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("seed", range(6))
def test_random_programs(seed: int) -> None:
    case = random_case(seed)
    case.low = lower(case.program, case.weights_dtype, case.group, DEVICE)
    want = interpret(case.program, case.inputs, dequantised(case))
    assert not differences(case.program, run(case), want, FUZZ_TOLERANCE[case.weights_dtype])
