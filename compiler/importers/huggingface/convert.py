"""From a traced transformers model to a program: one membrane whose rule `prompt` maps tokens to logits."""

from __future__ import annotations

from typing import Any

from echoc.compiler.importers import build as b
from echoc.compiler.importers.aten import TOKENS, convert_graph
from echoc.compiler.importers.huggingface.export import ExportedModel
from echoc.compiler.ir import DType, Membrane, Node, Port, Program, Rule, TensorType
from echoc.compiler.ir.types import symbol
from echoc.errors import CompileError

_NUMPY = {
    "float64": DType.F64, "float32": DType.F32, "float16": DType.F16, "int64": DType.I64, "int32": DType.I32,
    "int16": DType.I16, "int8": DType.I8, "uint8": DType.U8, "bool": DType.BOOL,
}  # fmt: skip
SMALL = 16  # buffers of at most this many elements stay constants of the graph when they are scalars


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
        return b.weight(binding.name, value.shape, _NUMPY[str(value.dtype)])

    def refuse(node: Any, reason: str) -> CompileError:
        stack = node.meta.get("nn_module_stack") or {}
        where = list(stack.values())[-1][0] if stack else ""
        return CompileError(f"node {node.name} ({node.target}) in {where or 'the model'}: {reason}")

    (logits,) = convert_graph(model.program.graph_module.graph, placeholder, refuse)
    out = Port("logits", "out", logits.tensor)
    rule = Rule("prompt", (("logits", logits),))
    return Program(Membrane("model", (), (tokens, positions, out), (rule,)), {TOKENS: (1, context_length)})
