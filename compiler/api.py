"""`compile`: a model folder or configuration goes in, one artifact comes out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from echoc.compiler.bundle import Progress, Provenance, write_artifact
from echoc.compiler.ir import Program
from echoc.compiler.kv_format import kv_format
from echoc.compiler.passes.pack import FORMATS, GROUPS
from echoc.compiler.pipeline import language_model_passes, program_passes, run_passes
from echoc.compiler.schedules import Schedule
from echoc.compiler.targets.backends import backend
from echoc.compiler.targets.cpu.build import cache_folder
from echoc.compiler.weights import Source, Weights, random_source
from echoc.errors import CompileError

if TYPE_CHECKING:
    from echoc.runtime.artifact import Artifact


def compile(
    model: str | os.PathLike[str],
    *,
    target: str = "cpu",
    weights_dtype: str = "bf16",
    group: int = 32,
    weights: str | None = None,
    output: str | os.PathLike[str] | None = None,
    context_length: int | None = None,
    kv_dtype: str | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compile a causal language model.

    Args:
        model: a model folder (config.json with safetensors), or a config.json with `weights="random:SEED"`.
        target: `cpu`, or `cpu:LEVEL` with LEVEL `native` or a -march name from x86-64-v3 up; `cuda:LEVEL` with sm_80,
            sm_90a or sm_100; `rocm:LEVEL` with gfx90a, gfx942 or gfx1100. GPUs need no device here, but Triton.
        weights_dtype: f32, bf16, fp8 (e4m3, a scale for each row), int8 or int4; the last two are symmetric in groups
            along the contracted axis.
        group: quantisation group: 32, 64 or 128 values.
        weights: None to read the checkpoint, `random:SEED` to have weights drawn when the artifact is loaded.
        output: the artifact's path; default: the model's name with `.echo` in the working folder.
        context_length: tokens a sequence may have; default: what the configuration says.
        kv_dtype: how keys and values are held: f32, bf16, f16, or int8 or fp8 (e4m3) with an f32 scale for each token
            and kv head; default: f32 for f32 weights; int8 for int8 and int4 weights on CPUs with AVX-512 VNNI, where
            heads have at least 32 values and a multiple of 16; else bf16.
        schedules: for CPUs, by kernel; default: those that `echoc tune` has measured on this machine.
        progress: called as progress(stage, done, total).
    Returns: the opened artifact.
    Raises: CompileError.
    """
    from echoc.runtime.artifact import Artifact

    report = progress or (lambda stage, done, total: None)
    device = backend(target, schedules)
    _check_options(weights_dtype, group)
    seed = _seed(weights)
    source = Path(model)
    path = Path(output) if output is not None else Path(f"{_stem(source)}.echo")
    device.check()
    kv = kv_format(kv_dtype, weights_dtype, device.prefers_narrow_kv())
    imported = _import(source, seed, context_length, report)
    program = run_passes(imported.program, language_model_passes(kv))
    report("lower", 0, 1)
    values = Weights(program.skin, imported.source, imported.buffers)
    lowered = device.lower(program, weights_dtype, group, lambda p: values.codable(p, seed is not None))
    report("lower", 1, 1)
    code = device.build(lowered, report, seed is not None)
    write_artifact(path, lowered, values, code, _provenance(imported, program, seed), report)
    return Artifact(path, verify=False)


def compile_program(
    program: Program,
    weights: Mapping[str, NDArray[Any]],
    *,
    target: str = "cpu",
    weights_dtype: str = "f32",
    group: int = 32,
    output: str | os.PathLike[str],
    progress: Progress | None = None,
    source: Mapping[str, Any] | None = None,
) -> Artifact:
    """Compile any program of one membrane with one rule.

    Args:
        program: a verified program; its membrane's ports are the arrays that a step reads and writes.
        weights: the values of its weights by name, in any float dtype (uint16 arrays are bf16 bits) or as integers.
        target, weights_dtype, group, progress: as for `compile`.
        output: the artifact's path.
        source: what the manifest says of where the program comes from.
    Returns: the opened artifact; `echoc.load` steps it.
    Raises: CompileError (IRError for a program that the verifier rejects).
    """
    from echoc.runtime.artifact import Artifact

    report = progress or (lambda stage, done, total: None)
    device = backend(target)
    _check_options(weights_dtype, group)
    device.check()
    program = run_passes(program, list(program_passes()))
    values = Weights(program.skin, lookup(weights), {})
    lowered = device.lower(program, weights_dtype, group, values.codable)
    path = Path(output)
    write_artifact(path, lowered, values, device.build(lowered, report), Provenance(source or {}), report)
    return Artifact(path, verify=False)


def lookup(weights: Mapping[str, NDArray[Any]]) -> Source:
    """Weights from a mapping; CompileError names the one that is missing."""

    def source(name: str) -> NDArray[Any]:
        if name not in weights:
            raise CompileError(f"the weight {name!r} has no value; given: {', '.join(sorted(weights)) or 'none'}")
        return np.asarray(weights[name])

    return source


class _Imported:
    """A model as a program with where its weights come from."""

    def __init__(
        self, model: Any, program: Program, context_length: int, folder: Path | None, seed: int | None
    ) -> None:
        self.program, self.context_length, self.folder = program, context_length, folder
        self.config = model.config
        self.buffers = model.buffers
        self.std = float(getattr(_text_config(model.config), "initializer_range", None) or 0.02)
        self.source: Source
        if seed is not None:
            self.source = random_source(model.shapes, seed, self.std)
        else:
            self.source = lambda name: model.parameters[name].array()


def _import(source: Path, seed: int | None, context_length: int | None, report: Progress) -> _Imported:
    try:
        from echoc.compiler.importers.huggingface.remember import import_causal_lm, with_context
    except ImportError as error:
        raise CompileError(
            f"compiling needs {error.name}, which is not installed: pip install 'echoc[compile]'"
        ) from error
    report("import", 0, 1)
    folder = source if source.is_dir() else None
    what: Any = source
    if seed is not None:
        from echoc.compiler.importers.huggingface.checkpoint import load_config

        what = load_config(source if folder else _config_folder(source))
    model = import_causal_lm(what, cache_folder().parent / "import")
    length = _context_length(model, context_length)
    program = with_context(model.program, length)
    report("import", 1, 1)
    return _Imported(model, program, length, folder or source.parent, seed)


def _config_folder(source: Path) -> Path:
    if source.name != "config.json" or not source.is_file():
        raise CompileError(f"{source} is no model folder and no config.json")
    return source.parent


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _context_length(model: Any, asked: int | None) -> int:
    """Tokens a sequence may have: what is asked for, else what the configuration says, within what the trace proves."""
    text = _text_config(model.config)
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
    own = next((int(v) for n in names if isinstance(v := getattr(text, n, None), int) and v > 0), None)
    if asked is None:
        return min(own or 8192, int(model.max_tokens))
    if asked < 1:
        raise CompileError(f"the context length is {asked}; wanted at least 1")
    if asked > model.max_tokens:
        raise CompileError(
            f"the context length is {asked}; the traced graph is this model's for up to {model.max_tokens} tokens "
            f"(a table of positions, a rotary scaling or a chunk size ends there): ask for at most {model.max_tokens}"
        )
    return int(asked)


def _check_options(weights_dtype: str, group: int) -> None:
    if weights_dtype not in FORMATS:
        raise CompileError(f"unknown weights dtype {weights_dtype!r}; wanted one of {', '.join(FORMATS)}")
    if group not in GROUPS:
        raise CompileError(f"unknown quantisation group {group}; wanted one of {', '.join(map(str, GROUPS))}")


def _seed(weights: str | None) -> int | None:
    if weights is None:
        return None
    kind, _, seed = weights.partition(":")
    if kind != "random" or not seed.isdigit() or int(seed) >= 2**63:
        raise CompileError(f"unknown weights {weights!r}; wanted random:SEED with a non-negative integer")
    return int(seed)


def _stem(source: Path) -> str:
    return source.resolve().parent.name if source.name == "config.json" else source.resolve().name


def _provenance(imported: _Imported, program: Program, seed: int | None) -> Provenance:
    config = _text_config(imported.config)
    eos = getattr(config, "eos_token_id", None)
    logits = next(p for p in program.skin.ports if p.direction == "out")
    return Provenance(
        source={
            "model_type": getattr(imported.config, "model_type", ""),
            "name": imported.folder.resolve().name if imported.folder else "",
            "config": json.loads(imported.config.to_json_string()),
        },
        model={
            "vocab_size": logits.type.shape[-1],
            "context_length": imported.context_length,
            "eos_token_ids": [] if eos is None else [eos] if isinstance(eos, int) else list(eos),
            "bos_token_id": getattr(config, "bos_token_id", None),
        },
        members=model_files(imported.folder) if imported.folder else {},
        std=imported.std,
        seed=seed,
    )


def model_files(folder: Path) -> dict[str, bytes]:
    """The tokenizer, chat template and generation defaults of a model folder, as the artifact's members."""
    out: dict[str, bytes] = {}
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():
        out["tokenizer.json"] = tokenizer.read_bytes()
    generation = folder / "generation_config.json"
    if generation.is_file():
        out["generation_config.json"] = generation.read_bytes()
    settings = folder / "tokenizer_config.json"
    template = folder / "chat_template.jinja"
    if settings.is_file():
        out["tokenizer_config.json"] = settings.read_bytes()
    if template.is_file():
        out["chat_template.jinja"] = template.read_bytes()
    elif settings.is_file():
        try:
            found = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
        except ValueError as error:
            raise CompileError(f"{settings} is not readable JSON: {error}") from error
        if isinstance(found, str):
            out["chat_template.jinja"] = found.encode()
    return out
