"""read and write of value states: what a step leaves is what the next one finds."""

from __future__ import annotations

import numpy as np
import pytest
from device import Built, Case, cast_to_port, interpret, port, program_of

from echoc.compiler.ir import Node, Program, make

SIZE = 6


def state(name: str, *shape: int, dtype: str = "f32") -> Node:
    return make("state", name=name, kind="value", shape=shape, dtype=dtype)


def reservoir() -> Program:
    """x' = (1 - a) x + a tanh(W x + u): every element of the new value needs all of the old."""
    before = state("x", SIZE)
    x, leak = make("read", before), make("const", value=0.3, dtype="f32")
    inner = make("contract", x, make("weight", name="w", shape=(SIZE, SIZE), dtype="f32"), spec="k,nk->n")
    fresh = make("tanh", make("add", inner, port("u", SIZE)))
    keep = make("const", value=0.7, dtype="f32")
    after = make("add", make("mul", keep, x), make("mul", leak, fresh))
    return program_of({"y": make("sum", after, axes=(0,))}, None, {"x": make("write", before, after)})


def swap() -> Program:
    """Two states change places, and a third counts the steps."""
    a, c, count = state("a", 3, SIZE), state("c", 3, SIZE), state("count", dtype="i64")
    u = port("u", SIZE)
    steps = make("add", make("read", count), make("const", value=1, dtype="i64"))
    after = {
        "a": make("write", a, make("read", c)),
        "c": make("write", c, make("add", make("read", a), u)),
        "count": make("write", count, steps),
    }
    return program_of({"y": make("read", a), "z": make("read", c), "n": steps}, None, after)


def chain() -> Program:
    """A value written twice and read in between; a running sum along the leading axis; a transposed square."""
    m, s, h = state("m", 4, 4), state("s", SIZE, dtype="f64"), state("h", SIZE, dtype="bf16")
    u = port("u", SIZE)
    first = make("write", m, make("add", make("transpose", make("read", m), perm=(1, 0)), make("sum", u, axes=(0,))))
    second = make("write", first, make("mul", make("read", first), make("const", value=0.5, dtype="f32")))
    total = make("cumsum", make("add", make("read", s), make("cast", u, dtype="f64")), axis=0)
    half = make("add", make("read", h), make("cast", u, dtype="bf16"))
    after = {"m": second, "s": make("write", s, total), "h": make("write", h, make("cast", half, dtype="bf16"))}
    outputs = {"y": make("read", second), "z": make("read", first), "t": make("read", s), "h": make("read", h)}
    return program_of(outputs, None, after)


WEIGHTS = {"w": np.random.default_rng(5).standard_normal((SIZE, SIZE)).astype(np.float32)}
CASES = {f.__name__: Case(f.__name__, f(), {}, WEIGHTS if f is reservoir else {}) for f in (reservoir, swap, chain)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(list(CASES.values()), tmp_path_factory.mktemp("states"))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", list(CASES))
def test_states_carry_over(built: Built, name: str, threads: int) -> None:
    case = CASES[name]
    program = built.load(name, threads=threads)
    states = {s.name: np.zeros(s.type.shape, s.type.dtype.numpy) for s in case.program.skin.states}
    types = {p.name: p.type.dtype for p in case.program.skin.ports}
    generator = np.random.default_rng(1)
    for _ in range(6):
        given = {"u": generator.standard_normal(SIZE).astype(np.float32)}
        want = interpret(case.program, given, case.weights, states)
        states = {n: want[f"next {n}"] for n in states}
        got = built.step(name, program, given)
        for port_name, array in got.items():
            expected = cast_to_port(want[port_name], types[port_name])
            np.testing.assert_allclose(array, expected, rtol=1e-2 if port_name == "h" else 1e-5, atol=1e-5)


def test_two_programs_share_no_state(built: Built) -> None:
    one, two = built.load("swap"), built.load("swap")
    u = {"u": np.ones(SIZE, np.float32)}
    for _ in range(3):
        built.step("swap", one, u)
    assert built.step("swap", one, u)["n"] == 4
    assert built.step("swap", two, u)["n"] == 1
