"""Random programs: the generated code and every pass against the numpy meanings. A failure prints program and seed."""

from __future__ import annotations

import os

import numpy as np
import pytest
from device import Arrays, Built, Case, dequantised, interpret
from random_programs import random_case

from echoc.compiler.ir import Program
from echoc.compiler.ir.text import parse, show
from echoc.compiler.pipeline import program_passes, run_passes

COMPILED = 16  # programs that are compiled unless --seeds or ECHOC_FUZZ_SEEDS asks for another number
INTERPRETED = 150
TOLERANCE = {"f32": 1e-4, "bf16": 3e-2, "int8": 5e-2, "int4": 5e-2}


def count(config: pytest.Config) -> int:
    asked = config.getoption("--seeds")
    return int(asked if asked is not None else os.environ.get("ECHOC_FUZZ_SEEDS", COMPILED))


@pytest.fixture(scope="module")
def cases(pytestconfig: pytest.Config) -> list[Case]:
    """Each random program as it is, and after every pass that changed it."""
    out = []
    for seed in range(count(pytestconfig)):
        case = random_case(seed)
        out.append(case)
        program = case.program
        for place, step in enumerate(program_passes()):
            before, program = program, run_passes(program, [step])
            if program != before:
                name = f"seed{seed} after {place} {step.name}"
                out.append(Case(name, program, case.inputs, case.weights, case.weights_dtype))
    return out


def differences(program: Program, got: Arrays, want: Arrays, tolerance: float) -> str:
    """What is wrong with `got`, with the program; empty where all is well."""
    lines = []
    for name, expected in want.items():
        found = got[name]
        if found.shape != expected.shape or found.dtype != expected.dtype:
            lines.append(f"{name} is {found.dtype}{list(found.shape)}; wanted {expected.dtype}{list(expected.shape)}")
        elif expected.dtype.kind != "f":
            lines += [f"{name}: {np.sum(found != expected)} differ"] if np.any(found != expected) else []
        elif not np.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
            lines.append(f"{name}: error {np.nanmax(np.abs(found - expected))} of {np.nanmax(np.abs(expected))}")
    return "\n".join([*lines, show(program)]) if lines else ""


def test_generated_code_agrees_before_and_after_every_pass(
    cases: list[Case], tmp_path_factory: pytest.TempPathFactory
) -> None:
    built = Built(cases, tmp_path_factory.mktemp("fuzz"))
    wrong = []
    for case in cases:
        if case.error is not None:
            wrong.append(f"{case.name}: {case.error!r}\n{show(case.program)}")
            continue
        want = interpret(case.program, case.inputs, dequantised(case))
        found = differences(case.program, built.run(case.name), want, TOLERANCE[case.weights_dtype])
        wrong += [f"{case.name} ({case.weights_dtype}):\n{found}"] if found else []
    assert cases
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("start", range(0, INTERPRETED, 50))
def test_every_pass_keeps_the_meaning(start: int) -> None:
    for seed in range(start, start + 50):
        case = random_case(seed, size=18)
        want = interpret(case.program, case.inputs, case.weights)
        program = case.program
        for step in program_passes():
            program = run_passes(program, [step])
            found = differences(program, interpret(program, case.inputs, case.weights), want, 1e-4)
            assert not found, f"seed {seed}: {step.name} changed the meaning of\n{show(case.program)}\nto\n{found}"


@pytest.mark.parametrize("start", range(0, INTERPRETED, 50))
def test_the_text_of_a_random_program_is_the_program(start: int) -> None:
    for seed in range(start, start + 50):
        program = random_case(seed, size=30).program
        assert parse(show(program)) == program
