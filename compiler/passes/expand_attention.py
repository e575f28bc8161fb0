"""Attention that no state was made of, in terms of contractions and a softmax."""

from __future__ import annotations

from dataclasses import dataclass

from echoc.compiler.importers import build as b
from echoc.compiler.ir import DType, Node, Program, Rule, make
from echoc.compiler.ir.membrane import substitute
from echoc.compiler.ir.node import rebuild, topological


@dataclass(frozen=True)
class ExpandAttention:
    """Ensures: no `attention` op is left. Its meaning stands in the op table; this is the same in smaller ops."""

    name: str = "expand_attention"

    def run(self, program: Program) -> Program:
        return program.map_rules(_expand_rule)


def _expand_rule(rule: Rule) -> Rule:
    while True:
        found = next((n for n in rule.order if n.op == "attention"), None)
        if found is None:
            return rule
        rule = substitute(rule, {found: expand(found)})


def expand(node: Node) -> Node:
    """softmax(mask(body(softcap(scale * q k^T)))) v for q [H, S, D], k [KH, S, D], v [KH, S, Dv], as [S, H, Dv]."""
    q, k, v = node.inputs[:3]
    heads, tokens = q.shape[0], q.shape[1]
    dtype = q.tensor.dtype
    score = make("contract", q, _for_each_head(k, heads), spec="hqd,hkd->hqk")
    score = b.binary("mul", score, node["scale"])
    if node["softcap"]:
        score = b.binary("mul", make("tanh", b.binary("div", score, node["softcap"])), node["softcap"])
    places = make("iota", size=tokens)
    qpos, kpos = b.reshape(places, (1, tokens, 1)), b.reshape(places, (1, 1, tokens))
    if node["body"]:
        head = b.reshape(make("iota", size=heads), (heads, 1, 1))
        arguments = {"score": b.cast(score, DType.F32), "head": head, "qpos": qpos, "kpos": kpos}
        score = b.broadcast(b.cast(_inline(node.inputs[-1], arguments), dtype), score.shape)
    score = _mask(node, score, qpos, kpos)
    lowest = b.const(-3.0e38, dtype)
    top = make("maximum", b.reduce("max", score, [2], True), lowest)
    if node["sinks"]:
        sinks = b.reshape(b.cast(node.inputs[3], dtype), (heads, 1, 1))
        top = make("maximum", top, sinks)
    weight = make("exp", make("sub", score, top))
    total = b.reduce("sum", weight, [2], True)
    if node["sinks"]:
        total = make("add", total, make("exp", make("sub", sinks, top)))
    nothing = make("le", total, b.const(0.0, dtype))  # a query that sees no key gives zeros
    share = make("div", weight, make("where", nothing, b.const(1.0, dtype), total))
    return make("contract", share, _for_each_head(v, heads), spec="hqk,hkd->qhd")


def _mask(node: Node, score: Node, qpos: Node, kpos: Node) -> Node:
    hidden = b.const(float("-inf"), score.tensor.dtype)
    if node["causal"]:
        score = make("where", make("le", kpos, qpos), score, hidden)
    if node["window"]:
        score = make("where", make("lt", b.binary("sub", qpos, node["window"]), kpos), score, hidden)
    return score


def _for_each_head(x: Node, heads: int | object) -> Node:
    """[KH, S, D] as [H, S, D], each row for its group of query heads."""
    own, tokens, size = x.shape
    if own == heads:
        return x
    assert isinstance(heads, int)
    assert isinstance(own, int)
    wide = b.broadcast(b.reshape(x, (own, 1, tokens, size)), (own, heads // own, tokens, size))
    return b.reshape(wide, (heads, tokens, size))


def _inline(body: Node, arguments: dict[str, Node]) -> Node:
    """The scalar body with its arguments replaced by tensors that broadcast."""
    done: dict[Node, Node] = {}
    for inner in topological([body]):
        done[inner] = (
            arguments[inner["name"]] if inner.op == "arg" else rebuild(inner, tuple(done[i] for i in inner.inputs))
        )
    return done[body]
