"""Numerical P systems on GPUs: their steps are kernels like any other, in f64 and with i64 draws."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from interpreter import Machine, bind

from echoc.compiler.api import compile_program, lookup
from echoc.compiler.targets.gpu.lower import lower as lower_for_gpu
from echoc.compiler.targets.gpu.render import Device
from echoc.compiler.weights import Weights
from echoc.membranes import numerical_steps
from echoc.membranes.lower.numerical import lower
from echoc.membranes.pep import read

sys.path.insert(0, str(Path(__file__).parents[1] / "membranes"))

from random_systems import random_numerical

FUNCTIONS = """p = { m = { var = {x, y, z};
    pr = {sin(x) + cos(y)*0.5 + tan(x/9) + atan2(y, x)/9 + (x < y) - (z >= 0) * 0.1 -> 1|x + 3|y};
    pr = {sqrt(abs(z)) + log(2 + z*z) - exp(~abs(z)) + min(z, 1) + max(z, ~1) + floor(z) - ceil(z) + tanh(z)
          + abs(z)^1.5/9 [x -> ] 1|z};
    var0 = (0.3, 1, ~0.7); }; }"""
CHOICES = """p = { H = {a, b}; structure = [a [b ]b ]a;
    a = { var = {x, y}; pr = {x/2 + 1 -> 1|y + 1|u}; pr = {y/3 -> 1|x}; pr = {1 -> 1|x + 2|u}; var0 = (1, 2); };
    b = { var = {u}; E = {e}; pr = {u -> 1|x}; pr = {u/2 - x [e -> ] 1|u}; pr = {2 -> 1|u}; E0 = (1); }; }"""
NESTED = """p = { m = { var = {x, y}; pr = {x - (0 - x) - (2 - (y - 1)) -> 1|x + 2|y};
    pr = {1/(2 + y*y) - (3 - x) -> 1|y};
    var0 = (0.3, 1); }; }"""
SYSTEMS = {"functions": FUNCTIONS, "choices": CHOICES, "nested": NESTED} | {str(seed): seed for seed in range(8)}
STEPS = 6


@pytest.mark.parametrize("name", SYSTEMS)
def test_steps_are_those_of_the_interpreter(name: str) -> None:
    source = SYSTEMS[name]
    system = read("s.pep", text=source) if isinstance(source, str) else random_numerical(source)
    program = lower(system)
    low = lower_for_gpu(program, "f32", 32, Device("cuda"))
    machine = Machine(low, Weights(program.skin, lookup({}), {}))
    numbers = {"seed": np.array(5), "run": np.array(2)}
    given = {p.name: numbers[p.name] for p in program.skin.ports if p.direction == "in"}
    for wanted in list(numerical_steps.trace(system, STEPS, 5, 2))[1:]:
        found = machine.step(given, bind(low, given))["values"]
        np.testing.assert_allclose(found, list(wanted.values.values()), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("target", ["cuda:sm_90a", "rocm:gfx942"])
@pytest.mark.parametrize("name", ["functions", "choices"])
def test_machine_code(name: str, target: str, tmp_path: Path) -> None:
    program = lower(read("s.pep", text=str(SYSTEMS[name])))
    artifact = compile_program(program, {}, target=target, output=tmp_path / "x.echo")
    assert artifact.manifest.device == target.partition(":")[0]
    assert {b["spills"] for b in artifact.manifest.raw["kernels"]["binaries"].values()} == {0}
