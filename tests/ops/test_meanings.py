"""The numpy meanings against torch, which was written by others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from device import interpret, port, program_of, random_array

from echoc.compiler.ir import Node, make
from echoc.compiler.ir.ops import OPS

POSITIVE = ("log", "log1p", "sqrt", "rsqrt", "pow")
UNARY = ("exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "sin", "cos", "atan", "tanh", "erf", "sigmoid", "floor",
         "ceil", "round", "trunc", "neg", "abs")  # fmt: skip
BINARY = {
    "add": "add", "sub": "sub", "mul": "mul", "div": "div", "mod": "remainder", "pow": "pow", "maximum": "maximum",
    "minimum": "minimum", "eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "floordiv": "floor_divide",
}  # fmt: skip
INTEGER = ("and", "or", "xor")


def agree(node: Node, wanted: Callable[..., Any], *, positive: bool = False) -> None:
    """Both on the same random arrays at the node's ports, in order."""
    generator = np.random.default_rng(2)
    program = program_of({"result": node})
    arrays = {}
    for p in program.skin.ports:
        if p.direction == "in":
            array = random_array(generator, [int(str(d)) for d in p.type.shape], str(p.type.dtype))
            arrays[p.name] = np.abs(array) + (array.dtype.kind == "f") * 0.01 if positive else array
    found = interpret(program, arrays)["result"]
    expected = wanted(*(torch.from_numpy(np.array(a)) for a in arrays.values())).numpy()
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str) -> None:
    agree(make(name, port("x", 5, 7, dtype="f64")), getattr(torch, name), positive=name in POSITIVE)


@pytest.mark.parametrize("name", list(BINARY))
def test_binary(name: str) -> None:
    node = make(name, port("x", 5, 7, dtype="f64"), port("y", 7, dtype="f64"))
    agree(node, getattr(torch, BINARY[name]), positive=name in POSITIVE)


@pytest.mark.parametrize("name", INTEGER)
def test_bitwise(name: str) -> None:
    node = make(name, port("x", 5, 7, dtype="i64"), port("y", 5, 7, dtype="i64"))
    agree(node, getattr(torch, f"bitwise_{name}"))


@pytest.mark.parametrize("name", ["sum", "max", "min"])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_reductions(name: str, axes: tuple[int, ...]) -> None:
    wanted = {"sum": torch.sum, "max": torch.amax, "min": torch.amin}[name]
    agree(make(name, port("x", 3, 4, 5, dtype="f64"), axes=axes), lambda x: wanted(x, dim=axes))


@pytest.mark.parametrize("axis", [0, 1])
def test_along_an_axis(axis: int) -> None:
    x = port("x", 4, 6, dtype="f64")
    agree(make("cumsum", x, axis=axis), lambda x: torch.cumsum(x, axis))
    agree(make("argmax", x, axis=axis), lambda x: torch.argmax(x, axis))
    agree(make("concat", x, x, axis=axis), lambda x: torch.cat([x, x], axis))


def test_selection() -> None:
    x = port("x", 4, 9, dtype="f64")
    agree(make("topk", x, axis=1, k=3, part="values"), lambda x: torch.topk(x, 3).values)
    agree(make("topk", x, axis=1, k=3, part="indices"), lambda x: torch.topk(x, 3).indices)
    for down in (False, True):
        sort = make("sort", port("x", 4, 9, dtype="i64"), axis=1, part="indices", descending=down)
        agree(sort, lambda x, down=down: torch.sort(x, descending=down, stable=True).indices)


def test_indexing() -> None:
    index = make("mod", port("i", 4, 6, dtype="i64"), make("const", value=4, dtype="i64"))
    x = port("x", 4, 6, dtype="f64")
    agree(make("gather", x, index, axis=0), lambda x, i: torch.gather(x, 0, i % 4))
    agree(make("take", x, index, axis=0), lambda x, i: x[i % 4])
    updates = port("u", 4, 6, dtype="f64")
    agree(make("scatter", x, index, updates, axis=0, mode="add"), lambda x, i, u: x.scatter_add(0, i % 4, u))


@pytest.mark.parametrize("spec", ["tk,nk->tn", "bij,bjk->bik", "k,k->", "i,j->ij"])
def test_contractions(spec: str) -> None:
    a, c = spec.partition("->")[0].split(",")
    sizes = dict(zip("tknbij", (3, 4, 5, 2, 6, 7), strict=True))
    x, y = (port(n, *(sizes[s] for s in names), dtype="f64") for n, names in (("x", a), ("y", c)))
    agree(make("contract", x, y, spec=spec), lambda x, y: torch.einsum(spec, x, y))


def test_views() -> None:
    x = port("x", 3, 4, dtype="f64")
    agree(make("reshape", x, shape=(2, 6)), lambda x: x.reshape(2, 6))
    agree(make("transpose", x, perm=(1, 0)), lambda x: x.T.contiguous())
    agree(make("broadcast", x, shape=(2, 3, 4)), lambda x: x.expand(2, 3, 4).contiguous())
    agree(make("slice", x, starts=(1, 0), stops=(3, 4), steps=(1, 2)), lambda x: x[1:3, ::2].contiguous())
    agree(
        make("pad", x, low=(1, 0), high=(0, 2), value=0.5),
        lambda x: torch.nn.functional.pad(x, (0, 2, 1, 0), value=0.5),
    )


@pytest.mark.parametrize("target", ["f32", "f16", "i64", "i32", "bool"])
def test_casts(target: str) -> None:
    kinds = {"f32": torch.float32, "f16": torch.float16, "i64": torch.int64, "i32": torch.int32, "bool": torch.bool}
    agree(make("cast", port("x", 30, dtype="f64"), dtype=target), lambda x: x.to(kinds[target]))


def test_bfloat16_rounding() -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    found = interpret(program_of({"y": make("cast", port("x", 1000), dtype="bf16")}), {"x": x})["y"]
    np.testing.assert_array_equal(found, torch.from_numpy(x).bfloat16().float().numpy())


@pytest.mark.parametrize("causal", [True, False])
def test_attention(causal: bool) -> None:
    q, k, v = port("q", 4, 6, 8, dtype="f64"), port("k", 2, 6, 8, dtype="f64"), port("v", 2, 6, 8, dtype="f64")
    node = make("attention", q, k, v, scale=0.3, softcap=0.0, window=0, causal=causal, sinks=False, body=False)

    def wanted(*found: Any) -> Any:
        q, k, v = found
        k, v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3)
        return out.transpose(0, 1).contiguous()

    agree(node, wanted)


def test_the_ops_named_here_exist() -> None:
    assert {*UNARY, *BINARY, *INTEGER} <= set(OPS)
