"""A causal language model of transformers as a core-ATen graph with a symbolic token axis and no weight in memory."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from echoc.compiler.importers.huggingface.attention import ATTENTION_NAME, register_attention
from echoc.compiler.importers.huggingface.checkpoint import Checkpoint, WeightReference, load_config, separate_untied
from echoc.compiler.importers.huggingface.complexes import make_real
from echoc.compiler.importers.huggingface.convolutions import make_causal
from echoc.compiler.importers.huggingface.experts import EXPERTS_NAME, register_experts
from echoc.compiler.importers.huggingface.lengths import admissible_length
from echoc.errors import CompileError

_SAMPLE_LENGTH = 24  # tokens in the traced example; any length that no model's own sizes are likely to equal
MAX_TOKENS = 1 << 20  # upper bound of the symbolic token axis


@dataclass(frozen=True)
class Binding:
    """What one placeholder of the graph stands for, in the graph's order."""

    placeholder: str
    kind: Literal["parameter", "buffer", "input"]
    name: str


@dataclass(frozen=True)
class ExportedModel:
    """A traced model.

    Attributes:
        program: core-ATen ExportedProgram; its one output is the logits, f32 [1, S, V].
        bindings: one per placeholder: a parameter, a buffer, or an input (input_ids i64 [1, S], and position_ids
            i64 [1, S] where the model accepts them).
        parameters: parameter name -> where its values lie in the checkpoint; tied names share one reference. Empty
            values (None) when the model was made from a configuration alone.
        shapes: parameter name -> shape.
        buffers: buffer or constant name -> its true values.
        config: the transformers configuration.
        max_tokens: the longest sequence that the graph is right for.
    """

    program: torch.export.ExportedProgram
    bindings: tuple[Binding, ...]
    parameters: dict[str, WeightReference | None]
    shapes: dict[str, tuple[int, ...]]
    buffers: dict[str, np.ndarray[Any, Any]]
    config: Any
    max_tokens: int


class _Step(nn.Module):
    """The model as a function of tokens (and positions) alone."""

    def __init__(self, model: nn.Module, takes_positions: bool) -> None:
        super().__init__()
        self.model = model
        self.takes_positions = takes_positions

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        arguments: dict[str, Any] = {"position_ids": position_ids} if self.takes_positions else {}
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            arguments["use_cache"] = False
        output = self.model(input_ids=input_ids, return_dict=True, **arguments)
        logits: Tensor = output.logits
        return logits.float()


def export_causal_lm(source: Path | str | Any, weights: bool = True) -> ExportedModel:
    """Traces the causal language model of a folder or of a transformers configuration.

    Args:
        source: a model folder (config.json and, for weights, safetensors) or a `PretrainedConfig`.
        weights: whether the folder's checkpoint is used; without, only its configuration is read.

    Raises:
        CompileError: no such folder, foreign configuration, or a graph that cannot be traced for every length.
    """
    return trace_causal_lm(open_causal_lm(source, weights))


@dataclass(frozen=True)
class OpenedModel:
    """A model before it is traced: parameters are shapes only, `references` say where their values lie."""

    model: Any
    fake_mode: FakeTensorMode
    config: Any
    references: dict[str, WeightReference]
    max_tokens: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in _named_parameters(self.model).items()}

    @property
    def ties(self) -> list[list[str]]:
        """Names that share one parameter, in groups."""
        groups: dict[int, list[str]] = {}
        for name, value in _named_parameters(self.model).items():
            groups.setdefault(id(value), []).append(name)
        return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def open_causal_lm(source: Path | str | Any, weights: bool = True) -> OpenedModel:
    """Builds the model of `export_causal_lm` without tracing it."""
    from_folder = isinstance(source, str | Path)
    config = load_config(Path(source)) if from_folder else source
    fake_mode = _fake_mode()
    model = build_model(config, fake_mode)
    max_tokens = min(MAX_TOKENS, _freeze_rotary(model))
    references: dict[str, WeightReference] = {}
    if from_folder and weights:
        references = Checkpoint(Path(source)).resolve(model)
        with fake_mode:
            separate_untied(model, references)
    return OpenedModel(model, fake_mode, config, references, max_tokens)


def trace_causal_lm(opened: OpenedModel) -> ExportedModel:
    """Traces an opened model."""
    program, max_tokens = _trace(opened.model, opened.fake_mode, opened.max_tokens)
    bindings, buffers = _bind(program)
    shapes, references = opened.shapes, opened.references
    parameters = {name: references.get(name) for name in shapes}
    for name in buffers.keys() & references.keys():
        buffers[name] = references[name].read().astype(buffers[name].dtype)
    return ExportedModel(program, bindings, parameters, shapes, buffers, opened.config, max_tokens)


def build_model(config: Any, fake_mode: FakeTensorMode) -> Any:
    """The model of a configuration, in evaluation mode and f32: parameters are shapes only, buffers are real."""
    register_attention()
    register_experts()
    config = _prepared(config)
    architecture = _architecture(config)
    attention = ATTENTION_NAME if architecture._can_set_attn_implementation() else "eager"
    with _shape_only_parameters(fake_mode):
        try:
            model = architecture._from_config(config, dtype=torch.float32, attn_implementation=attention)
        except Exception as error:  # a configuration may be wrong in as many ways as there are models
            raise CompileError(f"transformers cannot build {architecture.__name__}: {_summary(error)}") from error
        if model._can_set_experts_implementation():
            model.set_experts_implementation(EXPERTS_NAME)
    return model.eval()


def _architecture(config: Any) -> Any:
    """The class of the causal language model: by transformers' table, else by the name that the checkpoint gives."""
    import transformers

    found = transformers.AutoModelForCausalLM._model_mapping.get(type(config), None)
    if found is not None:
        return found[0] if isinstance(found, tuple | list) else found
    for name in getattr(config, "architectures", None) or ():
        architecture = getattr(transformers, name, None)
        if architecture is not None and "CausalLM" in name:
            return architecture
    raise CompileError(
        f"transformers has no causal language model for the configuration {type(config).__name__} "
        f"(model_type {getattr(config, 'model_type', None)!r}, architectures {getattr(config, 'architectures', None)})."
    )


def _prepared(config: Any) -> Any:
    """A copy of the configuration without a cache, quantisation or training-time switches."""
    import copy

    config = copy.deepcopy(config)
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        raise CompileError(
            f"the checkpoint is quantised ({quantised if isinstance(quantised, dict) else type(quantised).__name__}); "
            "expected f32, bf16 or f16 weights: give the unquantised checkpoint and choose --weights-dtype."
        )
    for part in (config, *(getattr(config, key) for key in getattr(config, "sub_configs", {}) if hasattr(config, key))):
        if part is not None and hasattr(part, "use_cache"):
            part.use_cache = False
    return config


def _fake_mode() -> FakeTensorMode:
    return FakeTensorMode(shape_env=_shape_env(), allow_non_fake_inputs=True, export=True)


def _shape_env(deferred: bool = False) -> Any:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return ShapeEnv(tracked_fakes=[], trace_asserts=True, prefer_deferred_runtime_asserts_over_guards=deferred)


@contextlib.contextmanager
def _shape_only_parameters(fake_mode: FakeTensorMode) -> Iterator[None]:
    """Every parameter registered inside becomes a tensor of shape and dtype only; buffers stay real.

    The empty tensor that a layer allocates for its weight is dropped before anything is written to it, so no page of
    it is ever resident.
    """
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not isinstance(param.data, FakeTensor):
            with fake_mode:
                shape_only = torch.empty(param.shape, dtype=param.dtype, device="cpu")
            param = nn.Parameter(shape_only, requires_grad=False)
            param._is_hf_initialized = True  # transformers' own mark: initialise buffers, leave this alone
        original(module, name, param)

    nn.Module.register_parameter = register
    try:
        yield
    finally:
        nn.Module.register_parameter = original


@contextlib.contextmanager
def _one_sequence_per_row() -> Iterator[None]:
    """Tells transformers' mask code that a row of tokens is one sequence, which it cannot see while tracing."""
    from transformers import masking_utils

    original = getattr(masking_utils, "find_packed_sequence_indices", None)
    if original is not None:
        masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        if original is not None:
            masking_utils.find_packed_sequence_indices = original


def _freeze_rotary(model: nn.Module) -> int:
    """Holds rotary frequencies that would change with the length of the sequence at those of short sequences.

    Returns:
        The number of tokens up to which this is what the model computes.
    """
    limit = MAX_TOKENS
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if not isinstance(kinds, str | dict):
            continue
        by_layer = kinds if isinstance(kinds, dict) else {None: kinds}
        for layer_type, kind in by_layer.items():
            if kind == "longrope" or "dynamic" in kind:
                limit = min(limit, _rotary_limit(module, kind, layer_type))
                by_layer[layer_type] = "default"
        if isinstance(kinds, str):
            module.rope_type = by_layer[None]
    return limit


def _rotary_limit(module: nn.Module, kind: str, layer_type: str | None) -> int:
    config: Any = module.config
    parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    if kind == "longrope":
        return int(parameters["original_max_position_embeddings"])
    return int(config.max_position_embeddings)


def _trace(model: Any, fake_mode: FakeTensorMode, max_tokens: int) -> tuple[torch.export.ExportedProgram, int]:
    """The core-ATen program, and the longest sequence it holds for: a table of positions may set a bound.

    A first trace shows which guards on the length torch cannot prove; when all short lengths satisfy them, a second
    one is made for these, with those guards deferred.
    """
    deferred = False
    while True:
        try:
            with torch.no_grad(), _quiet(), _one_sequence_per_row():
                program = _export(model, fake_mode, max_tokens, deferred).run_decompositions()
        except CompileError:
            raise
        except Exception as error:  # torch raises dozens of unrelated types while tracing foreign code
            admissible = None if deferred else admissible_length(str(error), max_tokens)
            if admissible is None or admissible <= _SAMPLE_LENGTH:
                name = type(model).__name__
                raise CompileError(f"{name} cannot be traced for every length: {_summary(error)}") from error
            deferred, max_tokens, fake_mode.shape_env = True, admissible, _shape_env(deferred=True)
            continue
        _remove_inert(program.graph_module)
        make_real(program.graph_module)
        make_causal(program.graph_module)
        return program, max_tokens


def _export(model: Any, fake_mode: FakeTensorMode, max_tokens: int, deferred: bool) -> torch.export.ExportedProgram:
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    ids = torch.zeros((1, _SAMPLE_LENGTH), dtype=torch.int64)
    positions = torch.arange(_SAMPLE_LENGTH, dtype=torch.int64)[None]
    arguments = (ids, positions) if takes_positions else (ids,)
    tokens = torch.export.Dim("S", min=2, max=max_tokens)
    with torch._guards.tracing(torch._guards.TracingContext(fake_mode)):
        return torch.export.export(
            _Step(model, takes_positions),
            arguments,
            dynamic_shapes=tuple({1: tokens} for _ in arguments),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=deferred,
        )


def _remove_inert(graph_module: torch.fx.GraphModule) -> None:
    """Drops nodes that compute nothing (assertions on metadata, aliases) and what only they kept alive."""
    aten = torch.ops.aten
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target in (aten._assert_tensor_metadata.default, aten._assert_scalar.default):
            graph.erase_node(node)
        elif node.target in (aten.alias.default, aten.detach.default, aten.detach_.default):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's deprecation warnings about its own internals from the user's screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _summary(error: Exception) -> str:
    """The first informative lines of a torch error, with the model's source line when there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    place = ""
    trace = error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if "modeling_" in filename:
            place = f" (in {trace.tb_frame.f_code.co_qualname}, {Path(filename).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {' '.join(lines[:3])[:600]}{place}"


def _named_parameters(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))


def _bind(
    program: torch.export.ExportedProgram,
) -> tuple[tuple[Binding, ...], dict[str, np.ndarray[Any, Any]]]:
    from torch.export.graph_signature import InputKind

    bindings: list[Binding] = []
    buffers: dict[str, np.ndarray[Any, Any]] = {}
    for spec in program.graph_signature.input_specs:
        placeholder = spec.arg.name
        if spec.kind == InputKind.USER_INPUT:
            bindings.append(Binding(placeholder, "input", placeholder))
            continue
        assert spec.target is not None
        name = spec.target.removeprefix("model.")
        if spec.kind == InputKind.PARAMETER:
            bindings.append(Binding(placeholder, "parameter", name))
            continue
        value = program.state_dict.get(spec.target)
        if value is None:
            value = program.constants[spec.target]
        if isinstance(value, FakeTensor):
            raise CompileError(f"the constant {name} of the traced graph depends on a weight; it cannot be stored.")
        bindings.append(Binding(placeholder, "buffer", name))
        buffers[name] = _to_numpy(value)
    return tuple(bindings), buffers


def _to_numpy(value: Tensor) -> np.ndarray[Any, Any]:
    value = value.detach()
    if value.dtype == torch.bfloat16:
        value = value.float()
    return np.asarray(value.contiguous().numpy())  # a scalar keeps its rank
