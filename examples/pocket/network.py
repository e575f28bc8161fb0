"""The pocket model while it is being trained: a Llama decoder with dropout and quantisation-aware weights.

Parameter names and arithmetic are those of transformers' `LlamaForCausalLM`, into which the weights go at the end.
Formulas: RMSNorm (arXiv:1910.07467), rotary positions (arXiv:2104.09864), SwiGLU (arXiv:2002.05202), grouped query
attention (arXiv:2305.13245); straight-through rounding (arXiv:1308.3432).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig


def round_groups(weight: Tensor, bits: int, group: int) -> Tensor:
    """Symmetric round-to-nearest in groups of `group` along the last axis of `weight` [N, K]; returns floats [N, K]."""
    top = 2 ** (bits - 1) - 1
    rows = weight.reshape(-1, group)
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-8) / top
    return ((rows / scale).round().clamp(-top - 1, top) * scale).view_as(weight)


class Dense(nn.Module):
    """y = x W^T. With `gate` 1 the weights of the forward pass are int4 in groups of 32, with 0 they are exact."""

    def __init__(self, inputs: int, outputs: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * std)

    def value(self, gate: Tensor) -> Tensor:
        """The weight as the forward pass sees it; the gradient goes straight through the rounding."""
        return self.weight + gate * (round_groups(self.weight, 4, 32) - self.weight).detach()

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return F.linear(x, self.value(gate))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in halves: x [B, heads, T, D], cos and sin [T, D]."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class Block(nn.Module):
    """One decoder layer: attention and gated MLP, each behind a norm, dropout on what joins the residual stream."""

    def __init__(self, config: LlamaConfig, dropout: float) -> None:
        super().__init__()
        h, kv, std = config.hidden_size, config.num_key_value_heads * config.head_dim, config.initializer_range
        out_std = std / (2 * config.num_hidden_layers) ** 0.5
        self.config, self.dropout = config, dropout
        self.input_layernorm = nn.RMSNorm(h, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(h, config.rms_norm_eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": Dense(h, h, std),
                "k_proj": Dense(h, kv, std),
                "v_proj": Dense(h, kv, std),
                "o_proj": Dense(h, h, out_std),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": Dense(h, config.intermediate_size, std),
                "up_proj": Dense(h, config.intermediate_size, std),
                "down_proj": Dense(config.intermediate_size, h, out_std),
            }
        )

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, gate: Tensor) -> Tensor:
        b, t, h = x.shape
        heads = (b, t, -1, self.config.head_dim)
        q, k, v = (self.self_attn[f"{n}_proj"](x, gate).view(heads).transpose(1, 2) for n in "qkv")
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        k, v = (
            x.repeat_interleave(self.config.num_attention_heads // self.config.num_key_value_heads, 1) for x in (k, v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.self_attn["o_proj"](y.transpose(1, 2).reshape(b, t, h), gate)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, gate: Tensor) -> Tensor:
        y = self.attend(self.input_layernorm(x), cos, sin, gate)
        x = x + F.dropout(y, self.dropout, self.training)
        y = self.post_attention_layernorm(x)
        y = F.silu(self.mlp["gate_proj"](y, gate)) * self.mlp["up_proj"](y, gate)
        return x + F.dropout(self.mlp["down_proj"](y, gate), self.dropout, self.training)


class Decoder(nn.Module):
    """The trunk under the tied embedding; named `model` in the checkpoint."""

    def __init__(self, config: LlamaConfig, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = Dense(config.hidden_size, config.vocab_size, config.initializer_range)
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Network(nn.Module):
    """tokens int64 [B, T] and targets int64 [B, T] (-100 where none) -> sum of the losses in nats and their count."""

    def __init__(self, config: LlamaConfig, dropout: float, context: int) -> None:
        super().__init__()
        self.model, self.dropout = Decoder(config, dropout), dropout
        frequency = 10000.0 ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = torch.outer(torch.arange(context), frequency).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.model.embed_tokens.value(gate)
        x = F.dropout(F.embedding(tokens, embedding), self.dropout, self.training)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for block in self.model.layers:
            x = block(x, cos, sin, gate)
        logits = F.linear(self.model.norm(x), embedding).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
        return loss, (targets != -100).sum()
