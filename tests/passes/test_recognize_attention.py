"""Attention written by hand is found, with the same numbers after; other sums over tokens are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from prompts import HEADS, LOWEST, SIZE, S, embedded, future, heads, masked, program, prompt, stepped

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, make
from echoc.compiler.ir.node import topological
from echoc.compiler.ir.verify import verify
from echoc.compiler.passes.make_stateful import MakeStateful
from echoc.compiler.passes.recognize_attention import RecognizeAttention
from echoc.compiler.passes.simplify import Simplify
from echoc.errors import CompileError


def causal() -> Node:
    q, k, v = heads("q", HEADS), heads("kk", HEADS), heads("vvv", HEADS)
    scores = b.binary("mul", make("contract", q, k, spec="hqd,hkd->hqk"), 0.4)
    return b.transpose(make("contract", b.softmax(masked(scores), 2), v, spec="hqk,hkd->hqd"), [1, 0, 2])


def alibi() -> Node:
    """Bias by head and key, counted from the end of the sequence."""
    q, k, v = heads("q", HEADS), heads("kk", HEADS), heads("vvv", HEADS)
    slopes = b.reshape(b.binary("mul", b.cast(make("iota", size=HEADS), DType.F32), 0.3), (HEADS, 1, 1))
    last = b.binary("sub", b.dim_scalar(S, DType.F32), 1.0)
    distance = make("sub", b.cast(make("iota", size=S), DType.F32), last)
    bias = make("mul", slopes, b.reshape(distance, (1, 1, S)))
    scores = make("add", make("contract", q, k, spec="hqd,hkd->hqk"), bias)
    return b.transpose(make("contract", b.softmax(masked(scores), 2), v, spec="hqk,hkd->hqd"), [1, 0, 2])


def capped_window() -> Node:
    q, k, v = heads("q", HEADS), heads("kk", HEADS), heads("vvv", HEADS)
    scores = make("contract", q, b.transpose(k, [0, 2, 1]), spec="hqd,hdk->hqk")
    scores = b.binary("mul", make("tanh", b.binary("div", scores, 5.0)), 5.0)
    row, column = b.reshape(make("iota", size=S), (S, 1)), b.reshape(make("iota", size=S), (1, S))
    far = make("lt", column, b.binary("sub", row, 3))
    scores = make("where", make("or", future(), far), b.const(LOWEST, DType.F32), scores)
    return b.transpose(make("contract", b.softmax(scores, 2), v, spec="hqk,hkd->hqd"), [1, 0, 2])


def grouped() -> Node:
    """Two query heads to a key head, as an axis of their own that is merged around the softmax."""
    q = b.reshape(heads("q", HEADS), (2, 2, S, SIZE))
    k, v = heads("k2222", 2), heads("v22222", 2)
    scores = b.reshape(make("contract", q, k, spec="ghqd,gkd->ghqk"), (HEADS, S, S))
    weights = b.reshape(b.softmax(masked(scores), 2), (2, 2, S, S))
    return b.transpose(make("contract", weights, v, spec="ghqk,gkd->ghqd"), [2, 0, 1, 3])


def expanded() -> Node:
    """Grouped heads whose keys and values are repeated before they are used."""

    def repeat(x: Node) -> Node:
        wide = b.broadcast(b.reshape(x, (2, 1, S, SIZE)), (2, 2, S, SIZE))
        return b.reshape(wide, (HEADS, S, SIZE))

    q, k, v = heads("q", HEADS), repeat(heads("k2222", 2)), repeat(heads("v22222", 2))
    scores = make("add", make("contract", q, k, spec="hqd,hkd->hqk"), b.const(0.5, DType.F32))
    return b.transpose(make("contract", b.softmax(masked(scores), 2), v, spec="hqk,hkd->hqd"), [1, 0, 2])


@pytest.mark.parametrize("build", [causal, alibi, capped_window, grouped, expanded])
def test_the_attention_found_and_the_step_made_of_it_give_the_same(build: object) -> None:
    before = verify(program(build()))  # type: ignore[operator]
    wanted = prompt(before)
    found = verify(RecognizeAttention().run(Simplify().run(before)))
    ops = [n.op for n in found.skin.rules[0].order]
    assert ops.count("attention") == 1
    assert "contract" not in ops
    np.testing.assert_allclose(prompt(found), wanted, rtol=1e-4, atol=1e-5)
    step = verify(MakeStateful().run(found))
    np.testing.assert_allclose(stepped(step), wanted, rtol=1e-4, atol=1e-5)


def test_a_plain_causal_mask_leaves_no_body() -> None:
    step = MakeStateful().run(RecognizeAttention().run(Simplify().run(program(causal()))))
    (attend,) = (n for n in step.skin.rule("step").order if n.op == "attend")
    assert attend["causal"]
    assert not attend["body"]
    assert attend["scale"] == pytest.approx(0.4)


def test_grouped_heads_share_their_keys_in_the_state() -> None:
    step = MakeStateful().run(RecognizeAttention().run(Simplify().run(program(grouped()))))
    assert [s.type.shape for s in step.skin.states] == [(2, SIZE), (2, SIZE)]


def test_two_layers_are_both_found() -> None:
    first = b.reshape(causal(), (S, HEADS * SIZE))
    q = b.transpose(b.reshape(first, (S, HEADS, SIZE)), [1, 0, 2])
    scores = masked(make("contract", q, heads("kk", HEADS), spec="hqd,hkd->hqk"))
    out = make("contract", b.softmax(scores, 2), heads("vvv", HEADS), spec="hqk,hkd->hqd")
    found = RecognizeAttention().run(Simplify().run(program(b.transpose(out, [1, 0, 2]))))
    assert [n.op for n in topological(found.skin.rules[0].roots)].count("attention") == 2
    np.testing.assert_allclose(stepped(MakeStateful().run(found)), prompt(found), rtol=1e-4, atol=1e-5)


def without_mask() -> Node:
    scores = make("contract", heads("q", HEADS), heads("kk", HEADS), spec="hqd,hkd->hqk")
    return b.transpose(make("contract", b.softmax(scores, 2), heads("vvv", HEADS), spec="hqk,hkd->hqd"), [1, 0, 2])


def weak_mask() -> Node:
    scores = masked(make("contract", heads("q", HEADS), heads("kk", HEADS), spec="hqd,hkd->hqk"), -50.0)
    return b.transpose(make("contract", b.softmax(scores, 2), heads("vvv", HEADS), spec="hqk,hkd->hqd"), [1, 0, 2])


def token_bias() -> Node:
    scores = make("contract", heads("q", HEADS), heads("kk", HEADS), spec="hqd,hkd->hqk")
    bias = b.reshape(make("sum", embedded("vvv", HEADS * SIZE), axes=(1,)), (1, 1, S))
    weights = b.softmax(masked(make("add", scores, bias)), 2)
    return b.transpose(make("contract", weights, heads("vvv", HEADS), spec="hqk,hkd->hqd"), [1, 0, 2])


def changed_after() -> Node:
    scores = masked(make("contract", heads("q", HEADS), heads("kk", HEADS), spec="hqd,hkd->hqk"))
    weights = make("maximum", b.softmax(scores, 2), b.const(0.01, DType.F32))
    return b.transpose(make("contract", weights, heads("vvv", HEADS), spec="hqk,hkd->hqd"), [1, 0, 2])


def no_softmax() -> Node:
    scores = masked(make("contract", heads("q", HEADS), heads("kk", HEADS), spec="hqd,hkd->hqk"), 0.0)
    return b.transpose(make("contract", scores, heads("vvv", HEADS), spec="hqk,hkd->hqd"), [1, 0, 2])


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (without_mask, "not causal"),
        (weak_mask, "a query at place 0 sees the key at place 1"),
        (token_bias, "depends on more than head and positions"),
        (changed_after, "changed after the softmax"),
        (no_softmax, "outside attention"),
    ],
)
def test_what_is_not_causal_attention_is_refused_by_name(build: object, reason: str) -> None:
    given = Simplify().run(program(build()))  # type: ignore[operator]
    with pytest.raises(CompileError, match=reason):
        MakeStateful().run(RecognizeAttention().run(given))
