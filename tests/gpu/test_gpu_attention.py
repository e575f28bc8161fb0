"""Attention over pages in Triton's interpreter against the numpy meanings of append and attend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device import interpret, port, program_of
from launches import Launches, close

from echoc.compiler.ir import DType, Node, Program, make, symbol
from echoc.compiler.ir.ops.entries import held

T, B, M = map(symbol, "TBM")
SYMBOLS = {"T": (1, 1 << 14), "B": (1, 256), "M": (1, 256)}
# Entries, rows and weights are rounded to the state's type; rows and weights for 8 bits to bf16.
TOLERANCE = {"f32": 2e-6, "f16": 2e-3, "bf16": 2e-2, "i8": 2e-2, "f8": 2e-2}
Rows = list[tuple[int, int, int]]  # (sequence, rows of it in the step, entries before them)


def attention(heads: int, kv_heads: int, dim: int, v_dim: int = 0, kv: str = "f32", window: int = 0,
              softcap: float = 0.0, sinks: bool = False, body: Node | None = None) -> Program:  # fmt: skip
    """Append to K and V, then attend."""
    sequences, positions = port("sequences", T, dtype="i32"), port("positions", T, dtype="i32")
    where = (sequences, positions, port("block_table", B, M, dtype="i32"))
    states = [
        make("state", name=name, shape=(kv_heads, size), dtype=kv, kind="pages")
        for name, size in (("k", dim), ("v", v_dim or dim))
    ]
    k, v = (make("append", s, port(s["name"], T, kv_heads, s.type.shape[1]), *where) for s in states)
    extras = ([port("sinks", heads)] if sinks else []) + ([body] if body is not None else [])
    out = make(
        "attend", port("q", T, heads, dim), k, v, *where, *extras, causal=True, scale=dim**-0.5, window=window,
        softcap=softcap, sinks=sinks, body=body is not None,
    )  # fmt: skip
    return program_of({"out": out}, SYMBOLS, {"k": k, "v": v})


def memory(program: Program, rows: Rows, seed: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Inputs, states and symbols: pages in any order, with NaN where nothing was written."""
    generator = np.random.default_rng(seed)
    types = {p.name: p.type.shape for p in program.skin.ports}
    count = sum(n for _, n, _ in rows)
    batch = max(s for s, _, _ in rows) + 1
    blocks = max((past + n + 15) // 16 for _, n, past in rows) + 1
    table = generator.permutation(batch * blocks + 2)[: batch * blocks].reshape(batch, blocks).astype(np.int32)
    inputs: dict[str, Any] = {
        "sequences": np.concatenate([np.full(n, s, np.int32) for s, n, _ in rows]),
        "positions": np.concatenate([np.arange(past, past + n, dtype=np.int32) for _, n, past in rows]),
        "block_table": table,
    }
    sizes = {"T": count, "B": batch, "M": blocks}
    for name in ("q", "k", "v", "sinks"):
        if name in types:
            shape = [sizes.get(str(d), d) for d in types[name]]
            inputs[name] = generator.standard_normal(shape).astype(np.float32)
    states = {}
    for state in program.skin.states:
        pages = np.full((batch * blocks + 2, 16, *state.type.shape), np.nan, np.float32)
        for s, _, past in rows:
            for p in range(past):
                pages[table[s, p // 16], p % 16] = generator.standard_normal(state.type.shape)
        states[state.name] = held(pages, state.type.dtype)
    return inputs, states, sizes


def run(program: Program, rows: Rows, form: int | None, seed: int = 0, deterministic: bool = False) -> np.ndarray:
    """Runs both, compares what was attended and appended; returns the former."""
    inputs, states, sizes = memory(program, rows, seed)
    launches = Launches(program, form, deterministic=deterministic)
    found = launches.run(inputs, {}, sizes, states)["out"]
    wanted = interpret(program, inputs, {}, {n: np.array(s) for n, s in states.items()})
    kv = str(program.skin.states[0].type.dtype)
    close(found, wanted["out"], TOLERANCE[kv])
    for name in ("k", "v"):
        step = {"bf16": 2**-7, "i8": 1e-6, "f8": 1e-6}.get(kv, 0.0)  # the interpreter cuts where devices round
        assert np.allclose(launches.state(name), wanted[f"next {name}"], rtol=step, atol=0, equal_nan=True)
        if kv in ("i8", "f8"):  # what this step wrote, to the bit
            where = inputs["block_table"][inputs["sequences"], inputs["positions"] // 16], inputs["positions"] % 16
            assert np.array_equal(launches.state(name)[where], wanted[f"next {name}"][where])
    return found


RAGGED: Rows = [(1, 2, 60), (0, 1, 100), (2, 2, 0)]
LONG: Rows = [(1, 70, 30), (0, 1, 100), (3, 1, 15), (2, 33, 0)]


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16", "i8", "f8"])
@pytest.mark.parametrize(("rows", "form"), [(RAGGED, 16), (RAGGED, None), (LONG, None)])
def test_ragged_batches(rows: Rows, form: int | None, kv: str) -> None:
    run(attention(4, 2, 16, kv=kv) if form is None else attention(2, 1, 16, kv=kv), rows, form)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "v_dim"), [(3, 3, 16, 0), (7, 1, 24, 0), (6, 2, 80, 48), (2, 1, 256, 0), (40, 1, 8, 8)]
)
@pytest.mark.parametrize("form", [16, None])
def test_shapes_of_heads(heads: int, kv_heads: int, dim: int, v_dim: int, form: int | None) -> None:
    run(attention(heads, kv_heads, dim, v_dim), [(0, 1, 40), (1, 2, 0)], form)


@pytest.mark.parametrize("form", [16, None])
@pytest.mark.parametrize("window", [1, 7, 90])
def test_windows(window: int, form: int | None) -> None:
    run(attention(2, 1, 16, window=window), RAGGED if form else LONG, form)


@pytest.mark.parametrize("form", [16, 256, None])
def test_soft_caps_and_sinks(form: int | None) -> None:
    run(attention(2, 1, 16, softcap=2.0, sinks=True), RAGGED, form)
    run(attention(2, 1, 16, window=20, sinks=True), RAGGED, form)


def slopes() -> Node:
    """A score that falls with the distance, by head, and skips every key whose place is a multiple of 5."""
    score, head, qpos, kpos = (
        make("arg", name=n, dtype=d) for n, d in (("score", "f32"), ("head", "i64"), ("qpos", "i64"), ("kpos", "i64"))
    )
    table = make("weight", name="slopes", shape=(4,), dtype="f32")
    distance = make("cast", make("sub", kpos, qpos), dtype=DType.F32)
    sloped = make("add", score, make("mul", make("take", table, head, axis=0), distance))
    rest = make("mod", kpos, make("const", value=5, dtype="i64"))
    kept = make("ne", rest, make("const", value=0, dtype="i64"))
    return make("where", kept, sloped, make("const", value=-np.inf, dtype="f32"))


@pytest.mark.parametrize("form", [16, None])
def test_inlined_bodies(form: int | None) -> None:
    program = attention(4, 2, 16, body=slopes(), softcap=3.0)
    inputs, states, sizes = memory(program, RAGGED, 5)
    values = {"slopes": np.array([0.5, 0.1, 0.02, 0.0], np.float32)}
    launches = Launches(program, form)
    found = launches.run(inputs, values, sizes, states)["out"]
    close(found, interpret(program, inputs, values, states)["out"], TOLERANCE["f32"])


@pytest.mark.parametrize("form", [16, 256, None])
def test_a_row_does_not_depend_on_the_rows_beside_it(form: int | None) -> None:
    program = attention(4, 2, 16, kv="bf16", sinks=True)
    inputs, states, sizes = memory(program, LONG if form is None else RAGGED, 7)
    launches = Launches(program, form, deterministic=True)
    whole = launches.run(inputs, {}, sizes, states)["out"]
    after = {n: launches.state(n) for n in states}
    for row in (0, 2, sizes["T"] - 1):
        alone = {n: a[row : row + 1] if n not in ("block_table", "sinks") else a for n, a in inputs.items()}
        assert np.array_equal(launches.run(alone, {}, sizes | {"T": 1}, after)["out"], whole[row : row + 1])


def test_a_broken_sequence_leaves_the_others_alone() -> None:
    program = attention(2, 1, 16)
    inputs, states, sizes = memory(program, [(0, 4, 10), (1, 4, 20)], 8)
    inputs["v"][:4] = np.nan
    launches = Launches(program, None)
    found = launches.run(inputs, {}, sizes, states)["out"]
    assert np.isnan(found[:4]).all() and np.isfinite(found[4:]).all()
