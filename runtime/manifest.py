"""What an artifact says about itself: the typed form of manifest.json, checked while it is read."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from echoc.errors import ArtifactError

SCHEMA = 2
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
ARGUMENT_KINDS = ("arena", "weight", "port", "state", "scratch")
GPUS = ("cuda", "rocm")
ELEMENTS = ("bf16", "f16", "f32", "i8", "u8")  # of tensor maps

_MOST = (1 << 62) - 1
_MOST_TERMS, _MOST_FACTORS = 64, 8  # of the size of a grid

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
class BinarySpec:
    """A kernel of a GPU: function `entry` of a cubin or hsaco member, run in blocks of `threads` threads.

    `shared_bytes` of shared memory a block; `extra_pointers` null pointers follow the parameters of a launch;
    `together`: its blocks wait for each other. `boxes` are of each tensor map that it takes: rows, columns and bytes of
    swizzling of what one copy brings to shared memory.
    """

    name: str
    member: str
    entry: str
    threads: int
    shared_bytes: int
    extra_pointers: int
    together: bool = False
    boxes: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class FillSpec:
    """The kernel that draws random weights of one format: a block is `tile` values of a row."""

    format: str
    group: int
    kernel: str
    tile: int


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """The kernels that choose tokens: `peaks` finds the highest logit in each of `parts` blocks of a row, `sample`
    chooses. `dependent`: they wait for what is in front of them themselves."""

    peaks: str
    sample: str
    parts: int
    dependent: bool


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """The kernels that measure the device: a block of `read` reads `read_bytes`; one of `dot` makes `dot_operations` on
    the matrix units for each count, and writes `dot_bytes`."""

    read: str
    dot: str
    read_bytes: int
    dot_operations: int
    dot_bytes: int


@dataclass(frozen=True, slots=True)
class AxisSpec:
    """One axis of a grid: ceil(sum of coefficient * product of symbols / tile) blocks."""

    terms: tuple[tuple[int, tuple[int, ...]], ...]
    tile: int


@dataclass(frozen=True, slots=True)
class MatrixSpec:
    """An argument of which a kernel gets a tensor map: `rows` of `columns` elements, one behind the other."""

    argument: int
    element: str
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class ChoosingSpec:
    """The kernel that takes the place of the one which makes `logits`, at the same arguments, and writes up to `most`
    of the best of each row (kernels/cpu/choose.h) where that writes them all."""

    kernel: str
    most: int


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One kernel of a launch list; arguments are (kind, byte offset or index).

    On a CPU threads share a launch, or each makes all of an `alike` one for itself, with results in its own scratch.
    On a GPU the values of `symbols` (indices) follow the arguments, `grid` has one to three axes, and a `dependent`
    launch may start before the one in front of it has ended; `matrices` are the arguments that are tensor maps, in the
    order of the kernel's boxes.
    """

    kernel: str
    barrier: bool
    args: tuple[tuple[str, int], ...]
    symbols: tuple[int, ...] = ()
    grid: tuple[AxisSpec, ...] = ()
    dependent: bool = False
    matrices: tuple[MatrixSpec, ...] = ()
    alike: bool = False
    choosing: ChoosingSpec | None = None


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
    binaries: Mapping[str, BinarySpec]
    fills: tuple[FillSpec, ...]
    sampler: SampleSpec | None
    probes: ProbeSpec | None
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

    def count(self, key: str, default: int | None = None, low: int = 0, high: int | None = None) -> int:
        found = self.get(key, int, default)
        if found < low or (high is not None and found > high):
            wanted = f"{low} or more" if high is None else f"{low}..{high}"
            raise ArtifactError(f"{self.where}: manifest.json has {found} at {self.path}{key}, wanted {wanted}")
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
    device = target.get("device", str)
    symbols = tuple(Symbol(s.get("name", str), s.count("low", 0), s.count("high")) for s in top.each("symbols"))
    binaries = {b.name: b for b in _binaries(kernels)}
    gpu = _Gpu(binaries, len(symbols)) if device in GPUS else None
    return Manifest(
        raw=top.value,
        device=device,
        level=target.get("level", str, ""),
        features=tuple(str(feature) for feature in target.get("features", list, [])),
        symbols=symbols,
        states=tuple(
            StateSpec(s.get("name", str), s.get("kind", str), s.count("page_size", 0), s.count("bytes_per_page", 0))
            for s in top.each("states")
        ),
        ports=tuple(_port(p) for p in top.each("ports")),
        weights=tuple(_weight(w) for w in top.each("weights")),
        variants=tuple(_variant(v, gpu) for v in top.each("variants")),
        random_seed=None if random is None else _Reader(random, "random_weights.", where).count("seed"),
        kernel_library=kernels.get("library", str) if "library" in kernels.value else None,
        binaries=binaries,
        fills=tuple(_fill(fill, binaries) for fill in kernels.each("fill")),
        sampler=_sampler(kernels.child("sample"), binaries),
        probes=_probes(kernels.child("probe"), binaries),
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


def _variant(variant: _Reader, gpu: "_Gpu | None") -> VariantSpec:
    return VariantSpec(
        rule=variant.get("rule", str, "step"),
        max_tokens=variant.limit("max_tokens"),
        max_rows=variant.limit("max_rows"),
        deterministic=variant.get("deterministic", bool, False),
        arena_bytes=variant.count("arena_bytes", 0),
        scratch_bytes=variant.count("scratch_bytes", 0),
        launches=tuple(_launch(launch, gpu) for launch in variant.each("launches")),
    )


@dataclass(frozen=True, slots=True)
class _Gpu:
    """What the launches of a GPU artifact may refer to."""

    binaries: Mapping[str, BinarySpec]
    num_symbols: int


def _launch(launch: _Reader, gpu: _Gpu | None) -> LaunchSpec:
    args = []
    for arg in launch.get("args", list):
        if not (isinstance(arg, list) and len(arg) == 2 and arg[0] in ARGUMENT_KINDS and isinstance(arg[1], int)):
            raise ArtifactError(
                f"{launch.where}: manifest.json has {arg!r} in {launch.path}args, wanted [kind, number]"
            )
        args.append((str(arg[0]), arg[1]))
    kernel = launch.get("kernel", str)
    if gpu is None:
        alike = launch.get("alike", bool, False)
        barrier = launch.get("barrier", bool, True)
        return LaunchSpec(kernel, barrier, tuple(args), alike=alike, choosing=_choosing(launch.child("choosing")))
    if kernel not in gpu.binaries:
        raise ArtifactError(
            f"{launch.where}: manifest.json has kernel {kernel!r} in {launch.path}kernel, which is not among its "
            "kernels.binaries; compile the model again"
        )
    symbols = launch.get("symbols", list, [])
    grid = launch.get("grid", list)
    if not all(_is_index(symbol, gpu.num_symbols) for symbol in symbols):
        raise ArtifactError(
            f"{launch.where}: manifest.json has {symbols!r} at {launch.path}symbols, wanted indices of its "
            f"{gpu.num_symbols} symbols"
        )
    if not 1 <= len(grid) <= 3:
        raise ArtifactError(f"{launch.where}: manifest.json has {len(grid)} axes at {launch.path}grid, wanted 1 to 3")
    axes = tuple(_axis(axis, launch, gpu.num_symbols) for axis in grid)
    matrices = tuple(_matrix(matrix, launch, args) for matrix in launch.get("matrices", list, []))
    boxes = gpu.binaries[kernel].boxes
    if len(matrices) != len(boxes):
        raise ArtifactError(
            f"{launch.where}: manifest.json has {len(matrices)} matrices at {launch.path}matrices, wanted "
            f"{len(boxes)}: so many tensor maps does its kernel {kernel} take; compile the model again"
        )
    return LaunchSpec(kernel, False, tuple(args), tuple(symbols), axes, launch.get("dependent", bool, False), matrices)


def _choosing(choosing: _Reader) -> ChoosingSpec | None:
    if not choosing.value:
        return None
    return ChoosingSpec(choosing.get("kernel", str), choosing.count("most", low=1, high=4096))


def _matrix(matrix: Any, launch: _Reader, args: Sequence[tuple[str, int]]) -> MatrixSpec:
    """[argument, element type, rows, columns]."""
    if isinstance(matrix, list) and len(matrix) == 4:
        argument, element, rows, columns = matrix
        sized = _is_number(rows, 1, 1 << 31) and _is_number(columns, 1, 1 << 31) and element in ELEMENTS
        if sized and _is_index(argument, len(args)) and args[argument][0] in ("arena", "weight"):
            return MatrixSpec(argument, element, rows, columns)
    raise ArtifactError(
        f"{launch.where}: manifest.json has {matrix!r} in {launch.path}matrices, wanted [argument in the arena or of a "
        f"weight, {'|'.join(ELEMENTS)}, rows, columns]"
    )


def _box(box: Any, binary: _Reader) -> tuple[int, int, int]:
    """(rows, columns, bytes of swizzling)."""
    if isinstance(box, list) and len(box) == 3:
        rows, columns, swizzle = box
        if _is_number(rows, 1, 256) and _is_number(columns, 1, 256) and swizzle in (0, 32, 64, 128):
            return rows, columns, swizzle
    raise ArtifactError(
        f"{binary.where}: manifest.json has {box!r} in {binary.path}boxes, wanted [rows and columns of 1 to 256, "
        "swizzling of 0, 32, 64 or 128 bytes]"
    )


def _axis(axis: Any, launch: _Reader, num_symbols: int) -> AxisSpec:
    """[[[coefficient, [symbol index, ...]], ...], tile]."""
    try:
        terms, tile = axis
        read = tuple((coefficient, tuple(symbols)) for coefficient, symbols in terms)
    except (TypeError, ValueError):
        read, tile = (), None
    good = all(
        _is_number(c, -_MOST, _MOST)
        and len(symbols) <= _MOST_FACTORS
        and all(_is_index(i, num_symbols) for i in symbols)
        for c, symbols in read
    )
    if not (good and 0 < len(read) <= _MOST_TERMS and _is_number(tile, 1, _MOST)):
        raise ArtifactError(
            f"{launch.where}: manifest.json has {reprlib.repr(axis)} in {launch.path}grid, wanted [[[coefficient, "
            f"[indices of its {num_symbols} symbols]], ...], tile]"
        )
    return AxisSpec(read, tile)


def _is_number(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_index(value: Any, count: int) -> bool:
    return _is_number(value, 0, count - 1)


def _binaries(kernels: _Reader) -> list[BinarySpec]:
    found = []
    table = kernels.child("binaries")
    for name in table.value:
        binary = table.child(name)
        found.append(
            BinarySpec(
                name=name,
                member=binary.get("member", str),
                entry=binary.get("entry", str),
                threads=binary.count("threads", low=1, high=1024),
                shared_bytes=binary.count("shared_bytes", 0, high=1 << 20),
                extra_pointers=binary.count("extra_pointers", 0, high=8),
                together=binary.get("together", bool, False),
                boxes=tuple(_box(box, binary) for box in binary.get("boxes", list, [])),
            )
        )
    return found


def _fill(fill: _Reader, binaries: Mapping[str, BinarySpec]) -> FillSpec:
    spec = FillSpec(
        fill.get("format", str), fill.count("group", 0), fill.get("kernel", str), fill.count("tile", low=1, high=_MOST)
    )
    _check_kernel(fill, "kernel", spec.kernel, binaries)
    return spec


def _sampler(sample: _Reader, binaries: Mapping[str, BinarySpec]) -> SampleSpec | None:
    if not sample.value:
        return None
    spec = SampleSpec(
        sample.get("peaks", str),
        sample.get("sample", str),
        sample.count("parts", low=1, high=65535),
        sample.get("dependent", bool, False),
    )
    _check_kernel(sample, "peaks", spec.peaks, binaries)
    _check_kernel(sample, "sample", spec.sample, binaries)
    return spec


def _probes(probe: _Reader, binaries: Mapping[str, BinarySpec]) -> ProbeSpec | None:
    if not probe.value:
        return None
    spec = ProbeSpec(
        probe.get("read", str),
        probe.get("dot", str),
        probe.count("read_bytes", low=1, high=_MOST),
        probe.count("dot_operations", low=1, high=_MOST),
        probe.count("dot_bytes", low=1, high=_MOST),
    )
    _check_kernel(probe, "read", spec.read, binaries)
    _check_kernel(probe, "dot", spec.dot, binaries)
    return spec


def _check_kernel(reader: _Reader, key: str, kernel: str, binaries: Mapping[str, BinarySpec]) -> None:
    if kernel not in binaries:
        raise ArtifactError(
            f"{reader.where}: manifest.json has kernel {kernel!r} in {reader.path}{key}, which is not among its "
            "kernels.binaries; compile the model again"
        )
