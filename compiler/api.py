"""`compile`: a model folder or configuration goes in, one artifact comes out."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoc import _native
from echoc.compiler.artifact import ArtifactWriter, Blob
from echoc.compiler.ir import DType, Program
from echoc.compiler.ir.text import show
from echoc.compiler.passes.pack import FORMATS, GROUPS
from echoc.compiler.pipeline import language_model_passes, run_passes
from echoc.compiler.targets.cpu.build import build_library, find_compiler, target_features
from echoc.compiler.targets.cpu.lower import PAGE_SIZE, Lowered, lower, shape_json, states_of
from echoc.compiler.weights import Source, Weights, random_source
from echoc.errors import CompileError

if TYPE_CHECKING:
    from echoc.runtime.artifact import Artifact

Progress = Callable[[str, int, int], None]
SCHEMA = 1
LIBRARY = "kernels/cpu.so"
WEIGHTS = "weights.safetensors"


def compile(
    model: str | os.PathLike[str],
    *,
    target: str = "cpu",
    weights_dtype: str = "bf16",
    group: int = 32,
    weights: str | None = None,
    output: str | os.PathLike[str] | None = None,
    context_length: int | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compile a causal language model.

    Args:
        model: a model folder (config.json with safetensors), or a config.json with `weights="random:SEED"`.
        target: `cpu`, or `cpu:LEVEL` with LEVEL `native` or a -march name from x86-64-v3 up.
        weights_dtype: f32, bf16, int8 or int4; the last two are symmetric in groups along the contracted axis.
        group: quantisation group: 32, 64 or 128 values.
        weights: None to read the checkpoint, `random:SEED` to have weights drawn when the artifact is loaded.
        output: the artifact's path; default: the model's name with `.echo` in the working folder.
        context_length: tokens a sequence may have; default: what the configuration says.
        progress: called as progress(stage, done, total).
    Returns: the opened artifact.
    Raises: CompileError.
    """
    from echoc.runtime.artifact import Artifact

    report = progress or (lambda stage, done, total: None)
    level = _level(target)
    _check_options(weights_dtype, group)
    seed = _seed(weights)
    source = Path(model)
    path = Path(output) if output is not None else Path(f"{_stem(source)}.echo")
    find_compiler()
    target_features(level)
    imported = _import(source, seed, context_length, report)
    state_dtype = DType.F32 if weights_dtype == "f32" else DType.BF16
    program = run_passes(imported.program, language_model_passes(state_dtype))
    report("lower", 0, 1)
    lowered = lower(program, weights_dtype, group)
    report("lower", 1, 1)
    values = Weights(program.skin, imported.source, imported.buffers)
    library = build_library(lowered.sources, level, report)
    _write(path, lowered, values, library, level, imported, seed, report)
    return Artifact(path, verify=False)


class _Imported:
    """A model as a program with where its weights come from."""

    def __init__(self, model: Any, program: Program, context_length: int, folder: Path | None, seed: int | None) -> None:
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
        from echoc.compiler.importers.huggingface.convert import prompt_program
        from echoc.compiler.importers.huggingface.export import export_causal_lm
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
    model = export_causal_lm(what)
    length = _context_length(model.config, context_length)
    program = prompt_program(model, length)
    report("import", 1, 1)
    return _Imported(model, program, length, folder or source.parent, seed)


def _config_folder(source: Path) -> Path:
    if source.name != "config.json" or not source.is_file():
        raise CompileError(f"{source} is no model folder and no config.json")
    return source.parent


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _context_length(config: Any, asked: int | None) -> int:
    text = _text_config(config)
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
    own = next((int(v) for n in names if isinstance(v := getattr(text, n, None), int) and v > 0), None)
    if asked is None:
        return own or 8192
    if asked < 1:
        raise CompileError(f"the context length is {asked}; wanted at least 1")
    return asked


def _level(target: str) -> str:
    device, _, level = target.partition(":")
    if device != "cpu":
        raise CompileError(f"unknown target {target!r}; wanted cpu or cpu:LEVEL (native, x86-64-v3, x86-64-v4, ...)")
    return level or "native"


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


def _write(
    path: Path, lowered: Lowered, values: Weights, library: bytes, level: str, imported: _Imported, seed: int | None,
    report: Progress,
) -> None:  # fmt: skip
    threads = max(1, os.cpu_count() or 1)
    blobs = []
    specs = []
    for packed in lowered.packing.entries:
        nbytes = _native.packed_nbytes(packed.format, packed.group, packed.interleave, packed.n, packed.k)
        spec = {
            "name": packed.name, "member": WEIGHTS, "format": packed.format, "group": packed.group,
            "interleave": packed.interleave, "shape": [packed.n, packed.k], "experts": packed.experts,
            "nbytes": nbytes * packed.experts, "std": imported.std, "sources": [w["name"] for w in packed.sources],
        }  # fmt: skip
        specs.append(spec)
        if seed is None or any(w["name"] in values.constants for w in packed.sources):
            blobs.append(Blob(packed.name, nbytes * packed.experts, lambda p=packed: values.pack(p, threads)))  # type: ignore[misc]
    for node in lowered.plain:
        array = values.plain(node)
        specs.append(
            {
                "name": node["name"], "member": WEIGHTS, "format": "plain", "group": 0, "interleave": 1,
                "shape": list(node.shape), "dtype": str(node.tensor.dtype), "experts": 1, "nbytes": array.nbytes,
                "std": imported.std, "sources": [node["name"]],
            }
        )  # fmt: skip
        blobs.append(Blob(node["name"], array.nbytes, lambda n=node: [values.plain(n)]))  # type: ignore[misc]
    with ArtifactWriter(path) as writer:
        writer.weights(WEIGHTS, blobs, lambda done, total: report("pack weights", done, total))
        writer.member(LIBRARY, [library])
        writer.member("program.eir", [show(lowered.program).encode()])
        for name, text in sorted(lowered.sources.items()):
            writer.member(f"kernels/{name}.cpp", [text.encode()])
        extras = model_files(imported.folder) if imported.folder else {}
        for name, data in extras.items():
            writer.member(name, [data])
        writer.finish(_manifest(lowered, specs, level, imported, seed))


def _manifest(
    lowered: Lowered, specs: list[dict[str, Any]], level: str, imported: _Imported, seed: int | None
) -> dict[str, Any]:
    from importlib.metadata import version

    skin = lowered.program.skin
    config = _text_config(imported.config)
    eos = getattr(config, "eos_token_id", None)
    logits = next(p for p in skin.ports if p.direction == "out")
    return {
        "schema": SCHEMA,
        "echoc": version("echoc") if _installed() else "0",
        "source": {
            "model_type": getattr(imported.config, "model_type", ""),
            "name": imported.folder.resolve().name if imported.folder else "",
            "config": json.loads(imported.config.to_json_string()),
        },
        "tools": {n: version(n) for n in ("torch", "transformers", "numpy")} | {"compiler": find_compiler().version},
        "target": {
            "device": "cpu", "level": level, "machine": platform.machine(), "features": list(target_features(level)),
        },
        "membrane": {
            "name": skin.name, "states": [s.name for s in skin.states],
            "rules": [r.name for r in skin.rules if r.name != "weights"], "ports": [p.name for p in skin.ports],
            "children": [c.name for c in skin.children],
        },
        "symbols": [{"name": n, "low": a, "high": z} for n, (a, z) in lowered.program.symbols.items()],
        "states": states_of(skin),
        "ports": [
            {"name": p.name, "direction": p.direction, "dtype": str(p.type.dtype), "shape": shape_json(p.type.shape)}
            for p in skin.ports
        ],
        "weights": specs,
        "random_weights": None if seed is None else {"seed": seed},
        "kernels": {"library": LIBRARY, "sources": {n: f"kernels/{n}.cpp" for n in sorted(lowered.sources)}},
        "variants": lowered.variants,
        "model": {
            "vocab_size": logits.type.shape[-1], "context_length": imported.context_length,
            "eos_token_ids": [] if eos is None else [eos] if isinstance(eos, int) else list(eos),
            "bos_token_id": getattr(config, "bos_token_id", None),
        },
        "page_size": PAGE_SIZE,
    }  # fmt: skip


def _installed() -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("echoc")
    except PackageNotFoundError:
        return False
    return True


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
