"""Causal convolutions over tokens in the form that shows it: padded before, nothing cut off after."""

from __future__ import annotations

from typing import Any

import torch


def make_causal(graph_module: torch.fx.GraphModule) -> None:
    """Replaces conv(x, padding=p)[..., :S] by conv(pad(x, p before)), in place.

    Models pad a filter of K taps with (K - 1) zeros on both sides and keep the first S places of S + K - 1.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.convolution.default and _keeps_the_first(node):
            x, weight, bias, stride, padding, *rest = node.args
            with graph.inserting_before(node):
                widths = [int(padding[0]), 0]
                padded = graph.call_function(torch.ops.aten.constant_pad_nd.default, (x, widths, 0.0))
                padded.meta = dict(node.meta)
                value = x.meta["val"]  # padding it would ask torch questions about the length; its shape is known
                padded.meta["val"] = value.new_empty((*value.shape[:2], value.shape[2] + widths[0]))
                filtered = graph.call_function(node.target, (padded, weight, bias, stride, [0], *rest))
            users = list(node.users)
            filtered.meta = dict(users[0].meta)
            for user in users:
                user.replace_all_uses_with(filtered)
                graph.erase_node(user)
            graph.erase_node(node)
    graph_module.recompile()


def _keeps_the_first(node: Any) -> bool:
    """Whether all that is used of a one-dimensional convolution is its first S places, and these see no later ones."""
    x, weight, _, stride, padding, dilation, transposed = node.args[:7]
    if weight.meta["val"].dim() != 3 or transposed or list(stride) != [1] or not node.users:
        return False
    reach = (int(weight.meta["val"].shape[2]) - 1) * int(dilation[0])
    length = str(x.meta["val"].shape[2])
    return int(padding[0]) == reach > 0 and all(
        user.target is torch.ops.aten.slice.Tensor
        and user.args[1] % 3 == 2
        and (len(user.args) < 3 or not user.args[2])
        and str(user.meta["val"].shape[2]) == length
        for user in node.users
    )
