"""Mixture-of-experts layers without data-dependent shapes: one operator per expert linear, `echoc::experts_linear`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EXPERTS_NAME = "echoc"


@torch.library.custom_op("echoc::experts_linear", mutates_args=())
def experts_linear(x: Tensor, weight: Tensor, ids: Tensor, transposed: bool) -> Tensor:
    """Row i of the result is x[i // R] times the weight of expert ids[i], where R = N // M.

    Args:
        x: [M, K].
        weight: [E, O, K], or [E, K, O] when `transposed`.
        ids: i64 [N], N a multiple of M, values in 0..E-1.
        transposed: the layout of `weight`.

    Returns:
        [N, O].
    """
    rows = x.repeat_interleave(ids.shape[0] // x.shape[0], 0)
    chosen = weight[ids] if not transposed else weight[ids].transpose(1, 2)
    return torch.bmm(chosen, rows.unsqueeze(-1)).squeeze(-1)


@experts_linear.register_fake
def _(x: Tensor, weight: Tensor, ids: Tensor, transposed: bool) -> Tensor:
    return x.new_empty((ids.shape[0], weight.shape[2 if transposed else 1]))


def experts_forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """transformers' experts interface.

    Args:
        module: the experts module; its flags (has_gate, has_bias, is_transposed, has_post_expert_norm) say its form.
        hidden_states: [S, K].
        top_k_index: i64 [S, R], the chosen experts of each token.
        top_k_weights: [S, R].

    Returns:
        [S, K], the weighted sum over the chosen experts.
    """
    tokens, chosen = top_k_index.shape
    ids = top_k_index.reshape(-1).to(torch.int64)

    def linear(x: Tensor, name: str) -> Tensor:
        y = torch.ops.echoc.experts_linear(x, getattr(module, name), ids, bool(module.is_transposed))
        return y + getattr(module, name + "_bias")[ids] if module.has_bias else y

    if module.has_gate:
        inner = module._apply_gate(linear(hidden_states, "gate_up_proj"))
    else:
        inner = module.act_fn(linear(hidden_states, "up_proj"))
    outer = linear(inner, "down_proj")
    if getattr(module, "has_post_expert_norm", False):
        outer = module.post_expert_norm(outer)
    weighted = outer * top_k_weights.reshape(-1).unsqueeze(-1)
    return weighted.view(tokens, chosen, weighted.shape[-1]).sum(dim=1).to(hidden_states.dtype)


def register_experts() -> None:
    """Makes `experts_implementation="echoc"` known to transformers; safe to call again."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, experts_forward)
