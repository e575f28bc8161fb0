"""Attention of transformers models as one operator: `echoc::attention`, reached through transformers' own interfaces.

Masks are never dropped. While a model is traced, every mask that transformers builds is an additive float tensor of
shape [1, 1, S, S], computed in the graph from token indices. A mask that is exactly causal, exactly a causal sliding
window, or exactly nothing is also known by name, so that the operator carries it as two attributes and the tensor falls
away unused; any other mask (chunks, prefixes, anything a model composed itself) stays an operand of the operator. Code
that computes attention by hand, beside the interface, reads the same tensor and stays right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from echoc.errors import CompileError

ATTENTION_NAME = "echoc"
_MASK_ATTRIBUTE = "_echoc_mask"

# Arguments of the attention interface that do not change its result for one unpadded sequence without a cache.
_NEUTRAL_ARGUMENTS = frozenset(
    {
        "cache",
        "cache_position",
        "cross_attn_head_mask",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "cu_seqlens",
        "deterministic",
        "head_mask",
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
_MUST_BE_NONE = frozenset(
    {"cache", "head_mask", "cross_attn_head_mask", "cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens"}
)


@dataclass(frozen=True)
class MaskKind:
    """A mask known exactly: `causal` forbids keys after the query; `window` > 0 forbids keys at distance >= window."""

    causal: bool
    window: int = 0


@torch.library.custom_op("echoc::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    bias: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
    causal: bool,
    layer: int,
) -> Tensor:
    """Softmax attention of one sequence over itself.

    Args:
        q: [1, H, S, D]; head h reads key/value head h // (H // KVH).
        k: [1, KVH, S, D].
        v: [1, KVH, S, Dv].
        sinks: [H] or None: one extra logit per head that takes part in the softmax and carries no value.
        bias: broadcastable to [1, H, S, S] or None: added to the scores after scale and soft cap.
        scale: factor on q . k.
        window: > 0: keys with q_index - k_index >= window are masked out; 0: off.
        softcap: > 0: scores become softcap * tanh(scores / softcap), after scale and before bias; 0: off.
        causal: keys with k_index > q_index are masked out.
        layer: index of the layer that calls, or -1.

    Returns:
        [1, S, H, Dv], contiguous.
    """
    groups = q.shape[1] // k.shape[1]
    scores = torch.matmul(q, k.repeat_interleave(groups, 1).transpose(2, 3)) * scale
    if softcap > 0:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])[None, :]
    if causal:
        scores = scores.masked_fill(distance < 0, float("-inf"))
    if window > 0:
        scores = scores.masked_fill(distance >= window, float("-inf"))
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], 1).to(scores.dtype)
        weights = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
    else:
        weights = torch.softmax(scores, -1)
    return torch.matmul(weights, v.repeat_interleave(groups, 1)).transpose(1, 2).contiguous()


@attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    bias: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
    causal: bool,
    layer: int,
) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    indices: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: emits `echoc::attention`, or refuses by name what it cannot carry."""
    where = f"{type(module).__name__} of layer {getattr(module, 'layer_idx', '?')}"
    _refuse_unknown(where, dropout, kwargs)
    _check_shapes(where, query, key, value)
    kind: MaskKind | None
    bias = position_bias
    if attention_mask is None:
        kind = MaskKind(causal=bool(is_causal)) if is_causal is not None else MaskKind(causal=False)
    else:
        kind = getattr(attention_mask, _MASK_ATTRIBUTE, None)
    if kind is None:
        assert attention_mask is not None
        additive = attention_mask
        if additive.dtype == torch.bool:
            additive = torch.where(additive, 0.0, torch.finfo(query.dtype).min)
        bias = additive if bias is None else bias + additive
        kind = MaskKind(causal=False)
    if indices is not None:
        bias = _only_selected(query, key, indices, bias)
    output = torch.ops.echoc.attention(
        query,
        key,
        value,
        None if s_aux is None else s_aux.reshape(-1),
        bias,
        float(scaling) if scaling is not None else float(query.shape[-1]) ** -0.5,
        kind.window,
        float(softcap or 0.0),
        kind.causal,
        int(getattr(module, "layer_idx", -1) if getattr(module, "layer_idx", None) is not None else -1),
    )
    return output, None


def _only_selected(query: Tensor, key: Tensor, indices: Tensor, bias: Tensor | None) -> Tensor | None:
    """The bias that leaves each query the keys that an indexer selected for it: indices [1, S, n], int.

    A selection as long as the sequence is all of it, and needs no bias.
    """
    if indices.shape[-1] == key.shape[2]:
        return bias
    unselected = torch.ones((1, query.shape[2], key.shape[2]), dtype=torch.bool)
    unselected = unselected.scatter(-1, indices.long(), False).unsqueeze(1)
    selection = torch.where(unselected, torch.finfo(query.dtype).min, 0.0)
    return selection if bias is None else bias + selection


def _refuse_unknown(where: str, dropout: float, kwargs: dict[str, Any]) -> None:
    if dropout:
        raise CompileError(f"{where} applies dropout {dropout} in evaluation; expected 0.")
    for name, value in kwargs.items():
        if value is None or (name in _NEUTRAL_ARGUMENTS and name not in _MUST_BE_NONE):
            continue
        raise CompileError(
            f"{where} passes {name!r} ({type(value).__name__}) to its attention function; echoc's attention operator "
            "carries scale, causality, window, soft cap, sinks and an additive bias, and cannot carry this argument."
        )


def _check_shapes(where: str, query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise CompileError(
            f"{where} calls attention with ranks {query.dim()}, {key.dim()}, {value.dim()}; expected q, k and v of "
            "rank 4 [batch, heads, tokens, size]."
        )
    if query.shape[1] % key.shape[1]:
        raise CompileError(f"{where} has {query.shape[1]} query heads over {key.shape[1]} key heads: not a multiple.")
    if query.shape[2] is not key.shape[2] and query.shape[2] != key.shape[2]:
        raise CompileError(
            f"{where} attends from {query.shape[2]} queries to {key.shape[2]} keys; only self-attention of a sequence "
            "over itself is supported (no cross-attention, no compressed keys)."
        )


def mask_forward(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> Tensor:
    """transformers' mask interface: the eager float mask [1, 1, S, S], marked with its `MaskKind` where it has one."""
    from transformers import masking_utils

    function = mask_function if mask_function is not None else masking_utils.causal_mask_function
    kwargs.pop("allow_is_bidirectional_skip", None)
    mask: Tensor = masking_utils.eager_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=function,
        attention_mask=attention_mask,
        dtype=dtype,
        **kwargs,
    )
    if attention_mask is None and _is_zero(q_offset) and _is_zero(kv_offset):
        kind = recognise_mask(function, kwargs.get("local_size"))
        if kind is not None:
            setattr(mask, _MASK_ATTRIBUTE, kind)
    return mask


def recognise_mask(function: Callable[..., Any], local_size: int | None) -> MaskKind | None:
    """The exact meaning of a mask function of transformers, or None when it is not one of the three known ones."""
    from transformers import masking_utils

    if _same_function(function, masking_utils.causal_mask_function):
        return MaskKind(causal=True)
    if _same_function(function, masking_utils.bidirectional_mask_function):
        return MaskKind(causal=False)
    if local_size is not None and _same_function(
        function, masking_utils.sliding_window_causal_mask_function(local_size)
    ):
        # transformers keeps a key when k_index > q_index - local_size
        return MaskKind(causal=True, window=int(local_size))
    return None


def _same_function(left: Any, right: Any) -> bool:
    """Whether two functions are made of the same code over the same captured values, all the way down."""
    if left is right:
        return True
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(_same_function, left, right))
    if not hasattr(left, "__code__") or not hasattr(right, "__code__"):
        return type(left) is type(right) and isinstance(left, int | float | bool) and left == right
    if left.__code__ is not right.__code__:
        return False
    left_cells = tuple(cell.cell_contents for cell in left.__closure__ or ())
    right_cells = tuple(cell.cell_contents for cell in right.__closure__ or ())
    return _same_function(left_cells, right_cells)


def _is_zero(value: Any) -> bool:
    return isinstance(value, int) and value == 0


def register_attention() -> None:
    """Makes `attn_implementation="echoc"` known to transformers; safe to call again."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, mask_forward)
