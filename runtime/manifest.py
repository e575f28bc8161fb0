"""What an artifact says about itself: the typed form of manifest.json, checked while it is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from echoc.errors import ArtifactError

SCHEMA = 1
DTYPES: dict[str, npt.DTypeLike] = {
    "f64": np.float64,
    "f32": np.float32,
    "f16": np.float16,
    "bf16": np.uint16,  # numpy has no bfloat16: its bits
    "i64": np.int64,
    "i32": np.int32,
    "i16": np.int16,
    "i8": np.int8,
    "u8": np.uint8,
    "bool": np.bool_,
}
ARGUMENT_KINDS = ("arena", "weight", "port", "state")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Symbol:
    """A size known only when a step is made; it lies in low..high."""

    name: str
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class StateSpec:
    """Memory that outlives a step. Kind "pages": `bytes_per_page` bytes for every page of the pool."""

    name: str
    kind: str
    page_size: int
    bytes_per_page: int


@dataclass(frozen=True, slots=True)
class PortSpec:
    """An array that a step reads ("in") or writes ("out"); a dimension is a number or the name of a symbol."""

    name: str
    direction: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A packed weight: `shape` [N, K] per expert, `interleave` matrices in one stream, `nbytes` in all."""

    name: str
    member: str
    format: str
    group: int
    interleave: int
    shape: tuple[int, ...]
    experts: int
    nbytes: int
    std: float


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One kernel of a launch list; arguments are (kind, byte offset or index)."""

    kernel: str
    barrier: bool
    args: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """The launch list of a rule for steps of at most `max_tokens` tokens and `max_rows` rows (None: any number)."""

    rule: str
    max_tokens: int | None
    max_rows: int | None
    deterministic: bool
    arena_bytes: int
    scratch_bytes: int
    launches: tuple[LaunchSpec, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json of one artifact; `raw` is the whole of it."""

    raw: Mapping[str, Any]
    device: str
    level: str
    features: tuple[str, ...]
    symbols: tuple[Symbol, ...]
    states: tuple[StateSpec, ...]
    ports: tuple[PortSpec, ...]
    weights: tuple[WeightSpec, ...]
    variants: tuple[VariantSpec, ...]
    random_seed: int | None
    kernel_library: str | None
    model: Mapping[str, Any]
    page_size: int
    hashes: Mapping[str, str]

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all paged states."""
        return sum(state.bytes_per_page for state in self.states if state.kind == "pages")

    @property
    def weight_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)


class _Reader:
    """Typed access to a JSON object that reports the path of what is missing or of another type."""

    def __init__(self, value: Any, path: str, where: str) -> None:
        if not isinstance(value, dict):
            raise ArtifactError(f"{where}: manifest.json has no object at {path or 'its top'}; compile the model again")
        self.value, self.path, self.where = value, path, where

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        found = self.value.get(key, default)
        wrong_bool = kind is int and isinstance(found, bool)
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            found = float(found)
        if not isinstance(found, kind) or wrong_bool:
            raise ArtifactError(
                f"{self.where}: manifest.json has {found!r} at {self.path}{key}, wanted {kind.__name__}; "
                "the file is damaged or was made by another program, compile the model again"
            )
        return found

    def count(self, key: str, default: int | None = None) -> int:
        found = self.get(key, int, default)
        if found < 0:
            raise ArtifactError(f"{self.where}: manifest.json has {found} at {self.path}{key}, wanted 0 or more")
        return found

    def limit(self, key: str) -> int | None:
        return None if self.value.get(key) is None else self.count(key)

    def each(self, key: str) -> "list[_Reader]":
        items = self.get(key, list, [])
        return [_Reader(item, f"{self.path}{key}[{i}].", self.where) for i, item in enumerate(items)]

    def child(self, key: str) -> "_Reader":
        return _Reader(self.value.get(key, {}), f"{self.path}{key}.", self.where)


def parse_manifest(raw: Any, where: str) -> Manifest:
    """Checks and types a decoded manifest.json; `where` names the artifact in errors."""
    top = _Reader(raw, "", where)
    schema = top.get("schema", int)
    if schema != SCHEMA:
        made_by = top.value.get("echoc", "an unknown version")
        advice = "upgrade echoc" if schema > SCHEMA else "compile the model again"
        raise ArtifactError(
            f"{where} has artifact schema {schema} (made by echoc {made_by}), this echoc reads {SCHEMA}: {advice}"
        )
    target = top.child("target")
    random = top.value.get("random_weights")
    kernels = top.child("kernels")
    return Manifest(
        raw=top.value,
        device=target.get("device", str),
        level=target.get("level", str, ""),
        features=tuple(str(feature) for feature in target.get("features", list, [])),
        symbols=tuple(Symbol(s.get("name", str), s.count("low", 0), s.count("high")) for s in top.each("symbols")),
        states=tuple(
            StateSpec(s.get("name", str), s.get("kind", str), s.count("page_size", 0), s.count("bytes_per_page", 0))
            for s in top.each("states")
        ),
        ports=tuple(_port(p) for p in top.each("ports")),
        weights=tuple(_weight(w) for w in top.each("weights")),
        variants=tuple(_variant(v) for v in top.each("variants")),
        random_seed=None if random is None else _Reader(random, "random_weights.", where).count("seed"),
        kernel_library=kernels.get("library", str) if "library" in kernels.value else None,
        model=top.child("model").value,
        page_size=top.count("page_size", 0),
        hashes={str(name): str(digest) for name, digest in top.child("hashes").value.items()},
    )


def _port(port: _Reader) -> PortSpec:
    shape = tuple(d if isinstance(d, int) else str(d) for d in port.get("shape", list))
    spec = PortSpec(port.get("name", str), port.get("direction", str), port.get("dtype", str), shape)
    if spec.dtype not in DTYPES:
        raise ArtifactError(f"{port.where}: port {spec.name} has dtype {spec.dtype!r}, known are {', '.join(DTYPES)}")
    return spec


def _weight(weight: _Reader) -> WeightSpec:
    return WeightSpec(
        name=weight.get("name", str),
        member=weight.get("member", str, "weights.safetensors"),
        format=weight.get("format", str),
        group=weight.count("group", 0),
        interleave=weight.count("interleave", 1),
        shape=tuple(int(d) for d in weight.get("shape", list)),
        experts=weight.count("experts", 1),
        nbytes=weight.count("nbytes"),
        std=weight.get("std", float, 0.02),
    )


def _variant(variant: _Reader) -> VariantSpec:
    return VariantSpec(
        rule=variant.get("rule", str, "step"),
        max_tokens=variant.limit("max_tokens"),
        max_rows=variant.limit("max_rows"),
        deterministic=variant.get("deterministic", bool, False),
        arena_bytes=variant.count("arena_bytes", 0),
        scratch_bytes=variant.count("scratch_bytes", 0),
        launches=tuple(_launch(launch) for launch in variant.each("launches")),
    )


def _launch(launch: _Reader) -> LaunchSpec:
    args = []
    for arg in launch.get("args", list):
        if not (isinstance(arg, list) and len(arg) == 2 and arg[0] in ARGUMENT_KINDS and isinstance(arg[1], int)):
            raise ArtifactError(
                f"{launch.where}: manifest.json has {arg!r} in {launch.path}args, wanted [kind, number]"
            )
        args.append((str(arg[0]), arg[1]))
    return LaunchSpec(launch.get("kernel", str), launch.get("barrier", bool, True), tuple(args))
