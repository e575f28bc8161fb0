"""Which products can tell the best of each row of logits: those that make the port and whose epilogue does the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from device import port, program_of

from echoc.compiler.ir import Node, make, symbol
from echoc.compiler.targets.cpu.lower import lower

R, K, V = symbol("R"), 32, 50


def weight(name: str, *shape: int) -> Node:
    return make("weight", name=name, shape=shape, dtype="f32")


def product(name: str = "w", n: int = V) -> Node:
    return make("contract", port("x", R, K), weight(name, n, K), spec="tk,nk->tn")


def scalar(value: float) -> Node:
    return make("const", value=value, shape=(), dtype="f32")


def softcapped() -> Node:
    return make("mul", make("tanh", make("mul", product(), scalar(0.1))), scalar(10.0))


def less_its_highest() -> Node:
    logits = product()
    highest = make("reshape", make("max", logits, axes=(1,)), shape=(R, 1))
    return make("sub", logits, make("broadcast", highest, shape=(R, V)))


def cut() -> Node:
    return make("slice", product(n=V + 6), starts=(0, 0), stops=(R, V), steps=(1, 1))


def summed() -> Node:
    return make("add", product("a"), product("b"))


def biased() -> Node:
    return make("add", product(), weight("bias", V))


def halved() -> Node:
    return make("cast", product(), dtype="bf16")


@pytest.mark.parametrize(
    ("logits", "chooses"),
    [
        (product, True), (softcapped, True), (biased, True), (summed, True), (less_its_highest, False), (cut, False),
        (halved, False),
    ],
)  # fmt: skip
def test_the_best_are_told_where_nothing_follows_the_product(logits: Callable[[], Node], chooses: bool) -> None:
    found = chosen({"logits": logits()})
    assert all(len(launches) == chooses for launches in found)


def test_other_readers_of_logits_need_all_of_them() -> None:
    logits = product()
    assert chosen({"logits": logits, "other": make("exp", logits)}) == [[], []]
    assert chosen({"scores": logits}) == [[], []]


def test_the_kernel_in_its_place_takes_the_same_arguments() -> None:
    lowered = lower(program_of({"logits": biased()}, {"R": (1, 64)}), "int8", 32)
    for variant in lowered.variants:
        (launch,) = (launch for launch in variant["launches"] if "choosing" in launch)
        stores, chooses = (lowered.sources[name] for name in (launch["kernel"], launch["choosing"]["kernel"]))
        assert launch["args"][-1] == ["port", 1]
        assert stores.count("call->args") == chooses.count("call->args") == len(launch["args"])
        assert f", {launch['choosing']['most']});" in chooses


def chosen(outputs: dict[str, Node]) -> list[list[Any]]:
    """For each variant, the launches that have a kernel for the best."""
    lowered = lower(program_of(outputs, {"R": (1, 64)}), "bf16", 32)
    return [[launch for launch in variant["launches"] if "choosing" in launch] for variant in lowered.variants]
