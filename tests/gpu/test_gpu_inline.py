"""Light work before attention has no kernel of its own; what others read, or what costs, keeps one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device import interpret, port, program_of
from launches import Launches, close

from echoc.compiler.ir import Node, Program, make, symbol

T, B, M = map(symbol, "TBM")
SYMBOLS = {"T": (1, 512), "B": (1, 8), "M": (1, 8)}
HEADS, KV_HEADS, DIM = 4, 2, 16


def rotate(x: Node, cos: Node, sin: Node) -> Node:
    """Rotary positions over the last axis of [T, heads, DIM]."""
    half, heads = DIM // 2, x.shape[1]

    def part(start: int) -> Node:
        return make("slice", x, starts=(0, 0, start), stops=(T, heads, start + half), steps=(1, 1, 1))

    turned = make("concat", make("neg", part(half)), part(0), axis=2)
    return make("add", make("mul", x, cos), make("mul", turned, sin))


def attention(shared: bool = False, width: int = 32) -> Program:
    """Projections, rotary positions and attention; `shared`: the rotated queries are an output, too."""
    x = port("x", T, width)
    q, k, v = (
        make("contract", x, make("weight", name=name, shape=(heads * DIM, width), dtype="f32"), spec="Tk,nk->Tn")
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
    )
    angle = make("reshape", port("angle", T, DIM), shape=(T, 1, DIM))
    cos, sin = make("cos", angle), make("sin", angle)
    where = (port("sequences", T, dtype="i32"), port("positions", T, dtype="i32"), port("table", B, M, dtype="i32"))
    q = rotate(make("reshape", q, shape=(T, HEADS, DIM)), cos, sin)
    k = rotate(make("reshape", k, shape=(T, KV_HEADS, DIM)), cos, sin)
    states = [make("state", name=n, shape=(KV_HEADS, DIM), dtype="f32", kind="pages") for n in ("ks", "vs")]
    entries = (k, make("reshape", v, shape=(T, KV_HEADS, DIM)))
    after = [make("append", s, e, *where) for s, e in zip(states, entries, strict=True)]
    out = make("attend", q, *after, *where, causal=True, scale=0.25, window=0, softcap=0.0, sinks=False, body=False)
    outputs = {"out": out} | ({"q": q} if shared else {})
    return program_of(outputs, SYMBOLS, {"ks": after[0], "vs": after[1]})


def run(program: Program, form: int | None, width: int = 32) -> Launches:
    generator = np.random.default_rng(0)
    inputs: dict[str, Any] = {
        "x": generator.standard_normal((5, width)).astype(np.float32),
        "angle": generator.standard_normal((5, DIM)).astype(np.float32),
        "sequences": np.array([1, 1, 1, 0, 0], np.int32), "positions": np.array([0, 1, 2, 0, 1], np.int32),
        "table": np.array([[3], [1]], np.int32),
    }  # fmt: skip
    sizes = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
    values = {n: generator.standard_normal((h * DIM, width)).astype(np.float32) for n, h in sizes.items()}
    states = {n: np.zeros((4, 16, KV_HEADS, DIM), np.float32) for n in ("ks", "vs")}
    launches = Launches(program, form)
    found = launches.run(inputs, values, {"T": 5, "B": 2, "M": 1}, states)
    wanted = interpret(program, inputs, values, states)
    for name in found:
        close(found[name], wanted[name], 1e-5)
    for name in states:
        close(launches.state(name), wanted[f"next {name}"], 1e-5)
    return launches


@pytest.mark.parametrize("form", [16, None])
def test_rotary_positions_are_taken_in(form: int | None) -> None:
    families = [k.family for k in run(attention(), form).kernels]
    assert families.count("rows") == 1  # the sines
    assert families.count("append") == 1


def test_what_the_outside_reads_is_computed_once() -> None:
    launches = run(attention(shared=True), None)
    assert [k.family for k in launches.kernels].count("rows") == 2
