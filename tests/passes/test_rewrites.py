"""Every rewrite is its own numeric test: its example, both sides through the numpy meanings on random values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from device import interpret, port, program_of, random_array

from echoc.compiler.ir import Node, Program, make
from echoc.compiler.ir.node import topological
from echoc.compiler.ir.ops import OPS
from echoc.compiler.ir.rewrite import LIMIT, Rewrite, Rules, rewrite_rule
from echoc.compiler.ir.types import dim_value
from echoc.compiler.passes.narrow_ids import NARROW
from echoc.compiler.passes.simplify import REWRITES
from echoc.errors import IRError

ALL = {r.name: r for r in (*REWRITES, NARROW)}
SIZES = {"T": 5, "S": 4, "R": 3, "B": 2, "M": 2}


def values(node: Node, seed: int, magnitude: float) -> dict[str, np.ndarray]:
    """Random arrays for the ports below a node; integers stay within their axes."""
    generator = np.random.default_rng(seed)
    out = {}
    for leaf in topological([node]):
        if leaf.op == "port":
            shape = [dim_value(d, SIZES) for d in leaf.shape]
            array = random_array(generator, shape, str(leaf.tensor.dtype))
            out[leaf["name"]] = (array * magnitude).astype(array.dtype) if array.dtype.kind == "f" else array
    return out


def test_the_names_differ_and_every_rewrite_is_documented() -> None:
    assert len(ALL) == len(REWRITES) + 1
    for rewrite in ALL.values():
        assert rewrite.ops <= set(OPS)
        assert rewrite.doc


@pytest.mark.parametrize("name", list(ALL))
def test_a_rewrite_matches_its_example(name: str) -> None:
    rewrite = ALL[name]
    example = rewrite.example()
    assert example.op in rewrite.ops
    found = rewrite.apply(example)
    assert found is not None
    assert found is not example
    assert found.type == example.type


@pytest.mark.parametrize("magnitude", [1.0, 100.0, 0.0])
@pytest.mark.parametrize("name", list(ALL))
def test_both_sides_have_one_value(name: str, magnitude: float) -> None:
    left = ALL[name].example()
    right = ALL[name].apply(left)
    assert right is not None
    symbols = {s: (1, 8) for n in topological([left]) for s in n.tensor.symbols}
    program = program_of({"left": left, "right": right}, symbols)
    for seed in range(5):
        out = interpret(program, values(left, seed, magnitude))
        assert out["left"].dtype == out["right"].dtype
        np.testing.assert_allclose(out["right"], out["left"], rtol=2e-6, equal_nan=True)


@pytest.mark.parametrize("name", list(ALL))
def test_the_whole_set_settles_on_every_example(name: str) -> None:
    program = program_of({"out": ALL[name].example()}, dict.fromkeys(ALL[name].example().tensor.symbols, (1, 8)))
    rules = Rules(tuple(ALL.values()))
    once = program.map_rules(lambda rule: rewrite_rule(rule, rules))
    assert rules.counts.total() > 0
    assert rules.counts[name] > 0 or any(ALL[n].ops & ALL[name].ops for n in rules.counts)
    again = Rules(tuple(ALL.values()))
    assert once.map_rules(lambda rule: rewrite_rule(rule, again)) == once
    assert again.counts.total() == 0


def simplified(node: Node) -> Node:
    rules = Rules(tuple(REWRITES))
    program: Program = program_of({"y": node}, {"T": (1, 8)}).map_rules(lambda rule: rewrite_rule(rule, rules))
    return program.skin.rules[0].outputs[0][1]


def test_floats_keep_their_signed_zeros_and_nans() -> None:
    x = port("x", 3)
    zero = make("const", value=0.0, dtype="f32")
    assert simplified(make("add", x, zero)).op == "add"
    assert simplified(make("mul", x, zero)).op == "mul"
    assert simplified(make("sub", x, x)).op == "sub"


def always(name: str, op: str, build: object) -> Rewrite:
    return Rewrite(name, frozenset({op}), build, lambda: make(op, port("x", 3)), "a rule of this test")  # type: ignore[arg-type]


def test_rules_that_loop_are_named() -> None:
    loop = Rules((
        always("there", "neg", lambda n: make("abs", n.inputs[0])),
        always("and_back", "abs", lambda n: make("neg", n.inputs[0])),
    ))  # fmt: skip
    program = program_of({"y": make("neg", port("x", 3))})
    with pytest.raises(IRError, match="do not settle") as error:
        program.map_rules(lambda rule: rewrite_rule(rule, loop))
    assert "there" in str(error.value) or "and_back" in str(error.value)


def test_rules_that_grow_are_named() -> None:
    grow = Rules((always("taller", "neg", lambda n: make("neg", make("abs", n))),))
    program = program_of({"y": make("neg", port("x", 3))})
    with pytest.raises(IRError, match="taller"):
        program.map_rules(lambda rule: rewrite_rule(rule, grow))
    assert grow.counts["taller"] <= LIMIT + 1


def test_a_rule_that_changes_the_type_is_named() -> None:
    wrong = Rules((always("shrink", "neg", lambda n: make("sum", n, axes=(0,))),))
    program = program_of({"y": make("neg", port("x", 3))})
    with pytest.raises(IRError, match="rewrite shrink changed"):
        program.map_rules(lambda rule: rewrite_rule(rule, wrong))


def test_shared_nodes_are_rewritten_once() -> None:
    x = make("neg", make("neg", port("x", 3)))
    rules = Rules(tuple(REWRITES))
    node = make("add", make("exp", x), make("sin", x))
    program = program_of({"y": node, "z": make("cos", x)})
    done = program.map_rules(lambda rule: rewrite_rule(rule, rules))
    assert rules.counts["neg_neg"] == 1
    assert replace(done, skin=replace(done.skin, rules=())) == replace(program, skin=replace(program.skin, rules=()))
