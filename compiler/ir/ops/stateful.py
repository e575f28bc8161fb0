"""Attention and state. Effects are explicit: an op that changes a state takes its version and yields the next one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from echoc.compiler.ir.node import Node, topological
from echoc.compiler.ir.types import StateType, TensorType, Type
from echoc.errors import IRError

from .entries import held
from .row import Array, Env, Op


def _attention(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    """q [H, S, D], k [KH, S, D], v [KH, S, Dv] -> [S, H, Dv]; then sinks [H] and a scalar body, as flagged."""
    q, k, v = (i.tensor for i in inputs[:3])
    if q.rank != 3 or k.rank != 3 or v.rank != 3 or q.shape[2] != k.shape[2] or k.shape[:2] != v.shape[:2]:
        raise IRError(f"found q {q}, k {k}, v {v}; wanted [H, S, D], [KH, S, D], [KH, S, Dv]")
    _check_heads(q.shape[0], k.shape[0])
    _check_extras(inputs[3:], attrs)
    return TensorType((q.shape[1], q.shape[0], v.shape[2]), q.dtype)


def _check_heads(heads: Any, kv_heads: Any) -> None:
    if not isinstance(heads, int) or not isinstance(kv_heads, int) or heads % kv_heads:
        raise IRError(f"{heads} query heads do not share {kv_heads} key heads evenly")


def _check_extras(extras: tuple[Node, ...], attrs: Mapping[str, Any]) -> None:
    wanted = int(attrs["sinks"]) + int(attrs["body"])
    if len(extras) != wanted:
        raise IRError(f"found {len(extras)} inputs for sinks and body; wanted {wanted}")
    if attrs["body"] and extras[-1].tensor.shape != ():
        raise IRError(f"the body is {extras[-1].type}; wanted a scalar")


def _attend(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    """q [T, H, D], K and V states, sequences [T], positions [T], block_table [B, M] -> [T, H, Dv]."""
    q = inputs[0].tensor
    k, v = inputs[1].type, inputs[2].type
    if not isinstance(k, StateType) or not isinstance(v, StateType) or q.rank != 3 or q.shape[2] != k.shape[1]:
        raise IRError(f"found q {q}, K {k}, V {v}; wanted [T, H, D] and pages of [KH, D] and [KH, Dv]")
    _check_heads(q.shape[1], k.shape[0])
    _check_extras(inputs[6:], attrs)
    return TensorType((q.shape[0], q.shape[1], v.shape[1]), q.dtype)


def _append(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Type:
    state, values = inputs[0].type, inputs[1].tensor
    if not isinstance(state, StateType) or state.kind != "pages" or values.shape[1:] != state.shape:
        raise IRError(f"found append of {values} to {state}; wanted pages of the same entry shape")
    return state


def _read(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> TensorType:
    state = inputs[0].type
    if not isinstance(state, StateType) or state.kind != "value":
        raise IRError(f"found read of {state}; wanted a value state")
    return TensorType(state.shape, state.dtype)


def _write(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Type:
    state, value = inputs[0].type, inputs[1].tensor
    if not isinstance(state, StateType) or state.kind != "value" or value != TensorType(state.shape, state.dtype):
        raise IRError(f"found write of {value} to {state}")
    return state


def evaluate_body(body: Node, env: Env, arguments: Mapping[str, Array]) -> Array:
    """The scalar body evaluated over broadcast arrays of its arguments."""
    from echoc.compiler.ir.ops import OPS

    inner = Env(env.symbols, env.ports, env.weights, env.states, arguments)
    values: dict[Node, Any] = {}
    for node in topological([body]):
        values[node] = OPS[node.op].meaning(node, tuple(values[i] for i in node.inputs), inner)
    return np.asarray(values[body])


def attention_rows(
    node: Node, q: Array, k: Array, v: Array, qpos: Array, kpos: Array, sinks: Array | None, body: Node | None, env: Env
) -> Array:
    """Softmax attention in float64: q [H, Q, D], k [KH, K, D], v [KH, K, Dv] -> [Q, H, Dv].

    The scores are scale * q.k, soft-capped as cap * tanh(s / cap), changed by the body, masked (causal: k <= q,
    window: k > q - window); a sink is one more logit per head that takes weight and gives nothing.
    """
    group = q.shape[0] // k.shape[0]
    k, v = np.repeat(k, group, 0).astype(np.float64), np.repeat(v, group, 0).astype(np.float64)
    score = np.einsum("hqd,hkd->hqk", q.astype(np.float64), k) * node["scale"]
    if node["softcap"]:
        score = node["softcap"] * np.tanh(score / node["softcap"])
    qp, kp = qpos[None, :, None], kpos[None, None, :]
    if body is not None:
        heads = np.arange(q.shape[0])[:, None, None]
        score = np.broadcast_to(
            evaluate_body(body, env, {"score": score, "head": heads, "qpos": qp, "kpos": kp}), score.shape
        )
    keep = np.ones(score.shape, bool)
    if node["causal"]:
        keep &= kp <= qp
    if node["window"]:
        keep &= kp > qp - node["window"]
    score = np.where(keep, score, -np.inf)
    top = score.max(-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    top = np.where(np.isfinite(top), top, 0.0)
    weight = np.exp(score - top)
    total = weight.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - top)
    share = np.divide(weight, total, where=total > 0, out=np.zeros_like(weight))
    return np.asarray(np.einsum("hqk,hkd->qhd", share, v))


def _extras(node: Node, args: tuple[Any, ...], first: int) -> tuple[Array | None, Node | None]:
    sinks = np.asarray(args[first], np.float64) if node["sinks"] else None
    return sinks, node.inputs[-1] if node["body"] else None


def _attention_meaning(node: Node, args: tuple[Any, ...], env: Env) -> Array:
    q, k, v = args[:3]
    places = np.arange(q.shape[1], dtype=np.int64)
    sinks, body = _extras(node, args, 3)
    return attention_rows(node, q, k, v, places, places, sinks, body, env).astype(q.dtype)


def _append_meaning(node: Node, args: tuple[Any, ...], env: Env) -> Any:
    """States are float arrays [pages, page_size, *entry]; the entry of position p lies in block p // page_size."""
    state, values, sequences, positions, table = args
    state = np.array(state)
    size = state.shape[1]
    pages = table[sequences, positions // size]
    state[pages, positions % size] = held(values, node.inputs[0].type.dtype)
    return state


def _attend_meaning(node: Node, args: tuple[Any, ...], env: Env) -> Array:
    q, k_state, v_state, sequences, positions, table = args[:6]
    sinks, body = _extras(node, args, 6)
    size = k_state.shape[1]
    out = np.zeros((*q.shape[:2], v_state.shape[-1]), q.dtype)
    for t in range(q.shape[0]):
        length = int(positions[t]) + 1
        kpos = np.arange(length, dtype=np.int64)
        pages = table[int(sequences[t]), kpos // size]
        k, v = (s[pages, kpos % size].swapaxes(0, 1) for s in (k_state, v_state))
        rows = attention_rows(node, q[t][:, None], k, v, positions[t : t + 1].astype(np.int64), kpos, sinks, body, env)
        out[t] = rows[0]
    return out


ROWS = [
    Op("attention", (3, 5), _attention, _attention_meaning, "softmax attention over a whole prompt", 1e-5),
    Op("append", (5, 5), _append, _append_meaning, "pages with the entries of these tokens written"),
    Op("attend", (6, 8), _attend, _attend_meaning, "softmax attention of tokens over their sequences' pages", 1e-5),
    Op("read", (1, 1), _read, lambda n, a, e: a[0], "the value of a state"),
    Op("write", (2, 2), _write, lambda n, a, e: a[1], "a state with another value"),
]
