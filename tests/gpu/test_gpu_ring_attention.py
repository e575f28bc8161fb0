"""Attention of a few rows in CUDA, on a host machine, against the numpy meanings of append and attend."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_chains import ChainLaunches
from device import interpret
from launches import close
from test_gpu_attention import Rows, attention, memory

from echoc.compiler.ir import Node, Program, make

TOLERANCE = {
    "f32": 2e-6,
    "f16": 1e-5,
    "bf16": 1e-5,
    "i8": 1e-5,
    "f8": 1e-5,
}  # entries are rounded alike, weights stay whole


def run(program: Program, rows: Rows, most: int = 4, architecture: str = "sm_90a", left: int = 0) -> None:
    inputs, states, sizes = memory(program, rows, 1)
    launches = ChainLaunches(program, most, architecture)
    assert [k.language for k in launches.kernels].count("triton") == left
    found = launches.run(inputs, {}, sizes, states)["out"]
    wanted = interpret(program, inputs, {}, {n: np.array(s) for n, s in states.items()})
    kv = str(program.skin.states[0].type.dtype)
    close(found, wanted["out"], TOLERANCE[kv])
    for name in ("k", "v"):
        step = 1e-6 if kv in ("i8", "f8") else 0.0
        assert np.allclose(launches.state(name), wanted[f"next {name}"], rtol=step, atol=0, equal_nan=True)
        where = inputs["block_table"][inputs["sequences"], inputs["positions"] // 16], inputs["positions"] % 16
        assert np.array_equal(launches.state(name)[where], wanted[f"next {name}"][where])


RAGGED: Rows = [(1, 2, 60), (0, 1, 300), (2, 1, 0)]


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16", "i8", "f8"])
def test_rows_of_one_sequence_see_each_other(kv: str) -> None:
    run(attention(4, 2, 16, kv=kv), RAGGED)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "v_dim", "architecture"),
    [(3, 3, 16, 0, "sm_80"), (7, 1, 24, 0, "sm_90a"), (6, 2, 80, 48, "sm_80")],
)
def test_sizes_of_heads(heads: int, kv_heads: int, dim: int, v_dim: int, architecture: str) -> None:
    run(attention(heads, kv_heads, dim, v_dim), [(0, 1, 90)], 1, architecture)


@pytest.mark.parametrize("kv", ["i8", "f8"])
def test_8_bits_with_all_that_bends_scores(kv: str) -> None:
    run(attention(6, 2, 80, 48, kv=kv, window=70, softcap=3.0, sinks=True), RAGGED)


def test_sinks_take_weight_in_the_merge() -> None:
    run(attention(2, 1, 16, sinks=True), RAGGED)


@pytest.mark.parametrize("window", [1, 70])
def test_windows(window: int) -> None:
    run(attention(2, 1, 16, window=window), RAGGED)


def test_a_body_bends_scores() -> None:
    score = make("arg", name="score", dtype="f32", shape=())
    distance = make("sub", *(make("arg", name=n, dtype="i64", shape=()) for n in ("qpos", "kpos")))
    slope = make("const", dtype="f32", value=0.01)
    body: Node = make("sub", score, make("mul", make("cast", distance, dtype="f32"), slope))
    run(attention(2, 2, 16, softcap=3.0, body=body), RAGGED)
