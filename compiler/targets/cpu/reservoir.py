"""Reservoirs for a CPU: their weights packed as sparse streams, and the kernel that runs them over whole series.

How weights are held is a matter of packing: a program says `contract` with a weight, and the plan made here says where
each of its numbers stands. `kernels/cpu/reservoir.h` reads it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from echoc.compiler.targets.cpu.build import Progress, build_library, target_features
from echoc.compiler.targets.cpu.kernels import ENVIRONMENT
from echoc.errors import CompileError

Array = NDArray[np.float64]
TYPES = {"f64": ("double", 8), "f32": ("float", 4)}
SQUARES = ("none", "half", "all")
CHUNK = 64  # kChunk of the kernel
_WIDE_FEATURES = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
_PLAN_FIELDS, _LAYER_FIELDS = 10, 15
_MAX_COLUMNS = 1 << 16


@dataclass(frozen=True)
class LayerPlan:
    """A layer to be packed.

    `matrix` [units, units + 1 + sources + feedback] multiplies [x; 1; sources...; y]; a source is (whether it is units
    of layers below rather than columns of the inputs, first, count).
    """

    matrix: Array
    leak: float
    sources: tuple[tuple[bool, int, int], ...]

    @property
    def units(self) -> int:
        return len(self.matrix)


@dataclass(frozen=True)
class NetworkPlan:
    """Layers in the order in which they run, and a readout [outputs, features] or None."""

    layers: tuple[LayerPlan, ...]
    inputs: int
    feedback: int
    readout: Array | None = None
    squares: str = "none"
    reads_inputs: bool = True


@dataclass(frozen=True)
class PackedNetwork:
    """The plan's bytes, the working memory of one thread, and what one step of one series reads of the stream."""

    data: NDArray[np.uint8]
    scratch_bytes: int
    stream_bytes: int
    slots: int
    weights: int


@dataclass
class _Blob:
    """Parts one after another, each on a 64-byte border."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, data: bytes) -> int:
        begin = self.size
        padded = data + b"\0" * (-len(data) % 64)
        self.parts.append(padded)
        self.size += len(padded)
        return begin


def is_wide(level: str) -> bool:
    """Whether code for a CPU level selects from windows (AVX-512) rather than gathers columns."""
    return _WIDE_FEATURES.issubset(target_features(level))


def pack(network: NetworkPlan, dtype: str, wide: bool) -> PackedNetwork:
    """The plan of a network for state type `dtype` (f64 or f32); `wide`: see `is_wide`.

    Raises: CompileError for an unknown dtype and for a readout that does not fit.
    """
    return with_readout(pack_layers(network.layers, dtype, wide), network)


def pack_layers(layers: Sequence[LayerPlan], dtype: str, wide: bool) -> PackedNetwork:
    """The plan of layers, which `with_readout` completes. Raises CompileError for an unknown dtype."""
    if dtype not in TYPES:
        raise CompileError(f"unknown reservoir dtype {dtype!r}; wanted f64 or f32")
    size = TYPES[dtype][1]
    blob = _Blob()
    blob.add(bytes(8 * _PLAN_FIELDS))
    table_at = blob.add(bytes(8 * _LAYER_FIELDS * len(layers)))
    table, scratch, stream, slots, first = b"", 0, 0, 0, 0
    for layer in layers:
        row, used, taken = _pack_layer(blob, layer, size, wide, first)
        table += row
        first += layer.units
        stream, slots = stream + used, slots + taken
        scratch += -(-layer.matrix.shape[1] // (64 // size)) * 64
    data = np.frombuffer(b"".join(blob.parts), np.uint8).copy()
    data[table_at : table_at + len(table)] = np.frombuffer(table, np.uint8)
    scratch += max(_padded(layer.units * size) for layer in layers) + _padded(CHUNK * first * size)
    weights = sum(int(np.count_nonzero(layer.matrix)) for layer in layers)
    return PackedNetwork(data, scratch, stream, slots, weights)


def with_readout(packed: PackedNetwork, network: NetworkPlan) -> PackedNetwork:
    """A plan of the network's layers with its sizes and its readout. Raises CompileError for one that does not fit."""
    units = sum(layer.units for layer in network.layers)
    features = 1 + network.inputs * network.reads_inputs + units * (2 if network.squares == "all" else 1)
    outputs, weights = 0, b""
    if network.readout is not None:
        outputs = len(network.readout)
        if network.readout.shape[1] != features:
            raise CompileError(f"the readout has {network.readout.shape[1]} features; wanted {features}")
        weights = np.ascontiguousarray(network.readout, np.float64).tobytes()
    header = struct.pack(
        f"<{_PLAN_FIELDS}q", len(network.layers), network.inputs, network.feedback, units, outputs,
        SQUARES.index(network.squares), network.reads_inputs, features, packed.data.nbytes, _padded(8 * _PLAN_FIELDS),
    )  # fmt: skip
    data = np.concatenate([packed.data, np.frombuffer(weights, np.uint8)])
    data[: len(header)] = np.frombuffer(header, np.uint8)
    return replace(packed, data=data, scratch_bytes=packed.scratch_bytes + _padded(features * 8))


def _padded(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def _pack_layer(blob: _Blob, layer: LayerPlan, size: int, wide: bool, first: int) -> tuple[bytes, int, int]:
    """Adds a layer; returns its row of the table, the bytes that a step reads, and the slots for weights."""
    lanes = 64 // size
    order = np.argsort((layer.matrix != 0).sum(1), kind="stable")
    matrix = layer.matrix[order].copy()
    matrix[:, : layer.units] = matrix[:, order]
    windows = -(-matrix.shape[1] // lanes)
    wide = wide and windows * lanes <= _MAX_COLUMNS
    blocks = -(-layer.units // lanes)
    if wide:
        steps, selects, choices, values = _windows(matrix, lanes)
    else:
        steps, choices, values = _columns(matrix, lanes)
        selects = np.zeros(0, np.uint16)
    short = size == 4 or bool((values == values.astype(np.float32)).all())
    stored = values.astype(np.float32 if short else np.float64).tobytes()
    parts = [np.pad(order, (0, blocks * lanes - layer.units), constant_values=-1).astype(np.int32).tobytes()]
    parts += [steps.astype(np.int32).tobytes(), selects.tobytes(), choices.tobytes(), stored]
    parts.append(b"".join(struct.pack("<3q", *source) for source in layer.sources))
    at = [blob.add(part) for part in parts]
    row = struct.pack(
        "<3qd11q", layer.units, matrix.shape[1], windows * lanes, layer.leak, blocks, wide, 4 if short else 8,
        at[0], at[1], at[2], at[3], at[4], at[5], len(layer.sources), first,
    )  # fmt: skip
    return row, sum(len(part) for part in parts[1:5]), int(steps.sum()) * lanes


def _columns(matrix: Array, lanes: int) -> tuple[NDArray[np.int64], NDArray[np.int32], Array]:
    """Steps of each block, and columns and values [all steps, lanes]: each block is as long as its longest row."""
    counts = (matrix != 0).sum(1)
    blocks = -(-len(matrix) // lanes)
    counts = np.pad(counts, (0, blocks * lanes - len(matrix)))
    steps = counts.reshape(blocks, lanes).max(1)
    start = np.concatenate([[0], np.cumsum(steps)])
    columns = np.zeros((start[-1], lanes), np.int32)
    values = np.zeros((start[-1], lanes))
    row, column = np.nonzero(matrix)
    place = np.arange(len(row)) - np.concatenate([[0], np.cumsum(counts)])[row]
    slot = start[row // lanes] + place
    columns[slot, row % lanes] = column
    values[slot, row % lanes] = matrix[row, column]
    return steps, columns, values


def _windows(matrix: Array, lanes: int) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint8], Array]:
    """Steps of each block, their two windows, their lanes' choices packed in registers, and values [steps, lanes].

    Every step of a block takes the window that most of the pressing lanes have a weight in, and with it the one that
    gives the others most. A lane presses by the weights it has left, as the longest one decides when the block ends.
    """
    blocks, windows = -(-len(matrix) // lanes), -(-matrix.shape[1] // lanes)
    padded = np.zeros((blocks * lanes, windows * lanes))
    padded[: len(matrix), : matrix.shape[1]] = matrix
    left = np.count_nonzero(padded.reshape(blocks, lanes, windows, lanes), axis=3).astype(np.int32)
    row, column = np.nonzero(padded)
    begin = np.zeros((blocks * lanes, windows), np.int64)
    begin.reshape(-1)[1:] = np.cumsum(left.reshape(-1))[:-1]
    taken = np.zeros_like(begin).reshape(left.shape)
    begin = begin.reshape(left.shape)
    rest = left.sum(2)
    at = np.arange(blocks)
    select_log: list[NDArray[np.uint16]] = []
    choice_log: list[NDArray[np.uint8]] = []
    value_log: list[Array] = []
    active_log: list[NDArray[np.bool_]] = []
    lane = np.arange(lanes)
    while rest.any():
        has = left > 0
        weight = rest.astype(np.float64) ** 2
        one = np.einsum("bls,bl->bs", has, weight).argmax(1)
        in_one = has[at, :, one]
        two = np.einsum("bls,bl->bs", has, weight * ~in_one + 1e-9 * weight).argmax(1)
        in_two = has[at, :, two]
        window = np.where(in_one & (~in_two | (left[at, :, one] >= left[at, :, two])), one[:, None], two[:, None])
        works = in_one | in_two
        cell = (at[:, None], lane[None, :], window)
        source = np.where(works, begin[cell] + taken[cell], 0)
        element = column[source] % lanes + np.where(window == one[:, None], 0, lanes)
        choice_log.append(np.where(works, element, 0).astype(np.uint8))
        value_log.append(np.where(works, padded[row[source], column[source]], 0.0))
        select_log.append((np.stack([one, two], 1) * lanes).astype(np.uint16))
        active_log.append(rest.any(1))
        taken[cell] += works
        left[cell] -= works
        rest = rest - works
    return _in_order(active_log, select_log, choice_log, value_log, blocks, lanes)


def _in_order(
    active: Sequence[NDArray[np.bool_]], selects: Sequence[NDArray[np.uint16]], choices: Sequence[NDArray[np.uint8]],
    values: Sequence[Array], blocks: int, lanes: int,
) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint8], Array]:  # fmt: skip
    """The steps of block after block, from logs of one step of every block at a time."""
    if not active:
        nothing = np.zeros((0, lanes))
        return np.zeros(blocks, np.int64), np.zeros((0, 2), np.uint16), np.zeros(0, np.uint8), nothing
    alive, select, choice, value = (np.stack(log) for log in (active, selects, choices, values))
    steps = alive.sum(0)
    bits, held = (4, 16) if lanes == 8 else (5, 6)
    packed = []
    for b in range(blocks):
        of_block = choice[: steps[b], b].astype(np.uint64)
        of_block = np.pad(of_block, ((0, -len(of_block) % held), (0, 0))).reshape(-1, held, lanes)
        shift = (np.arange(held, dtype=np.uint64) * np.uint64(bits))[None, :, None]
        words = (of_block << shift).sum(1, dtype=np.uint64)
        packed.append(words.astype(np.uint64 if lanes == 8 else np.uint32).reshape(-1).view(np.uint8))
    order = [(slice(0, steps[b]), b) for b in range(blocks)]
    return (
        steps,
        np.concatenate([select[o] for o in order]),
        np.concatenate(packed),
        np.concatenate([value[o] for o in order]),
    )


@dataclass(frozen=True)
class SeriesKernel:
    """A kernel that runs batches of series (see `reservoir_run`): its name, and the library that holds it."""

    name: str
    library: bytes


# what a launch passes for the kernel of batches, behind the plan
BATCH_PORTS = ("inputs", "late", "state", "output", "states", "outputs")
BATCH_DIMS = ("batch", "steps", "late", "states", "outputs", "closed")


def batch_kernel(dtype: str, level: str = "native", progress: Progress | None = None) -> SeriesKernel:
    """The kernel for any network of a dtype. Raises CompileError."""
    holes = {
        "type": TYPES[dtype][0],
        "batch": "call->dims[0]",
        "steps": "call->dims[1]",
        "pointers": [(name, 1 + i) for i, name in enumerate(BATCH_PORTS)],
        "closed": "call->dims[5] != 0",
        "dropped": [(name, f"call->dims[{BATCH_DIMS.index(name)}]") for name in ("late", "states", "outputs")],
    }
    name, source = render(holes, [f"any reservoir whose state is {dtype}: a batch of series"])
    return SeriesKernel(name, build_library({name: source}, level, progress, tiles=False))


def render(holes: dict[str, object], comment: Sequence[str]) -> tuple[str, str]:
    """The name and the source of a kernel."""
    template = ENVIRONMENT.get_template("reservoir.cpp.j2")
    draft = template.render(name="reservoir", comment=comment, **holes)
    name = f"reservoir_{hashlib.sha256(draft.encode()).hexdigest()[:8]}"
    return name, template.render(name=name, comment=comment, **holes)
