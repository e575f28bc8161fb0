"""append and attend over pages, by generated code and by the numpy meanings, step after step."""

from __future__ import annotations

import numpy as np
import pytest
from device import Arrays, Built, Case, interpret, port, program_of

from echoc.compiler.ir import Node, make, symbol
from echoc.compiler.ir.ops.pointwise import cast_array
from echoc.compiler.ir.types import DType

T, B, M = symbol("T"), symbol("B"), symbol("M")
SYMBOLS = {"T": (1, 64), "B": (1, 8), "M": (1, 8)}
HEADS, KV_HEADS, SIZE, PAGES, PAGE = 4, 2, 24, 64, 16


def alibi() -> Node:
    """score - (head + 1) * (qpos - kpos) / 8"""
    score = make("arg", name="score", dtype="f32")
    head, qpos, kpos = (make("arg", name=n, dtype="i64") for n in ("head", "qpos", "kpos"))
    slope = make("add", head, make("const", value=1, dtype="i64"))
    distance = make("cast", make("mul", slope, make("sub", qpos, kpos)), dtype="f32")
    return make("sub", score, make("mul", distance, make("const", value=0.125, dtype="f32")))


def hidden_block() -> Node:
    """Keys at positions 3, 10, 17, ... are hidden, unless they are the query's own."""
    score = make("arg", name="score", dtype="f32")
    qpos, kpos = (make("arg", name=n, dtype="i64") for n in ("qpos", "kpos"))
    seven, three = (make("const", value=v, dtype="i64") for v in (7, 3))
    seen = make("or", make("ne", make("mod", kpos, seven), three), make("eq", kpos, qpos))
    return make("where", seen, score, make("const", value=float("-inf"), dtype="f32"))


VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "bf16": {"dtype": "bf16"},
    "f16": {"dtype": "f16"},
    "i8": {"dtype": "i8"},
    "f8": {"dtype": "f8", "sinks": True, "window": 12},
    "window": {"window": 9},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "alibi": {"make_body": alibi},
    "mask": {"make_body": hidden_block, "sinks": True, "window": 30},
    "narrow_values": {"value_size": 8, "dtype": "bf16"},
}


def case(name: str, dtype: str = "f32", window: int = 0, softcap: float = 0.0, sinks: bool = False,
         make_body: object = None, value_size: int = SIZE) -> Case:  # fmt: skip
    ids = [port("sequences", T, dtype="i32"), port("positions", T, dtype="i32"), port("table", B, M, dtype="i32")]
    sizes = {"k": SIZE, "v": value_size}
    states = {
        c: make("state", name=f"layer.{c}", kind="pages", shape=(KV_HEADS, s), dtype=dtype) for c, s in sizes.items()
    }
    after = {c: make("append", states[c], port(c, T, KV_HEADS, s), *ids) for c, s in sizes.items()}
    extras = [make("weight", name="sinks", shape=(HEADS,), dtype="f32")] if sinks else []
    extras += [make_body()] if make_body else []  # type: ignore[operator]
    q = make("mul", port("q", T, HEADS, SIZE), make("const", value=0.5, dtype="f32"))
    out = make("attend", q, after["k"], after["v"], *ids, *extras, scale=SIZE**-0.5, softcap=softcap, window=window,
               causal=True, sinks=sinks, body=make_body is not None)  # fmt: skip
    program = program_of({"y": make("tanh", out)}, SYMBOLS, {"layer.k": after["k"], "layer.v": after["v"]})
    weights = {"sinks": np.linspace(-1, 1, HEADS).astype(np.float32)} if sinks else {}
    return Case(name, program, {}, weights)


CASES = {name: case(name, **options) for name, options in VARIANTS.items()}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(list(CASES.values()), tmp_path_factory.mktemp("attention"))


def steps() -> list[list[tuple[int, int]]]:
    """(sequence, tokens) of each step: a ragged prefill, a decode of all, chunks of some, a long prefill."""
    return [[(0, 5), (1, 17), (2, 1)], [(0, 1), (1, 1), (2, 1)], [(2, 30)], [(1, 16), (0, 9)], [(0, 1), (2, 1)]]


def inputs(generator: np.random.Generator, lengths: dict[int, int], step: list[tuple[int, int]], sizes: dict[str, int]
           ) -> Arrays:  # fmt: skip
    count = sum(n for _, n in step)
    table = np.array([[s * 7 + 3 + m * 2 for m in range(4)] for s in range(3)], np.int32) % PAGES
    positions = np.concatenate([np.arange(lengths[s], lengths[s] + n) for s, n in step])
    for s, n in step:
        lengths[s] += n
    given = {c: generator.standard_normal((count, KV_HEADS, size)).astype(np.float32) for c, size in sizes.items()}
    return {
        **given,
        "q": generator.standard_normal((count, HEADS, SIZE)).astype(np.float32) * 3,
        "sequences": np.repeat([s for s, _ in step], [n for _, n in step]).astype(np.int32),
        "positions": positions.astype(np.int32),
        "table": table,
    }


def test_pages_of_different_sequences_differ() -> None:
    table = inputs(np.random.default_rng(0), dict.fromkeys(range(3), 0), [(0, 1)], {"k": 1, "v": 1})["table"]
    assert len(set(table.ravel().tolist())) == table.size


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", list(CASES))
def test_attention_over_pages(built: Built, name: str, deterministic: bool) -> None:
    generator = np.random.default_rng(3)
    program = built.load(name, deterministic=deterministic)
    state_types = {s.name: s.type for s in CASES[name].program.skin.states}
    states = {n: np.zeros((PAGES, PAGE, *t.shape), np.float32) for n, t in state_types.items()}
    sizes = {c: state_types[f"layer.{c}"].shape[1] for c in "kv"}
    lengths = dict.fromkeys(range(3), 0)
    rounded = state_types["layer.k"].dtype is not DType.F32
    for step in steps():
        given = inputs(generator, lengths, step, sizes)
        want = interpret(CASES[name].program, given, CASES[name].weights, states)
        states = {n: cast_array(want[f"next {n}"], DType.F32) for n in states}
        got = built.step(name, program, given)["y"]
        tolerance = 2e-2 if rounded else 1e-5
        np.testing.assert_allclose(got, want["y"], rtol=tolerance, atol=tolerance)
