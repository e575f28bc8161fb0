"""Schedules: what is measured is kept and used, changes no result, and a broken database says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from device import program_of

import echoc
from echoc.compiler import schedules
from echoc.compiler.api import compile_program
from echoc.compiler.ir import make, symbol
from echoc.compiler.tuning import CANDIDATES, choose
from echoc.errors import CompileError

T = symbol("T")
N, K = 80, 96
KEY = schedules.matmul_key("i8", 32, 1, N, K)


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tuning.json"
    monkeypatch.setenv("ECHOC_TUNING", str(path))
    return path


def multiply(folder: Path, name: str) -> tuple[list[np.ndarray], list[dict]]:
    """Products of 1 to 300 rows, and the schedules of the matmuls in the artifact."""
    weight = make("weight", name="w", shape=(N, K), dtype="f32")
    x = make("port", name="x", shape=(T, K), dtype="f32")
    program = program_of({"y": make("contract", x, weight, spec="tk,nk->tn")}, {"T": (1, 512)})
    draw = np.random.default_rng(5)
    values = {"w": draw.standard_normal((N, K)).astype(np.float32)}
    artifact = compile_program(program, values, weights_dtype="int8", output=folder / f"{name}.echo")
    loaded = echoc.load(artifact)
    inputs = [draw.standard_normal((t, K)).astype(np.float32) for t in (1, 2, 7, 33, 300)]
    found = [launch["schedule"] for v in artifact.manifest.raw["variants"] for launch in v["launches"]]
    return [loaded.step({"x": rows})["y"] for rows in inputs], [s for s in found if "interleave" in s]


def test_measured_schedules_are_used_and_change_no_result(tmp_path: Path) -> None:
    plain, before = multiply(tmp_path, "plain")
    assert not any("ahead" in s for s in before)
    for i, schedule in enumerate(CANDIDATES[1:]):
        schedules.save("native", {KEY: {"schedule": dict(schedule), "gain": 1.5}})
        tuned, after = multiply(tmp_path, f"tuned{i}")
        assert after and all(schedule.items() <= s.items() for s in after)
        for a, b in zip(plain, tuned, strict=True):
            np.testing.assert_array_equal(a, b)


def test_schedules_of_another_machine_or_level_are_left_alone(database: Path) -> None:
    schedules.save("native", {KEY: {"schedule": {"ahead": 1024}, "gain": 1.1}})
    schedules.save("native", {"other": {"schedule": {}, "gain": 1.0}})
    assert schedules.load("native") == {KEY: {"ahead": 1024}, "other": {}}
    assert schedules.load("x86-64-v3") == {}
    whole = json.loads(database.read_text())
    whole["machines"] = {f"{name}, elsewhere": entry for name, entry in whole["machines"].items()}
    database.write_text(json.dumps(whole))
    assert schedules.load("native") == {}


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", '{"schema": 2, "machines": {}}', '{"schema": 1, "machines": []}',
        '{"schema": 1, "machines": {"m": {"k": {"schedule": {"rows": "1); evil("}}}}}',
        '{"schema": 1, "machines": {"m": {"k": {"schedule": {"rows": true}}}}}',
        '{"schema": 1, "machines": {"m": {"k": {"schedule": {"panels": 1000000}}}}}',
        '{"schema": 1, "machines": {"m": {"k": {"schedule": {"tiles": 4}}}}}',
    ],
)  # fmt: skip
def test_a_broken_database_is_refused_by_name(database: Path, text: str) -> None:
    database.write_text(text)
    with pytest.raises(CompileError, match="tuning database"):
        schedules.load("native")


def test_each_phase_chooses_its_own_part_and_noise_chooses_nothing() -> None:
    candidates = [{}, {"rows": 192, "panels": 8, "ahead": 1024}, {"rows": 96, "panels": 4, "ahead": 4096}]

    def sample(batch: float, prefill: float) -> dict:
        record = {"format": "i8", "group": 32, "interleave": 1, "n": N, "k": K}

        def phase(seconds: float) -> list[dict]:
            return [{"kernel": "gemm_0", "schedule": record, "seconds": seconds}, {"schedule": {}, "seconds": 9.0}]

        return {"decode": phase(1.0), "batch": phase(batch), "prefill": phase(prefill)}

    wild = [sample(1.0, 1.0), sample(1.0, 1.0), sample(50.0, 50.0)]
    (choice,) = choose(candidates, [wild, [sample(0.8, 1.3)] * 3, [sample(1.1, 0.5)] * 3])
    assert choice.kernel == KEY
    assert choice.schedule == {"ahead": 1024, "rows": 96, "panels": 4}
    assert choice.gain == {"batch": 1.25, "prefill": 2.0}
    (choice,) = choose(candidates, [wild, [sample(0.99, 1.0)] * 3, [sample(1.0, 0.99)] * 3])
    assert choice.schedule == {}
