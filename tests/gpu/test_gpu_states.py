"""Value states on GPUs: what a step leaves is what the next one finds, also where all states change at once."""

from __future__ import annotations

import numpy as np
import pytest
from device import cast_to_port, from_device, interpret
from interpreter import Machine, bind
from test_states import CASES

from echoc.compiler.api import lookup
from echoc.compiler.targets.gpu.lower import lower
from echoc.compiler.targets.gpu.render import Device
from echoc.compiler.weights import Weights


@pytest.mark.parametrize("name", list(CASES))
def test_states_carry_over(name: str) -> None:
    case = CASES[name]
    low = lower(case.program, "f32", 32, Device("cuda"))
    machine = Machine(low, Weights(case.program.skin, lookup(case.weights), {}))
    states = {s.name: np.zeros(s.type.shape, s.type.dtype.numpy) for s in case.program.skin.states}
    types = {p.name: p.type.dtype for p in case.program.skin.ports}
    generator = np.random.default_rng(1)
    for _ in range(4):
        given = {"u": generator.standard_normal(6).astype(np.float32)}
        want = interpret(case.program, given, case.weights, states)
        states = {n: want[f"next {n}"] for n in states}
        for port, array in machine.step(given, bind(low, given)).items():
            expected = cast_to_port(want[port], types[port])
            found = from_device(array, types[port])
            np.testing.assert_allclose(found, expected, rtol=1e-2 if port == "h" else 1e-5, atol=1e-5)
