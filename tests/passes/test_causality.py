"""The proof that a mask hides the future accepts what does and names a pair of places for what does not."""

from __future__ import annotations

import numpy as np
import pytest

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, make
from echoc.compiler.ir.ops import Env
from echoc.compiler.ir.ops.stateful import evaluate_body
from echoc.compiler.passes.causality import hides_future, within_the_past

SCORE = make("arg", name="score", dtype=DType.F32)
HEAD, QPOS, KPOS = (make("arg", name=name, dtype=DType.I64) for name in ("head", "qpos", "kpos"))
PAST = make("le", KPOS, QPOS)


def mask(keep: Node, value: float = -1e30) -> Node:
    return make("where", keep, SCORE, b.const(value, DType.F32))


def near(size: int) -> Node:
    return make("lt", make("sub", QPOS, KPOS), b.const(size, DType.I64))


@pytest.mark.parametrize(
    "body",
    [
        mask(PAST),
        mask(PAST, -np.inf),
        mask(make("and", PAST, near(5))),
        make("add", SCORE, make("where", PAST, b.const(0.0, DType.F32), b.const(-1e4, DType.F32))),
        make("sub", mask(PAST), b.cast(make("mul", HEAD, KPOS), DType.F32)),
    ],
)
def test_masks_that_hide_the_future_pass(body: Node) -> None:
    assert hides_future(body, 4, 4096) == ""


@pytest.mark.parametrize(
    "body",
    [
        SCORE,
        mask(PAST, -100.0),
        mask(near(5)),
        mask(make("le", KPOS, b.binary("add", QPOS, 1))),
        mask(make("or", PAST, make("lt", b.const(1000, DType.I64), KPOS))),  # beyond any short sequence
        mask(make("or", PAST, make("eq", HEAD, b.const(3, DType.I64)))),  # in one head only
        make("where", make("take", b.weight("table", (64,), "bool"), QPOS, axis=0), SCORE, mask(PAST)),
    ],
)
def test_masks_that_show_the_future_are_named_with_the_places(body: Node) -> None:
    assert "sees the key at place" in hides_future(body, 4, 4096)


def test_a_sequence_of_one_token_has_no_future() -> None:
    assert hides_future(SCORE, 4, 1) == ""


def test_tests_of_the_past_fall_away() -> None:
    assert within_the_past(mask(PAST)) is SCORE
    assert within_the_past(make("add", SCORE, b.cast(make("lt", QPOS, KPOS), DType.F32))) is SCORE
    window = within_the_past(mask(make("and", PAST, near(5))))
    qpos, kpos = np.arange(20)[:, None], np.arange(20)[None, :]
    given = {"score": np.ones((20, 20)), "head": np.zeros(()), "qpos": qpos, "kpos": kpos}
    kept = (kpos <= qpos) & (evaluate_body(window, Env(), given) > 0)
    np.testing.assert_array_equal(kept, (kpos <= qpos) & (qpos - kpos < 5))
