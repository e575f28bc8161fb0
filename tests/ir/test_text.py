"""The text form: parse(show(program)) is the program, and no text at all raises anything but IRError."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import replace

import pytest
from device import port, program_of
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import random_case

from echoc.compiler.ir import DType, Membrane, Port, Program, Rule, State, StateType, TensorType, make, symbol
from echoc.compiler.ir.text import parse, show
from echoc.compiler.ir.verify import verify
from echoc.errors import IRError

T = symbol("T")


def step_program() -> Program:
    """Attention over pages with a body, sinks and a gated sum: every syntactic form of a rule."""
    q, k = port("q", T, 4, 8), port("k", T, 2, 8)
    ids = [port(n, T, dtype="i32") for n in ("sequences", "positions")]
    table = port("block_table", symbol("B"), symbol("M"), dtype="i32")
    states = [make("state", name=f"layer0.{c}", kind="pages", shape=(2, 8), dtype="bf16") for c in "kv"]
    after = [make("append", s, k, *ids, table) for s in states]
    score, head = make("arg", name="score", dtype="f32"), make("arg", name="head", dtype="i64")
    body = make("sub", score, make("cast", head, dtype="f32"))
    out = make("attend", q, *after, *ids, table, make("weight", name="sinks", shape=(4,), dtype="f32"), body,
               scale=0.25, softcap=0.0, window=0, causal=True, sinks=True, body=True)  # fmt: skip
    symbols = {"T": (1, 64), "B": (1, 8), "M": (1, 8)}
    return program_of({"y": out}, symbols, {"layer0.k": after[0], "layer0.v": after[1]})


def nested() -> Program:
    """Membranes in membranes, with states, ports and rules of their own."""
    program = program_of({"y": make("exp", port("x", T))}, {"T": (1, 4)})
    for depth in range(30):
        value = make("state", name="v", kind="value", shape=(3,), dtype="f64")
        rule = Rule("leak", (), (("v", make("write", value, make("neg", make("read", value)))),))
        outer = Membrane(f"m{depth}", (State("v", StateType("value", (3,), DType.F64)),), (), (rule,), (program.skin,))
        program = replace(program, skin=outer)
    return verify(program)


def constants() -> Program:
    values: list[tuple[object, str]] = [
        (math.nan, "f32"), (math.inf, "f32"), (-math.inf, "f64"), (-0.0, "f32"), (0.0, "f32"), (0.1, "f64"),
        (1e-320, "f64"), (2**62, "i64"), (-(2**63), "i64"), (True, "bool"), (False, "bool"), (3, "i8"), (1e22, "f32"),
    ]  # fmt: skip
    nodes = {f"y{i}": make("const", value=v, dtype=d) for i, (v, d) in enumerate(values)}
    return program_of(nodes)


def odd_names() -> Program:
    name = '%s "quoted" \\ name, with } = %1 \n newline, \u2028, snowman ☃ and = (%3)'
    y, x, w = (name.replace("%s", c) for c in "yxw")
    return program_of({y: make("add", port(x, 3), make("weight", name=w, shape=(3,), dtype="f32"))})


@pytest.mark.parametrize("build", [step_program, nested, constants, odd_names])
def test_parse_is_the_inverse_of_show(build: object) -> None:
    program = build()  # type: ignore[operator]
    again = parse(show(program))
    assert again == program
    assert show(again) == show(program)
    roots = [r for m in program.skin.walk() for rule in m.rules for r in rule.roots]
    read = [r for m in again.skin.walk() for rule in m.rules for r in rule.roots]
    assert all(a is b for a, b in zip(roots, read, strict=True))


def test_text_that_was_spaced_by_hand_is_read() -> None:
    text = show(step_program())
    loose = "\n\n".join("   " + line.strip() + "  " for line in text.splitlines())
    assert parse(loose) == parse(text)


GOOD = show(step_program())
CASES = [
    ("", 1, "ends early"),
    ("mlir 1\n", 1, "header"),
    (GOOD.replace("eir 1", "eir 2"), 1, "header"),
    (GOOD.replace(" = cast(", " = cost("), None, "unknown op 'cost'"),
    (GOOD + "rule @x {\n}\n", None, "behind the skin membrane"),
    (GOOD.replace("bf16[2, 8]", "bf8[2, 8]"), None, "unknown dtype"),
    (GOOD.replace("pages<", "books<"), None, "wanted pages, value, cells"),
    (GOOD.replace('"scale"', "scale").replace("scale=0.25", "scale="), None, ""),
    (GOOD.replace("symbol T in 1..64", "symbol T in 1.."), None, "wanted membrane"),
    (re.sub(r"%0 = .*\n", "", GOOD, count=1), None, "used before it is defined"),
    (re.sub(r": f32\[T, 4, 8\]\n", ": f32[T, 4, 9]\n", GOOD), None, ""),
    (GOOD.rstrip()[:-1], None, "ends early"),
    ("eir 1\n" + "membrane @a {\n" * 5000, None, "nested"),
    (GOOD.replace("window=0", "window=" + "[" * 5000), None, ""),
    (GOOD.replace("scale=0.25", "scale=" + "9" * 5000), None, ""),
    ("eir 1\nmembrane @a {\n rule @r {\n %0 = iota() {size=<>} : i64[3]\n}\n}\n", 4, "dimension"),
    ("eir 1\nmembrane @a {\n rule @r {\n %0 = iota() {size=<T} : i64[3]\n}\n}\n", 4, ""),
    ("eir 1\nmembrane @a {\n rule @r {\n %0 = const() {value=float(x), dtype=\"f32\"} : f32[]\n}\n}\n", 4, ""),
    ("eir 1\nmembrane @a {\n rule @r {\n %0 = iota() {size=\"three\"} : i64[3]\n}\n}\n", 4, ""),
    ("eir 1\nmembrane @a {\n rule @r {\n %0 = const() {value=1, dtype={\"a\": []}} : f32[]\n}\n}\n", 4, ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "words"), CASES)
def test_malformed_texts_are_refused_with_the_line(text: str, line: int | None, words: str) -> None:
    with pytest.raises(IRError, match=r"^line \d+: ") as error:
        parse(text)
    assert words in str(error.value)
    if line is not None:
        assert str(error.value).startswith(f"line {line}: ")


TEXTS = [GOOD, show(constants()), *(show(random_case(s, 8).program) for s in range(6))]


PIECES = [*'{}[]()<>"%=,:@\\\n-*+ 0', "T", "nan", "%0", "1e999"]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(TEXTS),
    st.integers(0, 1 << 20),
    st.integers(0, 40),
    st.one_of(st.text(max_size=12), st.sampled_from(PIECES)),
)
def test_hostile_texts_raise_nothing_else(text: str, at: int, cut: int, put: str) -> None:
    at %= len(text)
    try:
        program = parse(text[:at] + put + text[at + cut :])
    except IRError as error:
        message = str(error)
        program = None
    if program is None:
        assert re.match(r"line \d+: ", message)
        return
    assert parse(show(program)) == program
    with contextlib.suppress(IRError):
        verify(program)


def test_ports_and_states_need_their_own_types() -> None:
    text = show(program_of({"y": make("neg", port("x", 3))}))
    with pytest.raises(IRError, match="a port carries a tensor"):
        parse(text.replace('in "x" : f32[3]', 'in "x" : pages<f32[3]>'))
    with pytest.raises(IRError, match=r"a state is pages<\.\.\.>"):
        parse(text.replace('in "x" : f32[3]', 'state "x" : f32[3]'))


def test_the_programs_above_hold_what_they_say() -> None:
    assert {"append", "attend", "arg", "state"} <= {n.op for r in step_program().skin.rules for n in r.order}
    assert Port("x", "in", TensorType((T,), DType.F32)) in nested().skin.walk()[-1].ports
