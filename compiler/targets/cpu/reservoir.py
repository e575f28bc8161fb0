"""Reservoirs for a CPU: their weights packed as sparse streams, and the kernel that runs them over whole series.

How weights are held is a matter of packing: a program says `contract` with a weight, and the plan made here says where
each of its numbers stands. `kernels/cpu/reservoir.h` reads it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
_PLAN_FIELDS, _LAYER_FIELDS = 10, 16
_MAX_COLUMNS = 1 << 16
_REGISTERS = 2  # kRegisters of the kernel
_PARTS = 4  # half windows of a step where they are chosen; the kernel loads two for one register
_BATCH = 32  # blocks that are packed side by side
_REGULAR = 1.3  # slots per weight: where no pattern helps, half windows that are chosen leave some 1.1 to 2.5
# Where, in each such tile of a matrix, all rows have equally many weights, no slot is empty: for f64 two blocks of rows
# and a pair of windows, for f32 one block and one window.
EVEN_ROWS, EVEN_COLUMNS = 32, 16


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
    block = _REGISTERS * 64
    scratch += max(-(-layer.units * size // block) * block for layer in layers) + _padded(CHUNK * first * size)
    weights = sum(int(np.count_nonzero(layer.matrix)) for layer in layers)
    return PackedNetwork(data, scratch, stream, slots, weights)


def with_readout(packed: PackedNetwork, network: NetworkPlan) -> PackedNetwork:
    """A plan of the network's layers with its sizes and its readout. Raises CompileError for one that does not fit."""
    units = sum(layer.units for layer in network.layers)
    features = feature_count(network)
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


def feature_count(network: NetworkPlan) -> int:
    """How many numbers the network's readout sees."""
    units = sum(layer.units for layer in network.layers)
    return 1 + network.inputs * network.reads_inputs + units * (2 if network.squares == "all" else 1)


def _padded(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def _pack_layer(blob: _Blob, layer: LayerPlan, size: int, wide: bool, first: int) -> tuple[bytes, int, int]:
    """Adds a layer; returns its row of the table, the bytes that a step reads, and the slots for weights."""
    lanes = 64 // size
    windows = -(-layer.matrix.shape[1] // lanes)
    wide = wide and windows * lanes <= _MAX_COLUMNS
    rows = lanes * _REGISTERS if wide else lanes
    blocks = -(-layer.units // rows)
    regular = wide and _is_regular(layer.matrix, rows, 2 * lanes)
    order = np.arange(layer.units) if regular else np.argsort((layer.matrix != 0).sum(1), kind="stable")
    matrix = layer.matrix[order].copy()
    matrix[:, : layer.units] = matrix[:, order]
    if wide:
        steps, selects, chosen, values = (_even_windows if regular else _any_windows)(matrix, rows, lanes)
        choices = (_joined(chosen, lanes) if regular else _grouped(chosen, lanes, steps)).tobytes()
    else:
        steps, columns, values = _columns(matrix, lanes)
        selects, choices = np.zeros(0, np.uint16), columns.tobytes()
    held = 0 if not wide else 2 if regular else _PARTS
    short = size == 4 or bool((values == values.astype(np.float32)).all())
    stored = values.astype(np.float32 if short else np.float64).tobytes()
    parts = [np.pad(order, (0, blocks * rows - layer.units), constant_values=-1).astype(np.int32).tobytes()]
    parts += [steps.astype(np.int32).tobytes(), selects.tobytes(), choices, stored]
    parts.append(b"".join(struct.pack("<3q", *source) for source in layer.sources))
    at = [blob.add(part) for part in parts]
    row = struct.pack(
        "<3qd12q", layer.units, matrix.shape[1], windows * lanes, layer.leak, blocks, held, 4 if short else 8,
        at[0], at[1], at[2], at[3], at[4], at[5], len(layer.sources), first,
        not np.array_equal(order, np.arange(layer.units)),
    )  # fmt: skip
    return row, sum(len(part) for part in parts[1:5]), int(steps.sum()) * rows


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


def _cells(matrix: Array, rows: int, width: int) -> NDArray[np.int64]:
    """How many weights each row has in each window of `width` columns, [blocks, rows, windows]."""
    blocks, windows = -(-len(matrix) // rows), -(-matrix.shape[1] // width)
    there = np.zeros((blocks * rows, windows * width), bool)
    there[: len(matrix), : matrix.shape[1]] = matrix != 0
    return np.asarray(there.reshape(blocks, rows, windows, width).sum(3, dtype=np.int64))


def _is_regular(matrix: Array, rows: int, width: int) -> bool:
    """Whether windows side by side, each for as many steps as its longest row wants, leave few slots empty."""
    slots = int(_cells(matrix, rows, width).max(1).sum()) * rows
    return bool(slots <= _REGULAR * np.count_nonzero(matrix))


def _even_windows(
    matrix: Array, rows: int, lanes: int
) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint8], Array]:
    """As `_any_windows`: each block goes through all pairs of windows that stand side by side."""
    width = 2 * lanes
    cells = _cells(matrix, rows, width)
    blocks, _, pairs = cells.shape
    wanted = cells.max(1)
    begin = (np.cumsum(wanted) - wanted.reshape(-1)).reshape(wanted.shape)
    row, column = np.nonzero(matrix)
    counts = cells.reshape(-1, pairs)
    rank = np.arange(len(row)) - (np.cumsum(counts) - counts.reshape(-1)).reshape(counts.shape)[row, column // width]
    slot = begin[row // rows, column // width] + rank
    choices = np.zeros((int(wanted.sum()), rows), np.uint8)
    values = np.zeros(choices.shape)
    choices[slot, row % rows] = column % width
    values[slot, row % rows] = matrix[row, column]
    first = np.repeat(np.tile(np.arange(pairs) * width, blocks), wanted.reshape(-1))
    last = (-(-matrix.shape[1] // lanes) - 1) * lanes  # the last pair may have one window
    selects = np.stack([first, np.minimum(first + lanes, last)], 1).astype(np.uint16)
    return wanted.sum(1), selects, choices, values


def _any_windows(
    matrix: Array, rows: int, lanes: int
) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint8], Array]:
    """Steps of each block, their four half windows, the choice and the value of each row of theirs [all steps, rows].

    What a row has in a window costs as many steps with that window; over a block, those of the row that has most there.
    Half windows leave little of that to waste, but no step must serve a row twice. So each step takes the one that most
    of the pressing rows want, then those that serve most others and fewest again, sooner where several steps are still
    to come. A row presses by the weights it has left, as the longest one decides when the block ends.
    """
    width = lanes // 2
    parts = [_cover(matrix[at : at + _BATCH * rows], rows, width) for at in range(0, len(matrix), _BATCH * rows)]
    steps, selects, choices, values = (np.concatenate([part[i] for part in parts]) for i in range(4))
    return steps, selects, choices, values


def _cover(
    matrix: Array, rows: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint8], Array]:
    """As `_any_windows`, for some blocks at a time."""
    left = _cells(matrix, rows, width).astype(np.int32)
    blocks = len(left)
    row, column = np.nonzero(matrix)
    value = np.append(matrix[row, column], 0.0)
    begin = (np.cumsum(left) - left.reshape(-1)).reshape(left.shape)
    taken = np.zeros_like(begin)
    rest = left.sum(2)
    at, lane = np.arange(blocks), np.arange(rows)
    logs: list[tuple[NDArray[Any], ...]] = []
    while rest.any():
        wants = (left > 0).astype(np.float32)
        pressure = (rest / rest.max()).astype(np.float32) ** 4
        still = 3 * np.maximum(left.max(1) - 1, 0).astype(np.float32)
        window, place, most = np.zeros(rest.shape, np.int64), np.zeros(rest.shape, np.int64), np.zeros_like(rest)
        chosen = []
        for part in range(_PARTS):
            score = np.einsum("bls,bl->bs", wants, np.where(most > 0, -2.5 * pressure, pressure)) + still
            one = score.argmax(1)
            there = left[at, :, one]
            better = there > most
            window, place = np.where(better, one[:, None], window), np.where(better, part, place)
            most = np.maximum(most, there)
            chosen.append(one)
        works = most > 0
        cell = (at[:, None], lane[None, :], window)
        source = np.where(works, begin[cell] + taken[cell], -1)
        element = np.where(works, np.append(column, 0)[source] % width + place * width, 0)
        logs.append((
            rest.any(1), (np.stack(chosen, 1) * width).astype(np.uint16), element.astype(np.uint8), value[source],
        ))  # fmt: skip
        taken[cell] += works
        left[cell] -= works
        rest = rest - works
    if not logs:
        none = np.zeros((0, rows))
        return np.zeros(blocks, np.int64), np.zeros((0, _PARTS), np.uint16), none.astype(np.uint8), none
    active, select, choice, values = (np.stack([log[i] for log in logs], 1) for i in range(4))
    return active.sum(1), select[active], choice[active], values[active]


def _joined(choices: NDArray[np.uint8], lanes: int) -> NDArray[Any]:
    """Choices [steps, rows] with those of a lane's rows side by side in one number, [steps, lanes]."""
    bits, kind = (4, np.uint8) if lanes == 8 else (5, np.uint16)
    each = choices.reshape(-1, _REGISTERS, lanes).astype(np.uint16)
    return (each[:, 0] | each[:, 1] << bits).astype(kind)


def _grouped(choices: NDArray[np.uint8], lanes: int, steps: NDArray[np.int64]) -> NDArray[Any]:
    """Choices [all steps, rows] of groups of a block's steps side by side in one number for a lane, [groups, lanes]."""
    bits, kind, size = (4, np.uint64, 8) if lanes == 8 else (5, np.uint32, 3)
    groups = -(-steps // size)
    first = np.repeat((np.cumsum(groups) - groups) * size - (np.cumsum(steps) - steps), steps)
    each = np.zeros((int(groups.sum()) * size, _REGISTERS, lanes), kind)
    each[np.arange(len(choices)) + first] = choices.reshape(-1, _REGISTERS, lanes)
    shifts = (bits * np.arange(size * _REGISTERS)).astype(kind).reshape(1, size, _REGISTERS, 1)
    joined: NDArray[Any] = np.bitwise_or.reduce(each.reshape(-1, size, _REGISTERS, lanes) << shifts, axis=(1, 2))
    return joined


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
    holes: dict[str, object] = {
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
