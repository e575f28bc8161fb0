"""Attention and its state on GPUs: `append` writes entries into pages, `attend` reads them.

Two forms. Decode, for few rows: a program takes one row, the heads that share one kv head and a part of the row's
context; a second kernel merges the parts. Prefill, for many: a program takes a block of rows of one sequence (or of
several, one after another) and skips the tiles of keys that none of them sees. Grids depend on the number of rows
alone, and so does nothing else of a row's result on the rows beside it: the parts are cut by the row's own position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from echoc.compiler.ir import DType, Node, StateType
from echoc.compiler.ir.types import Dim
from echoc.compiler.passes.fuse import IN_MEMORY, Group, root
from echoc.compiler.targets.cpu.kernels import listing, state_name
from echoc.compiler.targets.gpu.codes import WIDEN_F8, WIDEN_I8
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.printer import Arguments, Printer, Workspace
from echoc.compiler.targets.index import dim_text

if TYPE_CHECKING:
    from echoc.compiler.targets.gpu.render import Renderer
    from echoc.compiler.targets.gpu.rows import RowKernel

PAGE = 16
LOG2_E = 1.4426950408889634
SHORT = 8  # runs of fewer rows of a sequence in a prefill block are decoded row by row
SHORT_ROWS = 4  # rows that a program looks at for short runs
DECODE_ROWS = 256  # up to so many rows each row reads its context alone
MAX_BLOCK = 4096  # elements of an entry that an append writes at a time

DOT_TYPES = {
    "f32": "tl.float32", "f16": "tl.float16", "bf16": "tl.bfloat16", "i8": "tl.bfloat16", "f8": "tl.bfloat16",
}  # fmt: skip
CODES = {"i8": WIDEN_I8, "f8": WIDEN_F8}


@dataclass(frozen=True)
class Shape:
    """The sizes of one attention: `group` query heads share each of `kv_heads`."""

    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    kv: str

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def width(self) -> int:
        return power_of_two(self.head_dim)

    @property
    def v_width(self) -> int:
        return power_of_two(self.v_head_dim)


@dataclass(frozen=True)
class Schedule:
    """Sizes of an attention's programs: `tile` keys at a time; decode cuts a context into at most `splits` parts,
    prefill takes `lines` (rows times heads that share keys) at once."""

    form: str
    tile: int
    splits: int
    lines: int
    num_warps: int
    num_stages: int

    def record(self) -> dict[str, Any]:
        sizes = {"splits": self.splits} if self.form == "decode" else {"lines": self.lines}
        return {"form": self.form, "tile": self.tile, **sizes, "warps": self.num_warps, "stages": self.num_stages}


def element(type_: StateType) -> str:
    """Elements of a pointer to a state; e4m3 lies as u8."""
    return "u8" if type_.dtype is DType.F8 else str(type_.dtype)


def power_of_two(n: int, least: int = 16) -> int:
    """The power of two that holds n."""
    return max(1 << (n - 1).bit_length(), least)


def append(renderer: Renderer, group: Group, before: RowKernel | None = None) -> list[Kernel]:
    """One kernel for all appends of the group (K and V of a layer): one program a row, which does the statements of
    `before` first."""
    first, ir = (before.render(), listing(before.group)) if before else ([], [])
    arguments = before.arguments if before else renderer.arguments()
    appends = [n for n in group.nodes if n.op == "append"]
    states = []
    for node in appends:
        state, values = node.inputs[:2]
        type_ = state.type
        assert isinstance(type_, StateType)
        heads, dim = type_.shape
        printer = Inline(renderer, arguments)
        axis = printer.axis("here")
        e = printer.variable("e", axis, high=heads * dim)
        place = (printer.variable("t"), printer.variable("h", axis, high=heads), printer.variable("d", axis, high=dim))
        printer.quotients[place[1].terms[0][0], place[2].terms[0][0]] = (e, dim)
        scope = printer.scope()
        value = scope.value(values, place)
        states.append(
            {
                "state": arguments.get(state_name(state), element(type_), written=True), "heads": heads, "dim": dim,
                "block": min(power_of_two(heads * dim), MAX_BLOCK), "lines": scope.lines, "value": value,
                "scaled": type_.scaled, "width": power_of_two(dim),
                "high": min(power_of_two(heads, 1), max(MAX_BLOCK // power_of_two(dim), 1)),
            }
        )  # fmt: skip
    sequences, positions, table = appends[0].inputs[2:]
    assert all(n.inputs[2:] == appends[0].inputs[2:] for n in appends)
    holes: dict[str, Any] = {
        "states": states, "sequences": arguments.get(sequences), "positions": arguments.get(positions),
        "table": arguments.get(table), "blocks": dim_text(table.shape[1]), "before": first,
    }  # fmt: skip
    return [
        renderer.finish(
            "append", [*ir, *listing(group)], arguments, ((group.domain, 1),),
            num_warps=before.num_warps if before else 4, dependent=True, **holes,
        )
    ]  # fmt: skip


class Inline(Printer):
    """Prints what an attention reads: from memory where a kernel has written it, else computed in place."""

    def __init__(self, renderer: Renderer, arguments: Arguments) -> None:
        super().__init__(arguments, renderer.bounds)
        self.external = renderer.external

    def is_external(self, node: Node) -> bool:
        return node.op in IN_MEMORY or self.external(node)


def attend(renderer: Renderer, group: Group, deterministic: bool, form: int | None) -> list[Kernel]:
    """The kernels of one attention for at most `form` rows (None: any number)."""
    node = group.nodes[-1]
    k, v = node.inputs[1].type, node.inputs[2].type
    assert isinstance(k, StateType) and isinstance(v, StateType)
    shape = Shape(int(str(node.inputs[0].shape[1])), k.shape[0], k.shape[1], v.shape[1], str(k.dtype))
    return scheduled(renderer, group, node, shape, schedule_for(shape, form), deterministic)


def scheduled(renderer: Renderer, group: Group, node: Node, shape: Shape, schedule: Schedule, deterministic: bool
              ) -> list[Kernel]:  # fmt: skip
    """The kernels of one attention with a given schedule."""
    if renderer.device.vendor == "rocm":  # 64 KB of shared memory
        schedule = replace(schedule, num_stages=min(schedule.num_stages, 2))
    if schedule.form == "decode":
        return decode(renderer, group, node, shape, schedule)
    rows = schedule.lines // min(shape.group, schedule.lines)
    short = 1 if deterministic else max(min(SHORT, rows // 2), 1)
    kernel = prefill(renderer, group, node, shape, schedule, deterministic, short)
    if short == 1:
        return [kernel]
    alone = replace(schedule_for(shape, DECODE_ROWS), splits=1)
    return [kernel, *decode(renderer, group, node, shape, alone, rows, short)]


def schedule_for(shape: Shape, rows: int | None) -> Schedule:
    """Some programs for every processor of a large device, and tiles that fit registers and shared memory."""
    wide = max(shape.width, shape.v_width) * (2 if shape.kv == "f32" else 1)
    if rows is not None and rows <= DECODE_ROWS:
        splits = 32
        while splits > 1 and splits * shape.kv_heads * rows > 512:
            splits //= 2
        if splits == 1 and wide <= 128 and shape.group <= 16 and shape.kv in ("bf16", "f16"):
            return Schedule("decode", 2048 // wide, 1, 0, 1, 5)  # many small programs hide the lookups of each
        tile = 64 if wide <= 128 else 32 if wide <= 256 else 16
        if wide <= 64 and splits == 1:
            tile = 128
        return Schedule("decode", tile, splits, 0, 4, 3)
    return Schedule("prefill", 64 if wide <= 128 else 32, 1, 64 if wide <= 256 else 32, 4, 3 if wide <= 128 else 2)


def decode(renderer: Renderer, group: Group, node: Node, shape: Shape, schedule: Schedule, block: int = 1,
           short: int = 1) -> list[Kernel]:  # fmt: skip
    """Kernels that take each row alone: every row, or those in runs of fewer than `short` rows of a block."""
    lanes = min(power_of_two(shape.group), 64)
    head_blocks = -(-shape.group // lanes)
    rows, splits, tile = node.inputs[0].shape[0], schedule.splits, schedule.tile
    partial = Workspace(rows * (shape.heads * splits * shape.v_head_dim * 4))
    bounds = Workspace(rows * (shape.heads * splits * 8))
    arguments, holes = _common(renderer, node, shape, tile)
    holes |= {
        "lanes": lanes, "head_blocks": head_blocks, "splits": splits, "short": short, "block": block,
        "block_width": power_of_two(block), "count": dim_text(rows),
    }  # fmt: skip
    if splits == 1:
        holes["sink"] = _sink(arguments, node, "head", f"[{lanes}]")
        holes["out"] = arguments.get(node, written=True)
    else:
        holes["partial"] = arguments.get(partial, "f32", written=True)
        holes["bounds"] = arguments.get(bounds, "f32", written=True)
    each = SHORT_ROWS if short > 1 else 1
    holes["rows"] = each
    grid: tuple[tuple[Dim, int], ...] = ((rows, each), (shape.kv_heads * head_blocks, 1), (splits, 1))
    first = renderer.finish(
        "attend_decode", listing(group), arguments, grid, num_warps=schedule.num_warps,
        num_stages=schedule.num_stages, dependent=True, schedule=schedule.record(), **holes,
    )  # fmt: skip
    if splits == 1:
        return [first]
    arguments = renderer.arguments()
    holes = {
        "partial": arguments.get(partial, "f32"), "bounds": arguments.get(bounds, "f32"),
        "out": arguments.get(node, written=True), "positions": arguments.get(node.inputs[4]), "heads": shape.heads,
        "v_head_dim": shape.v_head_dim, "v_width": shape.v_width, "splits": splits, "tile": tile,
        "window": node["window"], "sink": _sink(arguments, node, "head", ""),
    }  # fmt: skip
    grid = ((rows, 1), (shape.heads, 1))
    second = renderer.finish(
        "attend_merge", listing(group), arguments, grid, num_warps=1, dependent=True, schedule=schedule.record(),
        **holes,
    )  # fmt: skip
    return [first, second]


def prefill(renderer: Renderer, group: Group, node: Node, shape: Shape, schedule: Schedule, deterministic: bool,
            short: int) -> Kernel:  # fmt: skip
    """The kernel that takes rows in blocks, all but runs of fewer than `short` rows of a sequence in a block."""
    lines, tile = schedule.lines, schedule.tile
    lanes = min(shape.group, lines)
    head_blocks = -(-shape.group // lanes)
    rows = lines // lanes
    arguments, holes = _common(renderer, node, shape, tile)
    count = node.inputs[0].shape[0]
    holes |= {
        "out": arguments.get(node, written=True), "lines": lines, "lanes": lanes, "head_blocks": head_blocks,
        "rows": rows, "count": dim_text(count), "sinks": "", "short": short,
        # Tiles that every row sees whole need no mask; two loops may round differently, one does not.
        "plain_tiles": not node["window"] and not deterministic,
    }  # fmt: skip
    if node["sinks"]:
        holes["sinks"] = arguments.get(root(node.inputs[6]))
    return renderer.finish(
        "attend_prefill", listing(group), arguments, ((count, rows), (shape.kv_heads * head_blocks, 1)),
        num_warps=schedule.num_warps, num_stages=schedule.num_stages, dependent=True, schedule=schedule.record(),
        **holes,
    )  # fmt: skip


def _common(renderer: Renderer, node: Node, shape: Shape, tile: int) -> tuple[Arguments, dict[str, Any]]:
    """Arguments and holes that both forms share."""
    q, k, v, sequences, positions, table = node.inputs[:6]
    assert isinstance(k.type, StateType) and isinstance(v.type, StateType)
    arguments = renderer.arguments()
    printer = Inline(renderer, arguments)
    rows, columns = printer.axis("q_lines"), printer.axis("q_columns")
    place = (
        printer.variable("q_row", rows), printer.variable("q_head", rows, high=shape.heads),
        printer.variable("q_column", columns, high=shape.head_dim),
    )  # fmt: skip
    scope = printer.scope()
    value = scope.value(q, place)
    holes: dict[str, Any] = {
        "q_code": scope.lines, "q": value, "k": arguments.get(state_name(k), element(k.type)),
        "v": arguments.get(state_name(v), element(v.type)), "sequences": arguments.get(sequences),
        "positions": arguments.get(positions), "table": arguments.get(table), "blocks": dim_text(table.shape[1]),
        "heads": shape.heads, "kv_heads": shape.kv_heads, "group": shape.group, "head_dim": shape.head_dim,
        "v_head_dim": shape.v_head_dim, "width": shape.width, "v_width": shape.v_width, "window": node["window"],
        "tile": tile, "scaled": k.type.scaled, "dot_type": DOT_TYPES[shape.kv],
        "code": repr(CODES.get(shape.kv, "") if renderer.device.vendor == "cuda" else ""),
    }  # fmt: skip
    plain = not node["softcap"] and not node["body"] and node["scale"] > 0
    holes["scale"] = repr(node["scale"] * LOG2_E if plain else LOG2_E)
    lines = [] if plain else [f"score = score * {node['scale']!r}"]
    if node["softcap"]:
        lines.append(f"score = attend.tanh(score * {1.0 / node['softcap']!r}) * {node['softcap']!r}")
    if node["body"]:
        lines += _body(renderer, node.inputs[-1], arguments, printer.counter)
    holes["body"] = lines
    return arguments, holes


def _body(renderer: Renderer, body: Node, arguments: Arguments, used: int) -> list[str]:
    """The inlined body over a block of scores [lines, keys]; names up to the number `used` are the query's."""
    printer = Printer(arguments, renderer.bounds)
    printer.counter = used
    lines, keys = printer.axis(), printer.axis()
    printer.name("head", lines)
    printer.name("position", lines)
    printer.name("kpos", keys)
    printer.named = {
        "score": printer.name("score", lines, keys), "head": "head.to(tl.int64)[:, None]",
        "kpos": "kpos.to(tl.int64)[None, :]", "qpos": "(position + tl.zeros_like(head)).to(tl.int64)[:, None]",
    }  # fmt: skip
    scope = printer.scope()
    value = scope.value(body, ())
    return [*scope.lines, f"score = {value}"]


def _sink(arguments: Arguments, node: Node, head: str, shape: str) -> str:
    if node["sinks"]:
        name = arguments.get(root(node.inputs[6]))
        mask = ", mask=mine, other=0.0" if shape else ""
        return f"tl.load({name} + {head}{mask}).to(tl.float32)"
    return f'tl.full({shape or "[1]"}, float("-inf"), tl.float32)'
