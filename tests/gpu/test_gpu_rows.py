"""Every op of the table through generated Triton kernels in the interpreter, against its numpy meaning in float64."""

from __future__ import annotations

import numpy as np
import pytest
from device import Case, from_device, interpret, to_device, widened, widened_arrays
from interpreter import Machine, bind
from op_cases import MAKERS
from test_ops import check

from echoc.compiler.api import lookup
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
