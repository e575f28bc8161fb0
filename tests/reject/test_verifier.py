"""Programs that must be rejected: the message stands under the line it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from device import port

from echoc.compiler.ir import DType, Membrane, Node, Port, Program, Rule, State, StateType, TensorType, make, symbol
from echoc.compiler.ir.node import rebuild
from echoc.compiler.ir.verify import verify
from echoc.errors import CompileError, IRError

T = symbol("T")
X = Port("x", "in", TensorType((T,), DType.F32))
Y = Port("y", "out", TensorType((T,), DType.F32))
PAGES = StateType("pages", (2,), DType.F32)


def program(*outputs: tuple[str, Node], ports: tuple[Port, ...] = (X, Y), states: tuple[State, ...] = (),
            after: tuple[tuple[str, Node], ...] = (),
            symbols: dict[str, tuple[int, int]] | None = None) -> Program:  # fmt: skip
    bounds = {"T": (1, 8)} if symbols is None else symbols
    return Program(Membrane("skin", states, ports, (Rule("step", outputs, after),)), bounds)


def undeclared_port() -> Program:
    return program(("y", make("neg", port("z", T))))


def mistyped_port() -> Program:
    return program(("y", make("cast", port("x", T, dtype="i64"), dtype="f32")))


def out_port_read() -> Program:
    return program(("y", make("neg", port("y", T))))


def undeclared_out() -> Program:
    return program(("z", make("neg", port("x", T))))


def mistyped_out() -> Program:
    return program(("y", make("cast", port("x", T), dtype="f64")))


def undeclared_symbol() -> Program:
    return program(("y", make("neg", port("x", T))), symbols={})


def undeclared_state() -> Program:
    value = make("state", name="s", kind="value", shape=(3,), dtype="f32")
    return program(("y", make("add", port("x", T), make("sum", make("read", value), axes=(0,)))))


def undeclared_next() -> Program:
    value = make("state", name="s", kind="value", shape=(), dtype="f32")
    write = make("write", value, make("sum", port("x", T), axes=(0,)))
    return program(("y", make("neg", port("x", T))), states=(State("s", StateType("value", (), DType.F32)),),
                   after=(("t", write),))  # fmt: skip


def changed_twice() -> Program:
    before = make("state", name="s", kind="pages", shape=(2,), dtype="f32")
    x = make("reshape", make("concat", port("x", T), port("x", T), axis=0), shape=(T, 2))
    ids = [port(n, T, dtype="i32") for n in ("a", "b")]
    table = port("c", T, T, dtype="i32")
    one = make("append", before, x, *ids, table)
    two = make("append", before, make("neg", x), *ids, table)
    kind = TensorType((T,), DType.I32)
    ports = (X, Y, Port("a", "in", kind), Port("b", "in", kind), Port("c", "in", TensorType((T, T), DType.I32)))
    return program(("y", make("neg", port("x", T))), ports=ports, states=(State("s", PAGES), State("r", PAGES)),
                   after=(("s", one), ("r", two)))  # fmt: skip


def forged_type() -> Program:
    double = TensorType((T,), DType.F64)
    return program(("y", Node("exp", (port("x", T),), (), double)), ports=(X, replace(Y, type=double)))


def negative_size() -> Program:
    return program(("y", make("neg", port("x", T))), ("z", make("iota", size=-3)),
                   ports=(X, Y, Port("z", "out", TensorType((-3,), DType.I64))))  # fmt: skip


def output_twice() -> Program:
    return program(("y", make("neg", port("x", T))), ("y", make("exp", port("x", T))))


def port_twice() -> Program:
    return program(("y", make("neg", port("x", T))), ports=(X, X, Y))


REJECTED: list[tuple[Callable[[], Program], str, str]] = [
    (undeclared_port, "declares no in port 'z'", "port()"),
    (mistyped_port, "declares no in port 'x' of type i64[T]", "port()"),
    (out_port_read, "declares no in port 'y'", "port()"),
    (undeclared_out, "the out port 'z' is not declared", "neg("),
    (mistyped_out, "the out port 'y' is f32[T]; found f64[T]", "cast("),
    (undeclared_symbol, "the symbol T is not declared", "port()"),
    (undeclared_state, "declares no state 's'", "state()"),
    (undeclared_next, "has no state 't'", "write("),
    (changed_twice, "states are linear", "append("),
    (forged_type, "the type rule gives f32[T]", "exp("),
    (negative_size, "negative", "iota()"),
]


@pytest.mark.parametrize(("build", "words", "line"), REJECTED)
def test_the_message_stands_under_the_line(build: Callable[[], Program], words: str, line: str) -> None:
    with pytest.raises(IRError) as error:
        verify(build())
    lines = str(error.value).splitlines()
    assert lines[0].startswith("rule @step: ")
    assert words in lines[0]
    notes = [i for i, text in enumerate(lines) if text.strip().startswith("^")]
    assert len(notes) == 1
    assert words in lines[notes[0]]
    assert line in lines[notes[0] - 1]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (output_twice, "gives the out port 'y' twice"),
        (port_twice, "two ports named 'x'"),
        (lambda: program(("y", make("neg", port("x", T))), symbols={"T": (4, 2)}), "empty range"),
    ],
)  # fmt: skip
def test_what_is_about_no_line(build: Callable[[], Program], words: str) -> None:
    with pytest.raises(IRError, match=words):
        verify(build())


def test_errors_of_programs_are_compile_errors() -> None:
    assert issubclass(IRError, CompileError)


def test_sound_programs_pass() -> None:
    x = port("x", T)
    sound = program(("y", rebuild(make("neg", x), (make("exp", x),))))
    assert verify(sound) is sound
