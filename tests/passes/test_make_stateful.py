"""Tokens are followed through every layout they may take; what mixes them is refused with the node."""

from __future__ import annotations

import numpy as np
import pytest
from prompts import S, embedded, program, prompt, stepped

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, make
from echoc.compiler.passes.make_stateful import MakeStateful
from echoc.errors import CompileError

COPIES, WIDTH = 4, 24


def copies(x: Node) -> Node:
    """[COPIES * S, width]: the whole sequence again for each copy."""
    width = x.shape[1]
    return b.reshape(b.broadcast(b.reshape(x, (1, S, width)), (COPIES, S, width)), (COPIES * S, width))


def gates() -> Node:
    """[S, COPIES]."""
    return make("slice", embedded("kk", WIDTH), starts=(0, 0), stops=(S, COPIES), steps=(1, 1))


def experts() -> Node:
    weighted = make("mul", copies(embedded("q", WIDTH)), b.reshape(b.transpose(gates(), [1, 0]), (COPIES * S, 1)))
    return make("sum", b.reshape(weighted, (COPIES, S, WIDTH)), axes=(0,))


def interleaved() -> Node:
    """Gates counted within each token meet copies of the sequence."""
    weighted = make("mul", copies(embedded("q", WIDTH)), b.reshape(gates(), (COPIES * S, 1)))
    return make("sum", b.reshape(weighted, (COPIES, S, WIDTH)), axes=(0,))


def cumulative() -> Node:
    return make("cumsum", embedded("q", WIDTH), axis=0)


def mean_of_tokens() -> Node:
    return make("add", embedded("q", WIDTH), make("sum", embedded("kk", WIDTH), axes=(0,)))


def shifted() -> Node:
    padded = make("pad", embedded("q", WIDTH), low=(1, 0), high=(0, 0), value=0.0)
    return make("take", padded, make("iota", size=S), axis=0)


def flipped() -> Node:
    last = b.binary("sub", b.dim_scalar(S, DType.I64), 1)
    return make("take", embedded("q", WIDTH), make("sub", last, make("iota", size=S)), axis=0)


def test_copies_of_the_sequence_keep_its_tokens_apart() -> None:
    given = program(experts())
    np.testing.assert_allclose(stepped(MakeStateful().run(given)), prompt(given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [interleaved, cumulative, mean_of_tokens, shifted, flipped])
def test_what_mixes_tokens_is_refused_with_the_node(build: object) -> None:
    given = program(build())  # type: ignore[operator]
    with pytest.raises(CompileError, match=r"^refused \w+\(.*: .*(token|shape)"):
        MakeStateful().run(given)
