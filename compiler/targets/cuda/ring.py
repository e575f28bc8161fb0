"""Products of a few rows with weights, streamed through a ring in shared memory (kernels/cuda/gemv.cuh).

A launch is a list of segments, matmul groups that read the same x: their units (a row of each sister weight) stand one
after another and are dealt out to one block per multiprocessor. The prologue makes x: it may compute whole rows of
maps and row sums, which every block repeats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from echoc.compiler.ir import DType, Node
from echoc.compiler.ir.ops import POINTWISE
from echoc.compiler.ir.types import Dim, dim_mul
from echoc.compiler.passes.fuse import Group
from echoc.compiler.passes.pack import Packed
from echoc.compiler.targets.cpu import emit
from echoc.compiler.targets.cpu.emit import Place
from echoc.compiler.targets.cpu.kernels import listing
from echoc.compiler.targets.cuda.source import FLOATS, Device, Emitter, Scope, finish
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.printer import Arguments
from echoc.compiler.targets.gpu.weights import element, layout
from echoc.compiler.targets.index import Index, Var, dim_text

BITS = {"bf16": 16, "f8": 8, "i8": 8, "i4": 4}
# Bytes of weights in a stage, about, and stages under way: more delay the small reads of other blocks. Measured on an
# H200: 48 KB in all are the best for bf16, in stages of 16 KB or 24 KB; 64 KB for the others.
STAGES = {"bf16": (16 * 1024, 3), "f8": (32 * 1024, 2), "i8": (16 * 1024, 4), "i4": (16 * 1024, 4)}
FEEDERS = 2  # warps that issue the copies, a row each: one alone is not fast enough; twice as many for scales
BESIDE = 150 * 1024  # bytes of shared memory that leave room for an attention
MAX_KEPT = {8: 112, 16: 48}  # floats of x that a thread may keep in registers, by the warps of a block
MAX_ROWS = 4
VIEWS = frozenset({"reshape", "broadcast", "transpose", "slice", "concat", "pad", "const", "iota", "take", "gather"})
_NAME = re.compile(r"[A-Za-z_]\w*")


class Unfit(Exception):
    """A launch that this kernel cannot express; it stays as it was."""


@dataclass(frozen=True)
class Source:
    """A value that lies in memory in parts. `load(array of four, offset of the row, parts)` is the statement that loads
    four columns, `used(offset of the row)` how many parts there are: the ports say it."""

    load: Callable[[str, str, str], str]
    used: Callable[[str], str]


@dataclass(frozen=True)
class Shape:
    """The constants of kernels/cuda/gemv.cuh."""

    rows: int
    k: int
    sisters: int
    units: int
    height: int
    width: int
    slots: int
    in_flight: int
    bits: int
    group: int
    split: bool
    warps: int
    shared_bytes: int

    @property
    def chunk(self) -> int:
        """Columns of x that the block makes at a time."""
        return self.warps * 32 * 4


def fits(packed: Packed, k: int) -> bool:
    """Whether the kernel can read rows of this format: without padding, 16 bytes at a time, scales too."""
    if packed.format not in BITS or packed.experts > 1 or k % 32:
        return False
    return not packed.group or (packed.group % 32 == 0 and k % (8 * packed.group) == 0)


def shape_for(
    rows: int, k: int, sisters: int, units: int, packed: Packed, narrow: bool, device: Device
) -> Shape | None:
    """The schedule of one launch: tiles of even height, stages as STAGES says. None where too few stages fit.

    With dependent launches a block takes more than half of a multiprocessor's shared memory, so that the blocks of the
    next launch spread as evenly as those of this one: each finds its place when one of these ends.
    """
    bits, warps = BITS[packed.format], warps_for(packed)
    per_block = -(-units // device.processors)
    tallest = 16 // sisters
    tile = -(-per_block // -(-per_block // tallest))
    height = tile * sisters
    step = 8 * packed.group if packed.group else 32
    stage, in_flight = STAGES[packed.format]
    stages = max(round(height * k * bits / 8 / stage), 1)
    width = min(_up(-(-k // stages), step), _up(k, step))
    lane = bits  # bytes that a lane takes at a time
    pitch = _up(width * bits // 8, 128) + 4 * lane
    scale_pitch = _up(width // packed.group * 2, 16) if packed.group else 0
    slot = _up(height * (pitch + scale_pitch), 128)
    total = -(-per_block // tile) * -(-k // width)
    for split in (False,) if narrow or packed.group else (True, False):
        columns = rows * (2 if split else 1)
        blocks = _up(k // 32 * rows * 8, 128) if packed.group else 0
        fixed = _up(k * 2 * columns, 128) + blocks + _up(2 * warps * height * rows * 4, 128) + 256
        for budget, most in ((min(BESIDE, device.shared_bytes), 12), (device.shared_bytes, in_flight + 1)):
            slots = min((budget - fixed) // slot, max(total, 2), most)
            if slots >= min(in_flight + 1, max(total, 2)):
                least = device.shared_bytes // 2 + 1024 if device.bulk else 0
                return Shape(
                    rows, k, sisters, units, height, width, slots, min(in_flight, slots), bits, packed.group, split,
                    warps, max(fixed + slots * slot, least),
                )  # fmt: skip
    return None


def warps_for(packed: Packed) -> int:
    """Warps that multiply: quantised weights keep more of them busy."""
    return 16 if packed.format != "bf16" else 8


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


@dataclass
class Prologue:
    """How x comes about: `nodes` are computed here, from memory; `outputs` are those that others read as well."""

    x: Node
    rows: Dim
    k: int
    nodes: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)

    @property
    def sums(self) -> list[Node]:
        return [n for n in self.nodes if n.op == "sum"]


def fits_rows(prologue: Prologue) -> bool:
    """Whether a prologue is nothing but maps of values in memory and sums of whole rows."""
    return all(_fits_row(n, prologue.rows, prologue.k) for n in prologue.nodes)


def _fits_row(node: Node, rows: Dim, k: int) -> bool:
    whole, scalar = node.tensor.size == dim_mul(rows, k), node.tensor.size == rows
    if node.op == "sum":
        (operand,) = node.inputs
        reduced = [operand.shape[a] for a in node["axes"]]
        return (
            scalar and node.tensor.dtype is DType.F32 and operand.tensor.size == dim_mul(rows, k)
            and 0 not in node["axes"] and bool(reduced)
        )  # fmt: skip
    if node.tensor.rank and node.shape[0] not in (rows, 1):
        return False
    return (node.op in POINTWISE and (whole or scalar or not node.tensor.rank)) or node.op in VIEWS


@dataclass
class _Kept:
    """Four columns at a time of a value in memory, in registers: `name`[row or 0][chunk][4]."""

    name: str
    by_row: bool
    setup: list[str]
    load: str


class _Rows(Emitter):
    """Prints the prologue: phases of loops over the rows `t` and columns `k`, with a sum of a row between them."""

    def __init__(self, arguments: Arguments, prologue: Prologue, stored: Collection[Node], rows: int,
                 sources: dict[Node, Source], ahead: bool, chunk: int) -> None:  # fmt: skip
        super().__init__(arguments, set(prologue.nodes), stored)
        self.prologue, self.count, self.sources = prologue, rows, sources
        self.column = Var("k", 0, prologue.k, loops=False)
        self.kept: dict[tuple[Node, str], _Kept] = {}
        self.early: list[str] = []  # before the launches before this one are done
        self.before: list[str] = []  # the same, where that must not be read so early
        self.ahead, self.chunk = ahead, chunk
        self.one_by_one = not prologue.nodes  # rows one after another: no phase needs what another has loaded

    def is_external(self, node: Node) -> bool:
        return node in self.sources or super().is_external(node)

    def own(self, node: Node, scope: emit.Scope) -> tuple[Index, ...]:
        assert self.row is not None
        return tuple(scope.unflatten(Index(((self.row, self.prologue.k), (self.column, 1))), node.shape))

    def memory(self, node: Node, offset: Index, scope: emit.Scope) -> str:
        source = self.sources.get(node)
        base = Index(tuple((v, c) for v, c in offset.terms if v is not self.column), offset.const)
        own = isinstance(scope, _Element) and dict(offset.terms).get(self.column) == 1
        aligned = not base.const % 4 and all(c % 4 == 0 for _, c in base.terms)
        if not own or not aligned or any(v.name in scope.local for v, _ in base.terms):  # type: ignore[attr-defined]
            if source is not None:
                raise Unfit(f"{node.type} is read in another order than it lies in parts")
            return super().memory(node, offset, scope)
        if source is None and self.arguments.element(node) not in FLOATS:
            return super().memory(node, offset, scope)
        key = (node, str(base))
        if key not in self.kept:
            self.keep(key, base, scope.parent.lines)  # type: ignore[attr-defined]
        kept = self.kept[key]
        return f"{kept.name}[{self.at(kept)}][c][j]"

    def at(self, kept: _Kept) -> str:
        return "r" if kept.by_row and not self.one_by_one else "0"

    def keep(self, key: tuple[Node, str], base: Index, lines: Sequence[str]) -> None:
        node, kept = key[0], _Kept(self.fresh("in"), bool(base.terms), [], "")
        kept.setup = _slice(lines, {v.name for v, _ in base.terms})
        out = f"{kept.name}[{self.at(kept)}][c]"
        if node in self.sources:
            used = self.fresh("used")
            declared = [f"int {used}[{self.count}];"]
            row = [*kept.setup, f"{used}[r] = {self.sources[node].used(str(base))};"]
            (self.early if self.ahead and self.of_ports(row) else self.before).extend([*declared, *self.each_row(row)])
            kept.load = self.sources[node].load(out, str(base), f"{used}[r]")
        else:
            kept.load = f"echoc::load_four({out}, {self.arguments.get(node)}, {base} + column(c));"
        self.kept[key] = kept
        if node.op == "weight" and not kept.by_row:
            self.early += [self.declare(kept), *self.load_loop(kept)]

    def of_ports(self, lines: Sequence[str]) -> bool:
        """Whether statements read no memory but ports."""
        names = {name for line in lines for name in _NAME.findall(line)}
        read = [a.key for a in self.arguments.items if a.name in names]
        return all(isinstance(key, Node) and key.op == "port" for key in read)

    def declare(self, kept: _Kept) -> str:
        return f"float {kept.name}[{self.count if self.at(kept) == 'r' else 1}][kChunks][4];"

    def load_loop(self, kept: _Kept) -> list[str]:
        return _loop("c", "kChunks", self.guard([kept.load]))

    def guard(self, lines: list[str]) -> list[str]:
        if self.prologue.k % self.chunk == 0:
            return lines
        return [f"if (column(c) < {self.prologue.k}) {{", *("  " + x for x in lines), "}"]

    def each_row(self, lines: list[str]) -> list[str]:
        if self.count == 1:
            return ["{", "  constexpr int r = 0, t = 0;", *("  " + x for x in lines), "}"]
        return _loop("r", str(self.count), ["const int t = r < rows ? r : rows - 1;", *lines])

    def phase(self, body: Callable[[_Element], list[str]]) -> tuple[list[str], list[str]]:
        """The statements of a row and, for one column of it, those of `body`."""
        row = self.scope()
        element = _Element(self, row)
        lines = body(element)
        return row.lines, [*element.lines, *lines]

    def render(self) -> list[str]:
        """The statements that put x where the tensor cores read it."""
        phases: list[str] = []
        for node in self.prologue.sums:
            name = self.fresh("s")
            (operand,) = node.inputs

            def add(scope: _Element, operand: Node = operand) -> list[str]:
                return [f"part += {scope.value(operand, self.own(operand, scope))};"]

            row, element = self.phase(add)
            loop = _loop("c", "kChunks", self.guard(_loop("j", "4", element)))
            phases.append(f"float {name}[{self.count}];")
            phases += self.each_row([*row, "float part = 0;", *loop, f"{name}[r] = gemv.block_sum(part);"])
            self.places[node] = Place("scalar", f"{name}[r]")
        x = self.prologue.x

        def last(scope: _Element) -> list[str]:
            lines = [f"y[j] = {scope.value(x, self.own(x, scope))};"]
            for node in self.prologue.outputs:
                lines.append("if (blockIdx.x == 0 && r < rows) " + self.store_own(node, scope))
            return lines

        row, element = self.phase(last)
        make = ["float y[4];", *_loop("j", "4", element), "gemv.put(r, column(c), y);"]
        final = [*row, *_loop("c", "kChunks", self.guard(make))]
        late = [k for k in self.kept.values() if k.by_row or self.declare(k) not in self.early]
        if self.one_by_one:
            loads = [x for k in late for x in (self.declare(k), *k.setup, *self.load_loop(k))]
            return [*self.before, *self.each_row([*loads, *final])]
        for kept in late:
            phases = [self.declare(kept), *self.each_row([*kept.setup, *self.load_loop(kept)]), *phases]
        return [*self.before, *phases, *self.each_row(final)]

    def store_own(self, node: Node, scope: emit.Scope) -> str:
        assert self.row is not None
        if node.tensor.size == self.prologue.rows:
            value = scope.value(node, tuple(scope.unflatten(Index(((self.row, 1),)), node.shape)))
            return self.store(node, "t", value)
        return self.store(node, f"t * {self.prologue.k} + k", scope.value(node, self.own(node, scope)))


class _Element(Scope):
    """One column of one row; what does not depend on the column is computed once a row, in the parent."""

    def __init__(self, emitter: _Rows, parent: emit.Scope) -> None:
        super().__init__(emitter)
        self.parent = parent
        self.local = {emitter.column.name}
        self.lines.append("const int k = column(c) + j;")

    def is_local(self, text: str) -> bool:
        return not self.local.isdisjoint(_NAME.findall(text))

    def value(self, node: Node, index: tuple[Index, ...]) -> str:
        if not any(v.name in self.local for i in index for v, _ in i.terms) and node.op != "arg":
            return self.parent.value(node, index)
        return super().value(node, index)

    def bind(self, text: str, low: int, high: int | None) -> Var:
        if not self.is_local(text):
            return self.parent.bind(text, low, high)
        var = super().bind(text, low, high)
        self.local.add(var.name)
        return var

    def declare(self, text: str, dtype: DType) -> str:
        name = super().declare(text, dtype)
        if name != text:
            self.local.add(name)
        return name


def _loop(var: str, end: str, body: list[str]) -> list[str]:
    return ["#pragma unroll", f"for (int {var} = 0; {var} < {end}; ++{var}) {{", *("  " + x for x in body), "}"]


def _slice(lines: Sequence[str], names: set[str]) -> list[str]:
    """The statements, each of which defines one name, that `names` depend on."""
    out: list[str] = []
    for line in reversed(lines):
        left, _, right = line.partition(" = ")
        if left.split()[-1] in names:
            names = names | set(_NAME.findall(right))
            out.append(line)
    return out[::-1]


class _Epilogue(Emitter):
    """The riders of one segment at row `t` and unit `n`; reads of its own element are made ahead, and of the scales of
    the weights' rows, one text a sister."""

    def __init__(self, arguments: Arguments, group: Group, stored: Collection[Node], inner: Collection[Node],
                 row_scales: Sequence[str]) -> None:  # fmt: skip
        super().__init__(arguments, {*group.nodes, *inner}, stored)
        self.group, self.n = group, group.matmuls[0].n
        self.column = Var("n", 0, self.n, loops=False)
        self.ahead: list[str] = []
        self.known: dict[tuple[Node, str], str] = {}
        for i, matmul in enumerate(group.matmuls):
            self.places[matmul.node] = Place("acc", f"acc[{i}]")
        if row_scales:
            for i, matmul in enumerate(group.matmuls):
                self.places[matmul.node] = Place("acc", f"(acc[{i}] * early[{i}])")
            self.ahead = [f"early[{i}] = {text};" for i, text in enumerate(row_scales)]

    def own(self, node: Node, scope: emit.Scope) -> tuple[Index, ...]:
        assert self.row is not None
        return tuple(scope.unflatten(Index(((self.row, self.n), (self.column, 1))), node.shape))

    def load(self, node: Node, index: tuple[Index, ...], scope: emit.Scope) -> str | None:
        if node.op == "reshape" and node.tensor.size == self.group.matmuls[0].node.tensor.size:
            source = node.inputs[0]
            if source.tensor.rank and index == self.own(node, scope):
                return scope.value(source, self.own(source, scope))  # a view of the same element, without divisions
        return super().load(node, index, scope)

    def accumulator(self, node: Node, index: tuple[Index, ...], place: Place, scope: emit.Scope) -> str:
        return place.name

    def memory(self, node: Node, offset: Index, scope: emit.Scope) -> str:
        text = super().memory(node, offset, scope)
        if self.arguments.element(node) not in FLOATS or any(v not in (self.row, self.column) for v, _ in offset.terms):
            return text
        key = (node, str(offset))
        if key not in self.known:
            self.known[key] = f"early[{len(self.ahead)}]"
            self.ahead.append(f"{self.known[key]} = {text};")
        return self.known[key]

    def render(self) -> list[str]:
        scope = self.scope()
        stores = []
        for node in self.group.outputs:
            value = scope.value(node, self.own(node, scope))
            stores.append(self.store(node, f"t * {self.n} + n", value))
        return [*scope.lines, *stores]


def gemv(
    groups: Sequence[Group], weights: Sequence[Packed], prologue: Prologue, rows: int, arguments: Arguments,
    stored: Collection[Node], symbols: Sequence[str], device: Device,
    sources: dict[Node, Source] | None = None, inner: Collection[Node] = (),
    ahead: bool = False,
) -> Kernel:  # fmt: skip
    """One launch for all `groups`, for at most `rows` rows of x.

    `inner` are nodes that epilogues compute for themselves; `sources` are nodes that lie in memory in another form: how
    to load four columns of them at an offset; `ahead` says that ports may be read before the launches before are done.

    Raises:
        Unfit: the shape or the prologue does not fit the kernel.
    """
    first = groups[0].matmuls[0]
    sisters, units = len(groups[0].matmuls), sum(g.matmuls[0].n for g in groups)
    narrow = not prologue.nodes and not sources and arguments.element(prologue.x) == "bf16"
    shape = shape_for(rows, first.k, sisters, units, weights[0], narrow, device)
    if shape is None or rows > MAX_ROWS:
        raise Unfit(f"{rows} rows of {first.k} values")
    chunks = -(-first.k // shape.chunk)
    if chunks * 4 * (rows if prologue.nodes else 1) > MAX_KEPT[shape.warps]:
        raise Unfit(f"{rows} rows of {first.k} values")
    holes = _segments(groups, weights, shape, arguments, stored, inner)
    emitter = _Rows(arguments, prologue, stored, rows, sources or {}, ahead, shape.chunk)
    body = emitter.render()
    feeders = FEEDERS * 2 if shape.group else FEEDERS
    constants = {
        "kRows": rows, "kK": shape.k, "kSisters": sisters, "kUnits": units, "kHeight": shape.height,
        "kWidth": shape.width, "kSlots": shape.slots, "kInFlight": shape.in_flight,
        "kBits": shape.bits, "kGroup": shape.group, "kSplit": int(shape.split), "kFeeders": feeders,
        "kWarps": shape.warps, "kEarly": max(len(s["ahead"]) for s in holes),
    }  # fmt: skip
    columns = [
        f"constexpr int kChunks = {chunks};",
        f"const auto column = [](int c) {{ return c * {shape.chunk} + int(threadIdx.x) * 4; }};",
    ]
    row_bytes = shape.k * shape.bits // 8
    threads = shape.warps * 32 + (feeders * 32 if device.bulk else 0)
    return finish(
        "gemv", [line for g in groups for line in listing(g)], arguments, symbols,
        ((min(device.processors, units), 1),), threads, device, shape.shared_bytes,
        {"rows": rows, "height": shape.height, "width": shape.width, "slots": shape.slots, "split": shape.split},
        shape=constants, segments=holes, early=[*columns, *emitter.early], prologue=body, row_bytes=row_bytes,
        scale_bytes=shape.k // shape.group * 2 if shape.group else 0, rows=dim_text(prologue.rows),
    )  # fmt: skip


def _segments(groups: Sequence[Group], weights: Sequence[Packed], shape: Shape, arguments: Arguments,
              stored: Collection[Node], inner: Collection[Node]) -> list[dict[str, Any]]:  # fmt: skip
    out: list[dict[str, Any]] = []
    begin = 0
    for i, (group, packed) in enumerate(zip(groups, weights, strict=True)):
        form = layout(packed)
        base = arguments.get(packed, element(packed))
        scales = form.scales * form.element_bytes
        row_scales = [
            f"*reinterpret_cast<const float*>({base} + {s * form.nbytes + scales} + n * 4)"
            for s in range(shape.sisters)
        ]
        epilogue = _Epilogue(arguments, group, stored, inner, row_scales if form.row_scaled else ())
        lines = epilogue.render()
        end = begin + form.n
        out.append(
            {
                "test": "" if i + 1 == len(groups) else f"if (unit < {end}) ", "begin": begin, "end": end,
                "weight": base, "slab": form.nbytes, "scales": scales, "epilogue": lines,
                "ahead": epilogue.ahead,
            }
        )  # fmt: skip
        begin = end
    return out
