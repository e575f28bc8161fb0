"""Complex numbers out of a traced graph: every complex value becomes two real ones.

Some rotary embeddings rotate by complex multiplication: (a + bi)(c + di) = (ac - bd) + (ad + bc)i.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from echoc.errors import CompileError

Pair = tuple[Node, Node]

_aten: Any = torch.ops.aten
_SHAPE_OPS = frozenset(
    {
        _aten.unsqueeze.default,
        _aten.squeeze.dims,
        _aten.view.default,
        _aten.permute.default,
        _aten.slice.Tensor,
        _aten.select.int,
        _aten.expand.default,
        _aten.clone.default,
    }
)


def make_real(module: GraphModule) -> None:
    """Rewrites the graph in place. Raises CompileError, naming the node, for a complex operation it does not know."""
    graph = module.graph
    pairs: dict[Node, Pair] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        takes = any(argument in pairs for argument in node.all_input_nodes)
        if not takes and not _is_complex(node):
            continue
        with graph.inserting_before(node):
            if node.target == _aten.view_as_real.default:
                node.replace_all_uses_with(_interleaved(graph, pairs[node.args[0]]))
            else:
                pairs[node] = _pair(graph, node, pairs)
    for node in reversed(list(graph.nodes)):
        if not node.users and (node in pairs or node.target == _aten.view_as_real.default):
            graph.erase_node(node)
    module.recompile()


def _is_complex(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_complex


def _pair(graph: Graph, node: Node, pairs: dict[Node, Pair]) -> Pair:
    """The real and the imaginary part of a complex node."""
    args: tuple[Any, ...] = node.args
    if node.target == _aten.view_as_complex.default:
        return _call(graph, _aten.select.int, args[0], -1, 0), _call(graph, _aten.select.int, args[0], -1, 1)
    if node.target == _aten.polar.default:
        cosine, sine = _call(graph, _aten.cos.default, args[1]), _call(graph, _aten.sin.default, args[1])
        return _multiply(graph, args[0], cosine), _multiply(graph, args[0], sine)
    if node.target == _aten.mul.Tensor:
        return _product(graph, args, pairs)
    if node.target in _SHAPE_OPS:
        real, imaginary = pairs[args[0]]
        kwargs = dict(node.kwargs)
        return _call(graph, node.target, real, *args[1:], **kwargs), _call(
            graph, node.target, imaginary, *args[1:], **kwargs
        )
    raise CompileError(f"node {node.name} computes {node.target} on complex numbers; supported are products and views.")


def _product(graph: Graph, args: tuple[Any, ...], pairs: dict[Node, Pair]) -> Pair:
    left, right = args
    if left in pairs and right in pairs:
        (a, b), (c, d) = pairs[left], pairs[right]
        real = _call(graph, _aten.sub.Tensor, _multiply(graph, a, c), _multiply(graph, b, d))
        return real, _call(graph, _aten.add.Tensor, _multiply(graph, a, d), _multiply(graph, b, c))
    (a, b), factor = (pairs[left], right) if left in pairs else (pairs[right], left)
    return _multiply(graph, a, factor), _multiply(graph, b, factor)


def _interleaved(graph: Graph, pair: Pair) -> Node:
    """[..., 2]: the parts side by side in a new last axis."""
    parts = [_call(graph, _aten.unsqueeze.default, part, -1) for part in pair]
    return _call(graph, _aten.cat.default, parts, -1)


def _multiply(graph: Graph, left: Any, right: Any) -> Node:
    return _call(graph, _aten.mul.Tensor, left, right)


def _call(graph: Graph, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A new node with the shape that the operation gives its inputs' shapes."""
    node = graph.call_function(target, args, kwargs)
    values, named = torch.fx.node.map_arg((args, kwargs), lambda argument: argument.meta["val"])
    node.meta["val"] = target(*values, **named)
    return node
