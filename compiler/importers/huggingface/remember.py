"""Importing with a memory: a graph that was traced before is read back from the build cache.

Tracing costs most of the time of an import and depends on the configuration, the versions of torch and transformers,
the ties between parameters and this compiler's own importers, but not on the weights' values.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from echoc.compiler.importers.aten import TOKENS
from echoc.compiler.importers.huggingface.checkpoint import WeightReference
from echoc.compiler.importers.huggingface.convert import prompt_program
from echoc.compiler.importers.huggingface.export import OpenedModel, open_causal_lm, trace_causal_lm
from echoc.compiler.ir import Program
from echoc.compiler.ir.text import parse, show
from echoc.errors import IRError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ImportedModel:
    """A model as a prompt program, with where its weights come from.

    Attributes:
        program: one membrane whose rule `prompt` maps tokens [S] to logits [1, S, V].
        shapes: parameter name -> shape.
        parameters: parameter name -> where its values lie; empty for a configuration alone.
        buffers: buffer name -> values.
        config: the transformers configuration.
        max_tokens: the longest sequence the graph is right for.
    """

    program: Program
    shapes: dict[str, tuple[int, ...]]
    parameters: dict[str, WeightReference]
    buffers: dict[str, Array]
    config: Any
    max_tokens: int


def import_causal_lm(source: Path | str | Any, folder: Path | None) -> ImportedModel:
    """The model of a folder or configuration; `folder` keeps traced graphs (None: trace anew).

    Raises: CompileError as `export_causal_lm` does.
    """
    opened = open_causal_lm(source)
    key = _key(opened)
    found = _recall(folder / key) if folder is not None else None
    if found is None:
        model = trace_causal_lm(opened)
        found = prompt_program(model, model.max_tokens), dict(model.buffers), model.max_tokens
        if folder is not None:
            _keep(folder / key, *found)
    program, buffers, max_tokens = found
    for name in buffers.keys() & opened.references.keys():
        buffers[name] = opened.references[name].read().astype(buffers[name].dtype)
    return ImportedModel(program, opened.shapes, opened.references, buffers, opened.config, max_tokens)


def with_context(program: Program, length: int) -> Program:
    """The program with the token axis bounded by `length`."""
    return replace(program, symbols={**program.symbols, TOKENS: (1, length)})


@cache
def _own_digest() -> str:
    """A digest of the importers and of the IR they write."""
    digest = hashlib.sha256()
    room = Path(__file__).resolve().parents[2]
    for path in sorted(
        [*(room / "importers").rglob("*.py"), *(room / "ir").rglob("*.py"), room / "passes/scalarize.py"]
    ):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _key(opened: OpenedModel) -> str:
    parts = [
        opened.config.to_json_string(), json.dumps(opened.ties), json.dumps(sorted(opened.shapes)), torch.__version__,
        transformers.__version__, str(opened.max_tokens), _own_digest(),
    ]  # fmt: skip
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _recall(place: Path) -> tuple[Program, dict[str, Array], int] | None:
    """A kept graph; None where there is none or it is damaged, in which case it is traced and written again."""
    try:
        text = (place / "program.eir").read_text()
        facts = json.loads((place / "facts.json").read_text())
        with np.load(place / "buffers.npz", allow_pickle=False) as file:
            buffers = {name: file[f"b{i}"] for i, name in enumerate(facts["buffers"])}
        if facts["sha256"] != _digest(text, buffers):
            return None
        return parse(text), buffers, int(facts["max_tokens"])
    except (OSError, ValueError, KeyError, IRError):
        return None


def _digest(text: str, buffers: dict[str, Array]) -> str:
    digest = hashlib.sha256(text.encode())
    for value in buffers.values():
        digest.update(str(value.dtype).encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _keep(place: Path, program: Program, buffers: dict[str, Array], max_tokens: int) -> None:
    """Written beside and renamed; another process may have been first, which is as good."""
    text = show(program)
    facts = {"buffers": list(buffers), "max_tokens": max_tokens, "sha256": _digest(text, buffers)}
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        draft = Path(scratch) / "draft"
        draft.mkdir()
        (draft / "program.eir").write_text(text)
        (draft / "facts.json").write_text(json.dumps(facts))
        arrays: dict[str, Any] = {f"b{i}": value for i, value in enumerate(buffers.values())}
        np.savez(draft / "buffers.npz", **arrays)
        if place.exists():
            for file in draft.iterdir():
                file.replace(place / file.name)
        else:
            try:
                os.rename(draft, place)
            except OSError:
                return
