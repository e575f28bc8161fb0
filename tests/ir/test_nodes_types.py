"""Nodes are interned by what they are; types and dimensions print, parse, divide and broadcast exactly."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from device import port
from hypothesis import given
from hypothesis import strategies as st

from echoc.compiler.ir import DType, Node, StateType, TensorType, make, symbol, topological
from echoc.compiler.ir.node import _INTERNED, rebuild, users
from echoc.compiler.ir.types import (
    Dim,
    broadcast_shapes,
    dim_div,
    dim_mul,
    dim_product,
    dim_value,
    parse_dim,
    parse_type,
)
from echoc.errors import IRError

T, R = symbol("T"), symbol("R")


def const(value: object, dtype: str = "f32") -> Node:
    return make("const", value=value, dtype=dtype)


def test_equal_nodes_are_one_object() -> None:
    assert make("add", port("x", 3), port("y", 3)) is make("add", port("x", 3), port("y", 3))
    assert make("reshape", port("x", 4), shape=[2, 2]) is make("reshape", port("x", 4), shape=(2, 2))
    assert port("x", 3) is not port("y", 3)
    assert port("x", T) is port("x", symbol("T"))


def test_floats_are_interned_by_their_bits() -> None:
    assert const(0.0) is not const(-0.0)
    assert const(0.0) is const(0.0)
    assert const(float("nan")) is const(float("nan"))
    assert const(1.0) is not const(1)
    assert const(True, "bool") is not const(1, "bool")
    assert const(1, "i64") is not const(1, "i32")


def test_nodes_that_nobody_holds_are_forgotten() -> None:
    def count() -> int:
        gc.collect()
        return sum(1 for n in list(_INTERNED.values()) if n.get("name") == "a fleeting port")

    node = port("a fleeting port", 3)
    assert count() == 1
    del node
    assert count() == 0


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: make("spin", port("x", 3)), "unknown op"),
        (lambda: make("add", port("x", 3)), "found 1 inputs; wanted 2"),
        (lambda: make("add", port("x", 3), port("y", 4)), "do not broadcast"),
        (lambda: make("add", port("x", T), port("y", R)), "do not broadcast"),
        (lambda: make("add", port("x", 3), port("y", 3, dtype="i64")), "cast one of them"),
        (lambda: make("div", port("x", 3, dtype="i64"), port("y", 3, dtype="i64")), "wanted a float"),
        (lambda: make("not", port("x", 3)), "wanted a bool"),
        (lambda: make("neg", port("x", 3, dtype="bool")), "wanted a number"),
        (lambda: make("and", port("x", 3), port("y", 3)), "wanted an integer or a bool"),
        (lambda: make("exp", port("x", 3, dtype="i64")), "wanted a float"),
        (lambda: make("reshape", port("x", 4), shape=(3,)), "4 elements"),
        (lambda: make("reshape", port("x", 4)), "'shape' is missing"),
        (lambda: make("transpose", port("x", 4, 2), perm=(0, 0)), "not a permutation"),
        (lambda: make("broadcast", port("x", 2), shape=(3,)), "does not broadcast"),
        (lambda: make("slice", port("x", 4), starts=(2,), stops=(9,), steps=(1,)), "outside an axis of 4"),
        (lambda: make("slice", port("x", T), starts=(1,), stops=(T,), steps=(1,)), "taken whole"),
        (lambda: make("pad", port("x", 4), low=(-1,), high=(0,), value=0.0), "none negative"),
        (lambda: make("concat", port("x", 4), port("y", 4, 1), axis=0), "does not continue"),
        (lambda: make("sum", port("x", 4), axes=(1,)), "outside a tensor of rank 1"),
        (lambda: make("sum", port("x", 4, 3), axes=(1, 0)), "ascend"),
        (lambda: make("topk", port("x", 4), axis=0, k=5, part="values"), "k = 5"),
        (lambda: make("sort", port("x", 4, 2), axis=0, part="values"), "last axis"),
        (lambda: make("sort", port("x", 4), axis=0, part="both"), "wanted values or indices"),
        (lambda: make("take", port("x", 4), port("i", 2), axis=0), "wanted an integer"),
        (lambda: make("contract", port("x", 4), port("y", 4), spec="k,k"), "malformed"),
        (lambda: make("contract", port("x", 4), port("y", 5), spec="k,k->"), "index 'k' is both"),
        (lambda: make("scatter", port("x", 4), port("i", 2, dtype="i64"), port("u", 3), axis=0, mode="set"), "scatter"),
        (lambda: make("scatter", port("x", 2, 4), port("i", 3, 4, dtype="i64"), port("u", 3, 4), axis=1, mode="set"),
         "reaches beyond"),
        (lambda: make("cast", port("x", 3), dtype="f8"), "f8"),
        (lambda: make("const", value=1.0), "'dtype' is missing"),
    ],
)  # fmt: skip
def test_ill_typed_nodes_cannot_exist(build: object, words: str) -> None:
    with pytest.raises(IRError, match=words.replace("(", r"\(")):
        build()  # type: ignore[operator]


def test_an_error_names_the_op_its_inputs_and_attributes() -> None:
    with pytest.raises(IRError) as error:
        make("transpose", port("x", T, 2), perm=(0, 2))
    assert "transpose(f32[T, 2])" in str(error.value)
    assert "(0, 2)" in str(error.value)


def test_order_and_users() -> None:
    x = port("x", 3)
    y = make("exp", x)
    z = make("mul", y, y)
    assert topological([z, y]) == [x, y, z]
    assert users(topological([z])) == {x: [y], y: [z, z], z: []}
    assert rebuild(z, (y, y)) is z
    assert rebuild(z, (x, x)) is make("mul", x, x)


def test_deep_graphs_need_no_deep_stack() -> None:
    node = port("x", 3)
    for _ in range(20_000):
        node = make("neg", node)
    assert len(topological([node])) == 20_001


names = st.sampled_from(["T", "R", "S", "num_blocks"])
dims: st.SearchStrategy[Dim] = st.recursive(
    st.one_of(st.integers(-9, 40), names.map(symbol)),
    lambda inner: st.builds(lambda a, b, times: dim_mul(a, b) if times else a + b, inner, inner, st.booleans()),
    max_leaves=6,
)
values = st.fixed_dictionaries({n: st.integers(1, 20) for n in ("T", "R", "S", "num_blocks")})


@given(dims)
def test_dimensions_print_and_parse(dim: Dim) -> None:
    assert parse_dim(str(dim)) == dim


@given(dims, dims, values)
def test_dimensions_compute(a: Dim, c: Dim, symbols: dict[str, int]) -> None:
    x, y = dim_value(a, symbols), dim_value(c, symbols)
    assert dim_value(a + c, symbols) == x + y
    assert dim_value(a - c, symbols) == x - y
    assert dim_value(dim_mul(a, c), symbols) == x * y
    assert dim_value(dim_product((a, c, 2)), symbols) == 2 * x * y
    assert (a - c == 0) == (a == c)


@given(dims, dims, values)
def test_division_is_exact_or_none(a: Dim, c: Dim, symbols: dict[str, int]) -> None:
    quotient = dim_div(a, c)
    if quotient is not None and dim_value(c, symbols):
        assert dim_value(quotient, symbols) * dim_value(c, symbols) == dim_value(a, symbols)
    if c != 0 and not (hasattr(c, "terms") and len(c.terms) != 1):
        assert dim_div(dim_mul(a, c), c) == a


@given(st.lists(dims, max_size=4), st.sampled_from([d for d in DType if d is not DType.F8]))
def test_types_print_and_parse(shape: list[Dim], dtype: DType) -> None:
    type_ = TensorType(tuple(shape), dtype)
    assert parse_type(str(type_)) == type_


@pytest.mark.parametrize(("kind", "dtype"), [("pages", "bf16"), ("value", "bf16"), ("pages", "f8"), ("pages", "i8")])
def test_state_types_print_and_parse(kind: str, dtype: str) -> None:
    type_ = StateType(kind, (8, 64), DType(dtype))
    assert parse_type(str(type_)) == type_


def test_only_pages_hold_8_bit_floats() -> None:
    with pytest.raises(IRError, match="only pages hold f8"):
        parse_type("f8[3]")
    with pytest.raises(IRError, match="only pages hold f8"):
        parse_type("value<f8[3]>")


@pytest.mark.parametrize(
    "text",
    ["", "f32", "f32[", "f8[3]", "f32[3", "pages<f32>", "pages<f32[T]>", "f32[3 4]", "f32[**]", "f32[-]", ">", "<>"],
)
def test_malformed_types_are_refused(text: str) -> None:
    with pytest.raises(IRError):
        parse_type(text)


@given(st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=3))
def test_broadcasting_is_numpys(shapes: list[list[int]]) -> None:
    try:
        wanted = np.broadcast_shapes(*map(tuple, shapes))
    except ValueError:
        with pytest.raises(IRError):
            broadcast_shapes(*map(tuple, shapes))
        return
    assert broadcast_shapes(*map(tuple, shapes)) == wanted


def test_symbols_broadcast_with_ones_and_themselves() -> None:
    assert broadcast_shapes((T, 1), (1, 5)) == (T, 5)
    assert broadcast_shapes((T,), (T,)) == (T,)
    with pytest.raises(IRError):
        broadcast_shapes((T,), (4,))


def test_a_symbol_without_a_value_is_named() -> None:
    with pytest.raises(IRError, match="symbol R"):
        dim_value(T + R, {"T": 3})
