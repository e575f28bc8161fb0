"""Model folders: configuration, safetensors files mapped lazily, and the names that a model knows its weights by."""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echoc.errors import CompileError

Array = np.ndarray[Any, Any]

# safetensors dtype -> (name used here, storage type). bf16 has no numpy type: its bits travel as u16.
DTYPES: dict[str, tuple[str, Any]] = {
    "F64": ("f64", np.float64),
    "F32": ("f32", np.float32),
    "F16": ("f16", np.float16),
    "BF16": ("bf16", np.uint16),
    "I64": ("i64", np.int64),
    "I32": ("i32", np.int32),
    "I16": ("i16", np.int16),
    "I8": ("i8", np.int8),
    "U8": ("u8", np.uint8),
    "BOOL": ("bool", np.bool_),
}
_TORCH_NAMES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}
_HEADER_LIMIT = 100 << 20


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of one safetensors file: nothing is read until `array` is called."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def array(self) -> Array:
        """The values, memory-mapped read-only; bf16 as u16 bits. Raises CompileError for an unknown dtype."""
        if self.dtype not in DTYPES:
            known = ", ".join(sorted(DTYPES))
            raise CompileError(f"{self.file}: tensor {self.name} has dtype {self.dtype}; expected one of {known}.")
        storage = np.dtype(DTYPES[self.dtype][1])
        if self.nbytes == 0:
            return np.empty(self.shape, storage)
        return np.memmap(self.file, storage, "r", self.offset, self.shape)

    def tensor(self) -> Tensor:
        """The values as a torch tensor over the same mapped memory; must not be written to."""
        array = self.array()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch cannot say read-only; nothing here writes
            tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if self.dtype == "BF16" else tensor


@dataclass(frozen=True)
class WeightReference:
    """Where the values of one parameter come from: one stored tensor, or a conversion of several.

    Attributes:
        name: the parameter's name in the model.
        shape: its shape.
        dtype: f64, f32, f16, bf16 or an integer type.
        sources: the stored tensors it is made of, in order.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[StoredTensor, ...]
    _convert: Callable[[], Tensor] | None = field(default=None, compare=False, repr=False)

    def array(self) -> Array:
        """The values in the checkpoint's own dtype (bf16 as u16 bits); mapped from the file where nothing converts."""
        if self._convert is None:
            return self.sources[0].array()
        tensor = self._convert().contiguous()
        values: Array = tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        return values

    def read(self) -> Array:
        """The values with floats as f32 and other types as they are, in memory of their own."""
        array = self.array()
        if self.dtype == "bf16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32) if self.dtype in ("f64", "f32", "f16") else np.array(array)


def load_config(folder: Path) -> Any:
    """The transformers configuration of a model folder. Raises CompileError when it is missing or foreign."""
    from transformers import AutoConfig

    if not folder.is_dir():
        raise CompileError(f"{folder} is not a folder; expected a model folder with config.json and safetensors files.")
    path = folder / "config.json"
    if not path.is_file():
        raise CompileError(f"{folder} has no config.json; expected a model folder as save_pretrained writes it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CompileError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict) or "model_type" not in content:
        raise CompileError(f"{path} names no model_type; expected the configuration of a transformers model.")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # configurations validate themselves with errors of many types
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CompileError(f"{path}: transformers refuses the configuration: {first}") from error


class Checkpoint:
    """The safetensors files of a model folder, single or sharded, opened by their headers only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every stored tensor by its name in the checkpoint."""
        index = self.folder / "model.safetensors.index.json"
        single = self.folder / "model.safetensors"
        if single.is_file():
            return read_header(single)
        if index.is_file():
            return self._sharded(index)
        found = sorted(path.name for path in self.folder.glob("*.bin"))
        hint = f" It has {found[0]}: convert it with transformers' save_pretrained." if found else ""
        raise CompileError(
            f"{self.folder} has neither model.safetensors nor model.safetensors.index.json.{hint} "
            "To compile without weights choose --weights random:SEED."
        )

    def _sharded(self, index: Path) -> dict[str, StoredTensor]:
        try:
            shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted(set(shard_of.values()))
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            raise CompileError(f"{index} is not a safetensors index: expected JSON with a weight_map.") from error
        headers: dict[str, dict[str, StoredTensor]] = {}
        for shard in shards:
            path = self.folder / shard
            if not path.is_file():
                raise CompileError(f"{self.folder} lacks the shard {shard} that {index.name} names: download it again.")
            headers[shard] = read_header(path)
        tensors: dict[str, StoredTensor] = {}
        for name, shard in shard_of.items():
            if name not in headers[shard]:
                raise CompileError(f"{self.folder / shard} lacks the tensor {name} that {index.name} places there.")
            tensors[name] = headers[shard][name]
        return tensors

    def resolve(self, model: Any) -> dict[str, WeightReference]:
        """References for the model's parameters and stored buffers, by the model's names.

        Renaming and merging of checkpoint keys follow transformers' own conversion table; conversions are evaluated
        when a reference is read. Names that are tied share the reference of the one that is stored.

        Raises:
            CompileError: a parameter that nothing in the checkpoint provides, or one of another shape.
        """
        wanted: dict[str, Tensor] = model.state_dict()
        references: dict[str, WeightReference] = {}
        for target, mapping, stored in self._grouped(model, wanted):
            if mapping is None:
                source = stored[0][1]
                dtype = DTYPES[source.dtype][0] if source.dtype in DTYPES else source.dtype
                references[target] = WeightReference(target, source.shape, dtype, (source,))
            else:
                references.update(_converted(model, target, mapping, stored))
        _share_tied(model, references)
        _check(self.folder, model, wanted, references)
        return references

    def _grouped(
        self, model: Any, wanted: dict[str, Tensor]
    ) -> Iterable[tuple[str, Any, list[tuple[str, StoredTensor]]]]:
        """(first target name, converter or None, [(source pattern, tensor)]) for everything the model wants."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        transforms = get_model_conversion_mapping(model)
        renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        groups: dict[str, tuple[Any, list[tuple[str, StoredTensor]]]] = {}
        prefix = model.base_model_prefix
        for key in sorted(self.tensors, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, prefix, wanted)
            if name not in wanted and key in wanted:
                name, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=wanted)
            if name not in wanted:
                continue
            converter = converter_of[pattern] if pattern is not None else None
            group = groups.setdefault(name, (converter, []))
            group[1].append((pattern or key, self.tensors[key]))
        for name, (converter, stored) in groups.items():
            yield name, converter, stored


def _converted(
    model: Any, target: str, converter: Any, stored: list[tuple[str, StoredTensor]]
) -> dict[str, WeightReference]:
    """References to the results of one converter: their shapes are found by running it on tensors without storage."""

    def run(load: Callable[[StoredTensor], Tensor]) -> dict[str, Tensor]:
        mapping = copy.deepcopy(converter)
        for pattern, tensor in stored:
            mapping.add_tensor(target, tensor.name, pattern, load(tensor))
        with torch.no_grad():
            results = mapping.convert(target, model=model, config=model.config)
        return {key: value[0] if isinstance(value, list) else value for key, value in results.items()}

    def shape_only(tensor: StoredTensor) -> Tensor:
        name = DTYPES[tensor.dtype][0] if tensor.dtype in DTYPES else "f32"
        dtype = next(key for key, value in _TORCH_NAMES.items() if value == name)
        return torch.empty(tensor.shape, dtype=dtype, device="meta")

    try:
        results = run(shape_only)
    except Exception as error:  # converters are foreign code with errors of many types
        some = ", ".join(tensor.name for _, tensor in stored[:4])
        raise CompileError(f"transformers cannot make {target} out of {some}, ...: {error}") from error
    sources = tuple(tensor for _, tensor in stored)
    return {
        name: WeightReference(
            name,
            tuple(value.shape),
            _TORCH_NAMES[value.dtype],
            sources,
            lambda name=name: run(StoredTensor.tensor)[name],  # type: ignore[misc]
        )
        for name, value in results.items()
    }


def _share_tied(model: Any, references: dict[str, WeightReference]) -> None:
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    for names in groups.values():
        source = next((references[name] for name in names if name in references), None)
        if source is not None:
            for name in names:
                references.setdefault(name, source)


def separate_untied(model: Any, references: dict[str, WeightReference]) -> None:
    """Gives tied parameters whose stored values differ a parameter of their own, as transformers does on loading."""
    first_of: dict[int, str] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        first = first_of.setdefault(id(parameter), name)
        if first == name or name not in references or references[name] is references[first]:
            continue
        if np.array_equal(references[name].array(), references[first].array()):
            references[name] = references[first]
            continue
        owner, _, leaf = name.rpartition(".")
        fresh = torch.nn.Parameter(torch.empty_like(parameter), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, fresh)


def _check(folder: Path, model: Any, wanted: dict[str, Tensor], references: dict[str, WeightReference]) -> None:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    missing = [
        name
        for name in wanted
        if name in parameters and name not in references and not any(re.search(key, name) for key in ignored)
    ]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CompileError(
            f"{folder} lacks {', '.join(missing[:3])}{more}, which {type(model).__name__} needs: the weights belong to "
            "another model or the checkpoint is incomplete."
        )
    for name, reference in references.items():
        if name in wanted and tuple(wanted[name].shape) != reference.shape:
            raise CompileError(
                f"{folder}: {name} has shape {list(reference.shape)} in the checkpoint (from "
                f"{reference.sources[0].file.name}); the configuration asks for {list(wanted[name].shape)}."
            )


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file. Raises CompileError when it is truncated or of another format."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= _HEADER_LIMIT:
            raise CompileError(f"{path} is not a safetensors file (its first bytes give no plausible header length).")
        if 8 + length > size:
            raise CompileError(
                f"{path} is truncated or not a safetensors file: its header would need {8 + length} bytes, the file "
                f"has {size}."
            )
        try:
            header = json.loads(file.read(length))
            tensors = {
                name: _stored(path, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CompileError(f"{path} is not a safetensors file: its header is unreadable ({error}).") from error
    for tensor in tensors.values():
        if tensor.offset + tensor.nbytes > size:
            raise CompileError(
                f"{path} is truncated: tensor {tensor.name} ends at byte {tensor.offset + tensor.nbytes}, the file has "
                f"{size}. Download it again."
            )
    return tensors


def _stored(path: Path, name: str, entry: dict[str, Any], data: int) -> StoredTensor:
    begin, end = (int(value) for value in entry["data_offsets"])
    shape = tuple(int(value) for value in entry["shape"])
    dtype = str(entry["dtype"])
    if dtype in DTYPES and math.prod(shape) * np.dtype(DTYPES[dtype][1]).itemsize != end - begin:
        raise ValueError(f"tensor {name} of shape {list(shape)} and dtype {dtype} takes {end - begin} bytes")
    return StoredTensor(path, name, dtype, shape, data + begin, end - begin)
