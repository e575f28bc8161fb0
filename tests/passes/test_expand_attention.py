"""Attention over a whole prompt in smaller ops: the same values by the meanings, and as generated code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device import Arrays, Built, Case, interpret, port, program_of

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, Program, make, symbol
from echoc.compiler.passes.expand_attention import ExpandAttention

HEADS, KV_HEADS, TOKENS, SIZE, VALUE = 4, 2, 9, 6, 5
VARIANTS: dict[str, dict[str, Any]] = {
    "causal": {},
    "everything visible": {"causal": False},
    "window": {"window": 3},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "slopes": {"slopes": True},
    "nothing visible": {"hidden": True},
    "all at once": {"window": 4, "softcap": 1.5, "sinks": True, "slopes": True},
}


def body_of(slopes: bool, hidden: bool) -> Node | None:
    score, head, qpos, kpos = (
        make("arg", name=n, dtype="f32" if n == "score" else "i64") for n in ("score", "head", "qpos", "kpos")
    )
    if hidden:
        first = make("lt", qpos, b.const(2, DType.I64))
        return make("where", first, b.const(float("-inf"), DType.F32), score)
    if slopes:
        slope = make("take", b.weight("slopes", (HEADS,), "f32"), head, axis=0)
        return make("add", score, make("mul", slope, b.cast(make("sub", kpos, qpos), "f32")))
    return None


def program(
    tokens: Any, causal: bool = True, window: int = 0, softcap: float = 0.0, sinks: bool = False, slopes: bool = False,
    hidden: bool = False,
) -> Program:  # fmt: skip
    q, k = port("q", HEADS, tokens, SIZE), port("k", KV_HEADS, tokens, SIZE)
    v = port("v", KV_HEADS, tokens, VALUE)
    body = body_of(slopes, hidden)
    extras = [b.weight("sinks", (HEADS,), "f32")] if sinks else []
    extras += [body] if body is not None else []
    out = make("attention", q, k, v, *extras, scale=0.4, softcap=softcap, window=window, causal=causal, sinks=sinks,
               body=body is not None)  # fmt: skip
    return program_of({"y": out}, {"S": (1, 64)} if not isinstance(tokens, int) else {})


WEIGHTS: Arrays = {
    "sinks": np.linspace(-1, 1, HEADS).astype(np.float32),
    "slopes": np.linspace(0.1, 0.7, HEADS).astype(np.float32),
}


def inputs() -> Arrays:
    generator = np.random.default_rng(5)
    shapes = {"q": (HEADS, TOKENS, SIZE), "k": (KV_HEADS, TOKENS, SIZE), "v": (KV_HEADS, TOKENS, VALUE)}
    return {n: generator.standard_normal(s).astype(np.float32) * 2 for n, s in shapes.items()}


CASES = {
    f"{name}, {kind}": Case(f"{name}, {kind}", ExpandAttention().run(program(tokens, **options)), inputs(), WEIGHTS)
    for name, options in VARIANTS.items()
    for kind, tokens in (("static", TOKENS), ("symbolic", symbol("S")))
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(list(CASES.values()), tmp_path_factory.mktemp("expanded"))


@pytest.mark.parametrize("name", list(VARIANTS))
def test_the_meaning_stays(name: str) -> None:
    before = program(TOKENS, **VARIANTS[name])
    want = interpret(before, inputs(), WEIGHTS)["y"]
    after = ExpandAttention().run(before)
    assert all(n.op != "attention" for n in after.skin.rules[0].order)
    np.testing.assert_allclose(interpret(after, inputs(), WEIGHTS)["y"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(CASES))
def test_generated_code_gives_the_meaning(built: Built, name: str) -> None:
    want = interpret(program(TOKENS, **VARIANTS[name.partition(",")[0]]), inputs(), WEIGHTS)["y"]
    np.testing.assert_allclose(built.run(name)["y"], want, rtol=1e-5, atol=1e-5)
