"""A tiny llama's step as text, and the source of its kernels: what a change of a pass or a template really does."""

from __future__ import annotations

import re

import pytest
from device import port, program_of
from golden_files import Golden

from echoc.compiler.importers import build as b
from echoc.compiler.ir import Node, Program, make, symbol
from echoc.compiler.ir.text import parse, show
from echoc.compiler.pipeline import program_passes, run_passes
from echoc.compiler.targets.cpu.lower import Lowered, lower

T, B, M = symbol("T"), symbol("B"), symbol("M")
WIDTH, HEADS, KV_HEADS, SIZE, MIDDLE, VOCABULARY = 64, 4, 2, 16, 96, 128


def rms_norm(x: Node, name: str) -> Node:
    mean = b.mean(make("mul", x, x), [-1], True)
    return make("mul", make("mul", x, make("rsqrt", b.binary("add", mean, 1e-5))), b.weight(name, (WIDTH,), "f32"))


def linear(x: Node, name: str, size: int, width: int = WIDTH) -> Node:
    return make("contract", x, b.weight(name, (size, width), "f32"), spec="tk,nk->tn")


def rotary(x: Node, positions: Node) -> Node:
    """Halves of each head turned by position * 10000**(-2i/SIZE)."""
    half = SIZE // 2
    power = b.binary("mul", b.cast(make("iota", size=half), "f32"), -2.0 / SIZE)
    angle = make("mul", b.reshape(b.cast(positions, "f32"), (T, 1, 1)), make("pow", b.const(10000.0, "f32"), power))
    first, second = b.slice_axis(x, 2, 0, half), b.slice_axis(x, 2, half, SIZE)
    cos, sin = make("cos", angle), make("sin", angle)
    left = make("sub", make("mul", first, cos), make("mul", second, sin))
    return make("concat", left, make("add", make("mul", second, cos), make("mul", first, sin)), axis=2)


def llama_step() -> Program:
    """One layer of llama over paged attention, from token ids to logits."""
    tokens, positions, sequences = (port(n, T, dtype="i32") for n in ("tokens", "positions", "sequences"))
    table = port("block_table", B, M, dtype="i32")
    x = make("take", b.weight("embed", (VOCABULARY, WIDTH), "f32"), tokens, axis=0)
    h = rms_norm(x, "attention_norm")
    q = rotary(b.reshape(linear(h, "q", HEADS * SIZE), (T, HEADS, SIZE)), positions)
    k = rotary(b.reshape(linear(h, "k", KV_HEADS * SIZE), (T, KV_HEADS, SIZE)), positions)
    v = b.reshape(linear(h, "v", KV_HEADS * SIZE), (T, KV_HEADS, SIZE))
    after = {}
    for name, value in (("layer0.k", k), ("layer0.v", v)):
        before = make("state", name=name, kind="pages", shape=(KV_HEADS, SIZE), dtype="bf16")
        after[name] = make("append", before, value, sequences, positions, table)
    out = make("attend", q, *after.values(), sequences, positions, table, scale=SIZE**-0.5, softcap=0.0, window=0,
               causal=True, sinks=False, body=False)  # fmt: skip
    x = make("add", x, linear(b.reshape(out, (T, HEADS * SIZE)), "o", WIDTH))
    h = rms_norm(x, "mlp_norm")
    gate = linear(h, "gate", MIDDLE)
    gated = make("mul", make("mul", gate, make("sigmoid", gate)), linear(h, "up", MIDDLE))
    x = make("add", x, linear(gated, "down", WIDTH, MIDDLE))
    logits = linear(rms_norm(x, "norm"), "head", VOCABULARY)
    bounds = {"T": (1, 512), "B": (1, 64), "M": (1, 32)}
    return program_of({"logits": logits}, bounds, after)


@pytest.fixture(scope="module")
def lowered() -> Lowered:
    return lower(run_passes(llama_step(), list(program_passes())), "int8", 32)


def test_step(golden: Golden) -> None:
    golden.check(show(llama_step()), "eir")


def test_step_after_all_passes(golden: Golden) -> None:
    text = show(run_passes(llama_step(), list(program_passes())))
    golden.check(text, "eir")
    parse(text)


def test_launches(golden: Golden, lowered: Lowered) -> None:
    """What the variants of one token and of a prefill run, in order, where threads meet (|), and what each makes for
    itself (=)."""
    lines = []
    for variant in (lowered.variants[0], lowered.variants[2]):
        lines.append(f"at most {variant['max_tokens']} tokens, arena {variant['arena_bytes']} bytes")
        for launch in variant["launches"]:
            marks = ("|" if launch["barrier"] else " ") + ("=" if launch["alike"] else " ")
            lines.append(f"{marks} {launch['kernel'].rpartition('_')[0]:8} {' '.join(launch['ops'])}")
    golden.check("\n".join([*lines, ""]), "txt")


def kernel(lowered: Lowered, family: str, op: str) -> str:
    """The source of the first kernel of a family that does an op, without the digest in its name."""
    for launch in lowered.variants[2]["launches"]:
        name = launch["kernel"]
        if name.startswith(family + "_") and op in launch["ops"]:
            return re.sub(rf"\b{family}_[0-9a-f]{{8}}\b", family, lowered.sources[name])
    raise AssertionError(f"no {family} kernel with {op}")


def test_gated_mlp_kernel(golden: Golden, lowered: Lowered) -> None:
    golden.check(kernel(lowered, "gemm", "sigmoid"), "cpp")


def test_rms_norm_kernel(golden: Golden, lowered: Lowered) -> None:
    golden.check(kernel(lowered, "rows", "rsqrt"), "cpp")


def test_rotary_kernel(golden: Golden, lowered: Lowered) -> None:
    golden.check(kernel(lowered, "rows", "concat"), "cpp")


def test_attend_kernel(golden: Golden, lowered: Lowered) -> None:
    golden.check(kernel(lowered, "attend", "attend"), "cpp")
