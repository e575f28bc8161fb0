"""From a traced transformers model to a program: one membrane whose rule `prompt` maps tokens to logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from echoc.compiler.importers import build as b
from echoc.compiler.importers.aten import TOKENS, convert_graph
from echoc.compiler.importers.huggingface.export import ExportedModel
from echoc.compiler.ir import DType, Membrane, Node, Port, Program, Rule, TensorType, make
from echoc.compiler.ir.types import symbol
from echoc.errors import CompileError

_NUMPY = {
    "float64": DType.F64, "float32": DType.F32, "float16": DType.F16, "int64": DType.I64, "int32": DType.I32,
    "int16": DType.I16, "int8": DType.I8, "uint8": DType.U8, "bool": DType.BOOL,
}  # fmt: skip
MIN_BAND = 8  # smaller squares may be a pattern by chance


def causal_band(value: np.ndarray[Any, Any]) -> Node | None:
    """A stored mask of ones on some diagonals, as a comparison of row and column; None for any other table.

    Models keep triangles of ones [..., N, N] as buffers; compared positions need no memory and can be reasoned about.
    """
    size = value.shape[-1] if value.ndim >= 2 else 0
    if size < MIN_BAND or value.shape[-2] != size or value.size != size * size:
        return None
    square = value.reshape(size, size)
    by_distance = np.concatenate([square[::-1, 0], square[0, 1:]])  # from the lower left corner to the upper right
    ones = np.flatnonzero(by_distance)
    distance = np.arange(size)[None, :] - np.arange(size)[:, None] + size - 1
    if not ones.size or ones.size == by_distance.size:
        return None
    low, high = int(ones[0]), int(ones[-1])
    if not np.array_equal(square, ((distance >= low) & (distance <= high)).astype(value.dtype)):
        return None
    row, column = b.reshape(make("iota", size=size), (size, 1)), b.reshape(make("iota", size=size), (1, size))
    tests = []
    if high < 2 * size - 2:
        tests.append(make("le", column, _moved(row, high - size + 1)))
    if low > 0:
        tests.append(make("le", _moved(row, low - size + 1), column))
    keep = tests[0] if len(tests) == 1 else make("and", *tests)
    return b.reshape(b.cast(keep, _NUMPY[str(value.dtype)]), value.shape)


def _moved(places: Node, by: int) -> Node:
    return b.binary("add", places, by) if by else places


def prompt_program(model: ExportedModel, context_length: int) -> Program:
    """The program of a traced model.

    Args:
        model: core-ATen graph with bindings of its placeholders.
        context_length: the upper bound of the token axis.
    Raises:
        CompileError: names the fx node that cannot be converted, with the module it came from.
    """
    s = symbol(TOKENS)
    tokens = Port("tokens", "in", TensorType((s,), DType.I32))
    positions = Port("positions", "in", TensorType((s,), DType.I32))
    kinds = {binding.placeholder: binding for binding in model.bindings}

    def placeholder(node: Any) -> Node:
        binding = kinds[node.name]
        if binding.kind == "input":
            port = positions if "position" in binding.name else tokens
            return b.reshape(b.cast(b.port(port.name, port.type), DType.I64), (1, s))
        if binding.kind == "parameter":
            return b.weight(binding.name, model.shapes[binding.name], DType.F32)
        value = model.buffers[binding.name]
        if value.size == 1 and value.ndim == 0:
            return b.const(value.item(), _NUMPY[str(value.dtype)])
        band = causal_band(value)
        return b.weight(binding.name, value.shape, _NUMPY[str(value.dtype)]) if band is None else band

    def refuse(node: Any, reason: str) -> CompileError:
        stack = node.meta.get("nn_module_stack") or {}
        where = list(stack.values())[-1][0] if stack else ""
        return CompileError(f"node {node.name} ({node.target}) in {where or 'the model'}: {reason}")

    (logits,) = convert_graph(model.program.graph_module.graph, placeholder, refuse)
    out = Port("logits", "out", logits.tensor)
    rule = Rule("prompt", (("logits", logits),))
    return Program(Membrane("model", (), (tokens, positions, out), (rule,)), {TOKENS: (1, context_length)})
