"""Reservoirs for a GPU: which rows of the weights each block of threads holds, and the kernel of one network.

`kernels/gpu/reservoir.h` reads the plan that is made here. All sizes are known when the kernel is compiled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from echoc.compiler.targets.cpu.build import KERNELS
from echoc.compiler.targets.cpu.reservoir import TYPES, LayerPlan, NetworkPlan, feature_count
from echoc.compiler.targets.gpu.cpp import CppKernel, build_cpp
from echoc.compiler.targets.gpu.levels import Level
from echoc.errors import CompileError

Array = NDArray[np.float64]
LOOPS = ("none", "feedback", "closed")
CHUNK = 64  # steps whose outputs are computed at once where they drive nothing
_ALONE = 8192  # weights that one block has done before several have exchanged their states
_EACH = 2048  # weights of a block where there are several
_FEW = 4096  # weights of a block beyond which it has more threads
_THREADS = (256, 512)
_HELD = {4: 40, 8: 28}  # weights of a thread that its registers take, by the bytes of a weight
_LANES = 32  # threads that share a row, at most
# Multiprocessors of the smallest device of a level that is in use for computing; a grid is no larger than that.
_BLOCKS = {"sm_80": 96, "sm_90a": 112, "sm_100": 128, "gfx90a": 96, "gfx942": 224, "gfx1100": 48}
_MAIL, _LETTER = 64, {4: 8, 8: 16}
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(KERNELS.parent / "templates" / "gpu"), undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How a network is spread: blocks of threads, a team of which runs a series, and teams that take series in turn."""

    blocks: int
    threads: int
    teams: int = 1


@dataclass(frozen=True)
class ReservoirSource:
    """A kernel before it is built: what it is called, its source, what it reads and what it needs of a device."""

    name: str
    source: str
    plan: NDArray[np.uint8]
    shape: Shape
    shared_bytes: int
    mail_bytes: int
    schedule: dict[str, Any]

    def build(self, level: Level) -> tuple[bytes, CppKernel]:
        """The machine code. Raises CompileError."""
        built = build_cpp(self.source, [self.name], level, threads=self.shape.threads)
        return built.image, built.kernels[self.name]


@dataclass
class _Rows:
    """The weights of all units as they lie: `columns` are places on the board."""

    counts: NDArray[np.int64]
    starts: NDArray[np.int64]
    columns: NDArray[np.uint16]
    values: Array
    depth: NDArray[np.int64]
    leak: Array


def shape_for(network: NetworkPlan, level: Level) -> Shape:
    """The blocks and threads of a network: one block where exchanging states would cost more than it brings."""
    weights = sum(int(np.count_nonzero(layer.matrix)) for layer in network.layers)
    units = sum(layer.units for layer in network.layers)
    blocks = 1 if weights <= _ALONE else min(-(-weights // _EACH), _BLOCKS[level.name], units)
    return Shape(blocks, _THREADS[weights > _FEW * blocks])


def reservoir_kernel(
    network: NetworkPlan, dtype: str, level: Level, *, pointers: Sequence[str], loop: str = "none",
    batch: str = "batch", shape: Shape | None = None, comment: Sequence[str] = (),
) -> ReservoirSource:  # fmt: skip
    """The kernel of one network and its plan.

    Args:
        dtype: of states and ports, f64 or f32.
        loop: what the readout's outputs drive: nothing, the feedback or the inputs.
        pointers: the arrays that the kernel takes, behind the plan and the mail; what is not among them is not wanted.
        batch: "batch", a number passed to the kernel, or how many series there are.
        shape: default: `shape_for`.
    Raises: CompileError for a dtype that is not known and a network that no block's shared memory holds.
    """
    if dtype not in TYPES:
        raise CompileError(f"unknown reservoir dtype {dtype!r}; wanted f64 or f32")
    kind, size = TYPES[dtype]
    shape = shape or shape_for(network, level)
    units = sum(layer.units for layer in network.layers)
    depth, in_line = _depths(network.layers)
    depths = max(depth) + 1
    pipeline = loop == "none" and in_line
    lags = depths if pipeline else 1
    states_at = 1 + lags * (network.inputs + network.feedback)
    board = states_at + units
    rows = _rows_of(network, depth, lags, states_at)
    per_pass, lanes, passes = _passes(rows, shape, 0 if pipeline else depths)
    first, parts = _streams(rows, shape, per_pass, lanes, passes)
    short = bool((rows.values == rows.values.astype(np.float32)).all())
    weight = 4 if short or size == 4 else 8
    outputs = 0 if network.readout is None else len(network.readout)
    features = feature_count(network)
    split = _split(features, shape.threads, outputs if loop != "none" else outputs * CHUNK // shape.blocks + 1)
    ring = 1 << (2 * CHUNK + depths - 1).bit_length()

    plan, places = b"", {}
    table = _row_table(rows, shape, per_pass, passes, size)
    arrays = [
        ("kValues", parts[0].astype(np.float32 if weight == 4 else np.float64)),
        ("kColumns", parts[1]),
        ("kRowTable", table),
    ]
    readout = np.zeros(0) if network.readout is None else np.ascontiguousarray(network.readout, np.float64)
    for name, array in (*arrays, ("kReadout", readout)):
        places[name] = len(plan)
        data = array.tobytes()
        plan += data + b"\0" * (-len(data) % 64)

    active, slots = lanes * per_pass, first[-1]
    shared = 0
    parts_of_block = [
        ("kBoardAt", board * size), ("kSumsAt", len(passes) * active * size),
        ("kDotsAt", 8 * shape.threads + size * outputs if outputs else 0),
        ("kRowsAt", len(passes) * per_pass * table.dtype.itemsize),
    ]  # fmt: skip
    for name, nbytes in parts_of_block:
        places[name] = shared
        shared += -(-nbytes // 16) * 16
    hold, places["kHeldValues"], places["kHeldColumns"] = "plan", shared, shared
    uniform = len(set(np.diff(first))) == 1
    if slots <= _HELD[weight] and uniform:
        hold = "registers"
    elif shared + -(-slots * active // 8) * 8 * (weight + 2) <= level.shared_bytes:
        hold, places["kHeldColumns"] = "shared", shared + -(-slots * active * weight // 16) * 16
        shared = places["kHeldColumns"] + -(-slots * active * 2 // 16) * 16
    if shared > level.shared_bytes:
        raise CompileError(
            f"a network of {units} units needs {shared} bytes of shared memory for its states; a block of {level.name} "
            f"has {level.shared_bytes}: use f32, fewer units, or a CPU"
        )
    history = _MAIL + 2 * units * _LETTER[size]
    keeps = outputs and loop == "none" and "states" not in pointers
    team = -(-(history + (ring * units * size if keeps else 0)) // 256) * 256
    places |= {"kHistoryAt": history, "kTeamBytes": team}
    sizes = {
        "kThreads": shape.threads, "kBlocks": shape.blocks, "kTeams": shape.teams, "kRows": per_pass, "kLanes": lanes,
        "kPasses": len(passes), "kSlots": slots, "kUnits": units, "kInputs": network.inputs,
        "kFeedback": network.feedback, "kOutputs": outputs, "kFeatures": features, "kDepths": depths, "kLags": lags,
        "kStates": states_at, "kSplit": split, "kChunk": CHUNK, "kRing": ring,
    }  # fmt: skip
    holes: dict[str, Any] = {
        "comment": comment, "state": kind, "weight": "float" if weight == 4 else "double", "sizes": sizes.items(),
        "places": places.items(), "first": first, "depth": [p[2] for p in passes], "pipeline": pipeline,
        "sees_inputs": network.reads_inputs and network.inputs > 0, "hold": hold, "loop": loop,
        "squares": network.squares, "threads": shape.threads, "pointers": pointers, "batch": batch, "steps": "steps",
        "numbers": ["batch", "steps"] if batch == "batch" else ["steps"],
    }  # fmt: skip
    template = _ENVIRONMENT.get_template("reservoir.cpp.j2")
    name = f"reservoir_{hashlib.sha256(template.render(name='', **holes).encode()).hexdigest()[:8]}"
    schedule = {"blocks": shape.blocks, "lanes": lanes, "weights_in": hold, "pipeline": pipeline}
    return ReservoirSource(
        name, template.render(name=name, **holes), np.frombuffer(plan, np.uint8), shape, shared, team * shape.teams,
        schedule,
    )  # fmt: skip


def batch_kernel(network: NetworkPlan, dtype: str, level: Level, loop: str) -> ReservoirSource:
    """The kernel that runs batches of series as far as the device's blocks go, several at a time.

    It takes state, output, inputs and late, then states, or for a `loop` the outputs. Raises CompileError.
    """
    shape = shape_for(network, level)
    shape = replace(shape, teams=max(1, _BLOCKS[level.name] // shape.blocks))
    pointers = ("state", "output", "inputs", "late", "states" if loop == "none" else "outputs")
    return reservoir_kernel(network, dtype, level, loop=loop, pointers=pointers, shape=shape)


def _depths(layers: Sequence[LayerPlan]) -> tuple[list[int], bool]:
    """Of each layer: how many others stand below it, one above the other; and whether all that it drives are one
    higher, so that each finds the last value of what drives it."""
    begins = np.cumsum([0, *(layer.units for layer in layers)]).tolist()
    height, in_line = [0] * len(layers), True
    for i in range(len(layers) - 1, -1, -1):
        for child in (begins.index(first) for below, first, _ in layers[i].sources if below):
            in_line = in_line and height[child] in (0, height[i] + 1)
            height[child] = max(height[child], height[i] + 1)
    top = max(height)
    for i, layer in enumerate(layers):
        for below, first, _ in layer.sources:
            in_line = in_line and not (below and height[begins.index(first)] != height[i] + 1)
    return [top - h for h in height], in_line


def _rows_of(network: NetworkPlan, depth: Sequence[int], lags: int, states_at: int) -> _Rows:
    """All rows, with columns as places on the board."""
    board = states_at + sum(layer.units for layer in network.layers)
    if board > 1 << 16:
        raise CompileError(f"a network of {board} states and drives; on a GPU wanted at most {1 << 16}: use a CPU")
    counts, columns, values = list[Any](), list[Any](), list[Any]()
    first = 0
    late_at = 1 + lags * network.inputs
    for layer, d in zip(network.layers, depth, strict=True):
        lag = d if lags > 1 else 0
        places = [states_at + first + np.arange(layer.units), np.zeros(1, int)]
        for below, begin, count in layer.sources:
            places.append((states_at + begin if below else 1 + lag * network.inputs + begin) + np.arange(count))
        places.append(late_at + lag * network.feedback + np.arange(network.feedback))
        row, column = np.nonzero(layer.matrix)
        counts.append(np.bincount(row, minlength=layer.units))
        columns.append(np.concatenate(places)[column])
        values.append(layer.matrix[row, column])
        first += layer.units
    weights = np.concatenate(counts)
    units = [layer.units for layer in network.layers]
    return _Rows(
        weights, np.cumsum(weights) - weights, np.concatenate(columns).astype(np.uint16), np.concatenate(values),
        np.repeat(depth, units), np.repeat([layer.leak for layer in network.layers], units),
    )  # fmt: skip


def _passes(
    rows: _Rows, shape: Shape, depths: int
) -> tuple[int, int, list[tuple[NDArray[np.int64], int, int]]]:  # fmt: skip
    """Rows of a block in a pass, threads for each, and the passes: (their units, steps, the depth that they belong
    to). Of equally long rows; `depths` is 0 where a pass may have rows of any depth."""
    groups = [np.arange(len(rows.counts))] if not depths else [np.flatnonzero(rows.depth == d) for d in range(depths)]
    most = max(len(group) for group in groups)
    per_pass = min(-(-most // shape.blocks), shape.threads)
    lanes = max(1, min(shape.threads // per_pass, _LANES, int(rows.counts.max())))
    per_pass = min(shape.threads // lanes, -(-most // shape.blocks))
    passes = []
    for d, group in enumerate(groups):
        order = group[np.argsort(-rows.counts[group], kind="stable")]
        for begin in range(0, len(order), per_pass * shape.blocks):
            units = order[begin : begin + per_pass * shape.blocks]
            passes.append((units, max(1, -(-int(rows.counts[units].max()) // lanes)), d))
    if max(steps for _, steps, _ in passes) * len(passes) <= min(_HELD.values()):  # in registers: all of one length
        steps = max(steps for _, steps, _ in passes)
        passes = [(units, steps, d) for units, _, d in passes]
    return per_pass, lanes, passes


def _streams(
    rows: _Rows, shape: Shape, per_pass: int, lanes: int, passes: Sequence[tuple[NDArray[np.int64], int, int]]
) -> tuple[list[int], tuple[Array, NDArray[np.uint16]]]:
    """Where each pass begins among a thread's slots, and values and columns [blocks, slots, lanes, rows of a pass]."""
    first = np.cumsum([0, *(steps for _, steps, _ in passes)]).tolist()
    values = np.zeros((shape.blocks, first[-1], lanes, per_pass))
    columns = np.zeros(values.shape, np.uint16)
    for (units, _, _), begin in zip(passes, first, strict=False):
        counts = rows.counts[units]
        at = np.repeat(np.arange(len(units)), counts)
        rank = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        source = np.repeat(rows.starts[units], counts) + rank
        place = (at % shape.blocks, begin + rank // lanes, rank % lanes, at // shape.blocks)
        values[place] = rows.values[source]
        columns[place] = rows.columns[source]
    return first, (values, columns)


def _row_table(
    rows: _Rows, shape: Shape, per_pass: int, passes: Sequence[tuple[NDArray[np.int64], int, int]], size: int
) -> NDArray[Any]:
    """Row of the kernel, [blocks, passes, rows of a pass]."""
    kind = np.float32 if size == 4 else np.float64
    table = np.zeros(
        (shape.blocks, len(passes), per_pass), [("unit", np.int32), ("depth", np.int32), ("leak", kind), ("kept", kind)]
    )
    table["unit"] = -1
    for p, (units, _, _) in enumerate(passes):
        at = np.arange(len(units))
        place = (at % shape.blocks, p, at // shape.blocks)
        table["unit"][place], table["depth"][place] = units, rows.depth[units]
        table["leak"][place], table["kept"][place] = rows.leak[units], 1.0 - rows.leak[units]
    return table


def _split(features: int, threads: int, items: int) -> int:
    """How many threads find one output: a power of two."""
    split = 1
    while 2 * split <= threads and (split * 8 < features) and 2 * split * items <= 2 * threads:
        split *= 2
    return split
