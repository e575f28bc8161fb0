"""Pages of a state as devices hold them, from and to [pages, 16, heads, dim] of what is read back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from interpreter import TORCH

from echoc.compiler.ir import DType, StateType
from echoc.compiler.ir.ops.entries import quantise

Array = np.ndarray[Any, Any]


def pack(pages: Array, type_: StateType) -> torch.Tensor:
    """Flat: of 8 bits, for each head of a page the codes of 16 entries, then their scales."""
    turned = np.ascontiguousarray(pages.transpose(0, 2, 1, 3))
    if not type_.scaled:
        return torch.tensor(turned).to(TORCH[str(type_.dtype)])
    codes, scales = quantise(turned, type_.dtype)
    narrow = torch.tensor(codes).to(torch.int8 if type_.dtype is DType.I8 else torch.float8_e4m3fn)
    flat = narrow.view(torch.uint8).reshape(*turned.shape[:2], -1).numpy()
    tail = scales.reshape(*turned.shape[:2], -1).view(np.uint8)
    packed = torch.tensor(np.concatenate([flat, tail], -1))
    return packed.view(torch.int8) if type_.dtype is DType.I8 else packed


def unpack(memory: torch.Tensor, type_: StateType) -> Array:
    """The inverse of `pack`."""
    heads, dim = type_.shape
    if not type_.scaled:
        return memory.to(torch.float32).numpy().reshape(-1, heads, 16, dim).transpose(0, 2, 1, 3)
    pieces = memory.view(torch.uint8).reshape(-1, heads, 16 * (dim + 4))
    codes = pieces[..., : 16 * dim].contiguous().view(torch.int8 if type_.dtype is DType.I8 else torch.float8_e4m3fn)
    scales = pieces[..., 16 * dim :].contiguous().numpy().view(np.float32)[..., None]
    found: Array = codes.to(torch.float32).numpy().reshape(-1, heads, 16, dim) * scales
    return found.transpose(0, 2, 1, 3)
