"""Matmuls with packed weights on GPUs: a GEMV for up to four rows, tiles for more, experts by sorted rows.

Siblings (matmuls of the same rows with weights of their own, such as q, k and v) share a launch: each has its own
tiles of columns. Sisters (one group's matmuls, such as gate and up) share a program: its epilogue combines them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from echoc.compiler.ir import Node
from echoc.compiler.ir.types import Dim, dim_value
from echoc.compiler.passes.fuse import IN_MEMORY, Group, root
from echoc.compiler.passes.pack import Packed
from echoc.compiler.targets.cpu.kernels import listing
from echoc.compiler.targets.gpu import weights
from echoc.compiler.targets.gpu.attention import power_of_two
from echoc.compiler.targets.gpu.codes import WIDEN_F8
from echoc.compiler.targets.gpu.kernel import Kernel, Matrix
from echoc.compiler.targets.gpu.printer import Arguments, Printer, Scope, Workspace
from echoc.compiler.targets.index import Index, dim_text, flatten
from echoc.errors import CompileError

if TYPE_CHECKING:
    from echoc.compiler.targets.gpu.render import Renderer

GEMV_ROWS = {"f32": 4, "bf16": 4, "f8": 2, "i8": 2, "i4": 1}  # more rows cost more registers than tensor cores
BUSY = 120  # programs that keep a large device busy
IN_FLIGHT = 48 << 10  # bytes of bf16 weights under way that keep a large device's memory busy, a program each
SHARED = 128 << 10
BAND = 8
PREFETCH = "cp.async.bulk.prefetch.L2.global [$1], {}; mov.u32 $0, 0;"  # while the launches before still run
ROUTE_BLOCK = 1024
BOXED = ("bf16", "f8", "i8")  # formats whose rows and activations are multiplied in the order in which they lie
SCALES = {None: "", "f16": "tl.float16", "f32": "tl.float32"}


@dataclass(frozen=True)
class Schedule:
    """Sizes of a matmul's programs: `block` rows by `columns` columns (of every sister), `depth` values of K a step."""

    form: str
    block: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    splits: int = 1  # parts of K, summed by a second kernel
    loads: str = "pointers"  # or "boxes", where the device copies them by itself and what is read allows it

    def record(self, packed: Packed) -> dict[str, Any]:
        return {
            "form": self.form, "block": self.block, "columns": self.columns, "depth": self.depth,
            "warps": self.num_warps, "stages": self.num_stages, "splits": self.splits, "format": packed.format,
            "group": packed.group, "interleave": packed.interleave, "n": packed.n, "k": packed.k, "loads": self.loads,
        }  # fmt: skip


def siblings(groups: Sequence[Group], packing: Callable[[Group], Packed]) -> list[list[Group]]:
    """Groups in launch order as runs that share a launch: matmuls of one stage, the same rows and the same format."""
    out: list[list[Group]] = []
    for group in groups:
        for run in out:
            if run[0].family == group.family == "gemm" and _alike(run[0], group, packing):
                run.append(group)
                break
        else:
            out.append([group])
    return out


def _alike(a: Group, c: Group, packing: Callable[[Group], Packed]) -> bool:
    p, q = a.matmuls[0], c.matmuls[0]
    same = a.stage == c.stage and root(p.x) is root(q.x) and p.rows == q.rows and len(a.matmuls) == len(c.matmuls)
    return same and _form(packing(a)) == _form(packing(c))


def _form(packed: Packed) -> tuple[str, int, int]:
    return packed.format, packed.group, packed.k


def render(renderer: Renderer, group: Group | Sequence[Group], deterministic: bool, form: int | None) -> list[Kernel]:
    """The kernels of one launch's matmul groups (one group, or siblings) for at most `form` tokens (None: any).

    A row's result depends on the row alone in every form, so that the deterministic ones are no others.
    """
    groups = [group] if isinstance(group, Group) else list(group)
    first = groups[0].matmuls[0]
    packed = [renderer.packing.of(g) for g in groups]
    bound = None
    if form is not None:
        bound = dim_value(first.rows, {name: min(high, form) for name, high in renderer.bounds.items()})
    columns = sum(g.matmuls[0].n for g in groups)
    if first.ids is not None:
        few = bound is not None and bound <= max(16, packed[0].experts)
        if few:
            return [_gemv(renderer, groups, packed, replace(gemv_schedule(1, columns, packed[0]), block=1))]
        schedule = gemm_schedule(16 if bound is not None and bound <= 1024 else None, columns, packed[0])
        key = (root(first.ids), packed[0].experts, deterministic, form)
        route = [] if key in renderer.routes else [_route(renderer, groups[0], packed[0], key)]
        return [*route, *tiled(renderer, groups, packed, schedule, renderer.routes[key])]
    if bound is not None and bound <= GEMV_ROWS[packed[0].format]:
        return [_gemv(renderer, groups, packed, gemv_schedule(bound, columns, packed[0]))]
    schedule = gemm_schedule(None if deterministic else bound, columns, packed[0], renderer.device.tensor_maps)
    if schedule.block > 64:
        schedule = replace(schedule, loads="boxes")
    return tiled(renderer, groups, packed, schedule)


def gemv_schedule(rows: int, columns: int, packed: Packed) -> Schedule:
    """About 16 KB of weights in flight a program of 128 threads, half of it before the step's input is there."""
    span = weights.SPANS[packed.format]
    depth = min(power_of_two(weights.layout(packed).padded_k), 128 * span)
    each = 8 if columns >= 8 * BUSY and packed.format != "i4" else 4
    return Schedule("gemv", rows, max(each // packed.interleave, 2), depth, 4, 1)


def gemm_schedule(bound: int | None, columns: int, packed: Packed, roomy: bool = False) -> Schedule:
    """Tiles by the number of rows. Few rows' weights are spread over the device: narrow tiles up to 16 rows, parts of
    K beyond, where narrow tiles would read the rows too often. `roomy`: blocks may have 200 KB of shared memory, which
    boxes are copied to."""
    precise = packed.format == "f32"
    sisters = packed.interleave
    depth = max(32 if precise else 64, packed.group)
    if bound is not None and bound <= 16:
        wide = 16
        while wide < 64 and columns >= 2 * wide * BUSY:
            wide *= 2
        wide = max(wide // (2 if sisters > 2 else 1), 16)
        depth = max(4096 // wide, packed.group)
        if precise:
            return Schedule("tiles", 16, wide, depth // 2, 4, 3)
        return Schedule("tiles", 16, wide, depth, 2 if wide == 16 else 4, _stages(16, sisters * wide, depth))
    wide = 128 if sisters == 1 else 64 if sisters == 2 else 32
    block, warps, stages = 128, 8, 4 if sisters == 1 or (roomy and packed.format == "bf16") else 3
    if precise:
        block, wide, warps, stages = 64, max(wide // 2, 16), 4, 2
    if bound is None or bound > 2048:
        many = not precise and columns >= 8 * wide and packed.format == "bf16"
        return Schedule("tiles", block, 2 * wide if many else wide, depth, warps, stages)
    if bound <= 64:
        block, wide, warps = 64, min(wide, 64), 4
        if columns <= 35 * BUSY and packed.k <= 4096 and not precise:
            wide, depth = 32, max(128, packed.group)
    programs = -(-columns // wide) * -(-bound // block)
    pair = sisters == 2
    if roomy and packed.format == "bf16" and sisters * wide == 128 and programs >= (1.6 if pair else 4) * BUSY:
        return Schedule("tiles", block, 2 * wide, depth, warps, 4)  # a tile of x meets twice the weights
    if roomy and packed.format == "bf16" and sisters == 1:
        return _spread(bound, columns, packed.k)
    splits = _splits(programs, (2 if bound <= 64 else 1.1) * BUSY, bound, depth, packed.k)
    stages = stages if precise else _stages(block, sisters * wide, depth)
    return Schedule("tiles", block, wide, depth, warps, stages, splits)


def _spread(bound: int, columns: int, k: int) -> Schedule:
    """Tiles of one bf16 matrix that the device copies to shared memory: narrower ones where there are few, as a part
    of K costs a second pass over the sums."""
    size = 64 if bound <= 64 else 128  # of a block, either way
    programs = -(-columns // size) * -(-bound // size)
    if programs >= 0.7 * BUSY:
        warps, stages = (4, 8) if size == 64 else (8, 6)
        return Schedule("tiles", size, size, 64, warps, stages, loads="boxes")
    depth, stages = (256, 4) if size == 64 else (64, 6)
    splits = _splits(2 * programs, 1.1 * BUSY, bound, depth, k)
    return Schedule("tiles", size, size // 2, depth, 4, stages, splits, loads="boxes")


def _splits(programs: int, most: float, bound: int, depth: int, k: int) -> int:
    """Parts of K, as long as partial sums are less to read and write than weights."""
    splits = 1
    while programs * splits * 2 <= most and k >= splits * 2 * max(4 * depth, 4 * bound):
        splits *= 2
    return splits


def _stages(block: int, wide: int, depth: int) -> int:
    """So many steps of 16-bit rows and weights that enough weights are under way and shared memory holds them."""
    wanted = 1 + IN_FLIGHT // (2 * wide * depth)
    return max(3, min(8, wanted, SHARED // (2 * (block + wide) * depth)))


def _gemv(renderer: Renderer, groups: Sequence[Group], packed: Sequence[Packed], schedule: Schedule) -> Kernel:
    first = groups[0].matmuls[0]
    form = weights.layout(packed[0])
    span = weights.SPANS[form.format]
    vectors = schedule.depth // span
    used = form.padded_k // span
    arguments = renderer.arguments()
    holes = _common(renderer, arguments, groups, packed, schedule)
    holes |= {
        "rows": schedule.block, "unit": weights.UNITS[form.format], "span": span, "vectors": vectors,
        "steps": -(-used // vectors), "cut": used % vectors != 0 or form.k != form.padded_k, "ids": "",
        "block": 1 << (schedule.block - 1).bit_length(),
    }  # fmt: skip
    if first.ids is not None:
        holes |= {"ids": arguments.get(root(first.ids)), "experts": packed[0].experts, "slab": form.slab}
    return renderer.finish(
        "gemv", _listing(groups), arguments, ((holes["tiles"], 1), (first.rows, schedule.block)),
        num_warps=schedule.num_warps, num_stages=schedule.num_stages, dependent=True,
        schedule=schedule.record(packed[0]), **holes,
    )  # fmt: skip


def tiled(renderer: Renderer, groups: Sequence[Group], packed: Sequence[Packed], schedule: Schedule,
          routing: tuple[Workspace, Workspace] | None = None) -> list[Kernel]:  # fmt: skip
    """The kernels of a matmul in tiles; `routing` are the rows sorted by expert and the experts' numbers of them."""
    first = groups[0].matmuls[0]
    form = weights.layout(packed[0])
    span = weights.SPANS[form.format] // weights.UNITS[form.format]
    depth, splits = schedule.depth // span, schedule.splits
    if renderer.device.vendor == "rocm":  # 64 KB of shared memory
        schedule = replace(schedule, num_stages=2)
    steps = -(-form.row // (depth * splits))
    arguments = renderer.arguments()
    holes = _common(renderer, arguments, groups, packed, schedule, depth, routing is not None)
    if not holes["boxes"]:
        schedule = replace(schedule, loads="pointers")
    holes |= {
        "depth": depth, "steps": steps, "cut": form.row != steps * splits * depth or form.k != form.padded_k,
        "each": form.group // span, "block": schedule.block, "band": BAND, "routed": routing is not None,
        "splits": splits, "prefetch": "", "halves": splits == holes["sisters"] == 1 and _crowded(schedule),
    }  # fmt: skip
    weighted = not holes["weight_boxes"]  # weights are read by pointers
    if renderer.device.dependent and routing is None and schedule.block <= 64 and not holes["cut"] and weighted:
        ahead = min(steps, schedule.num_stages - 1) * depth * form.element_bytes
        holes["prefetch"] = PREFETCH.format(ahead)
    grid: tuple[tuple[Dim, int], ...] = ((first.rows, schedule.block), (holes["tiles"], 1), (splits, 1))
    if routing is not None:
        holes |= {
            "order": arguments.get(routing[0], "i32"), "sizes": arguments.get(routing[1], "i32"),
            "slab": form.n if holes["weight_boxes"] else form.slab, "experts": packed[0].experts,
            "experts_block": power_of_two(packed[0].experts),
        }  # fmt: skip
        grid = ((holes["tiles"], 1), (first.rows + packed[0].experts * schedule.block, schedule.block))
    partial = Workspace(first.rows * (splits * holes["sisters"] * holes["total"] * 4))
    if splits > 1:
        holes["partial"] = arguments.get(partial, "f32", written=True)
    record = schedule.record(packed[0])
    kernel = renderer.finish(
        "gemm", _listing(groups), arguments, grid, num_warps=schedule.num_warps, num_stages=schedule.num_stages,
        dependent=True, schedule=record, **holes,
    )  # fmt: skip
    if splits == 1:
        return [kernel]
    return [
        kernel,
        _merge(renderer, groups, packed, replace(schedule, block=4, columns=256, loads="pointers"), partial),
    ]


def _crowded(schedule: Schedule) -> bool:
    """Whether sums take half of a thread's registers: the epilogue, which reads as many values, has them by halves."""
    return schedule.block * schedule.columns >= 128 * 32 * schedule.num_warps


def _merge(renderer: Renderer, groups: Sequence[Group], packed: Sequence[Packed], schedule: Schedule,
           partial: Workspace) -> Kernel:  # fmt: skip
    """The kernel that sums the parts of K and has the epilogue."""
    first = groups[0].matmuls[0]
    arguments = renderer.arguments()
    holes = _parts(renderer, arguments, groups, packed, schedule)
    holes |= {
        "partial": arguments.get(partial, "f32"), "splits": schedule.splits, "block": schedule.block,
        "count": dim_text(first.rows),
    }  # fmt: skip
    return renderer.finish(
        "gemm_merge", _listing(groups), arguments, ((first.rows, schedule.block), (holes["tiles"], 1)), num_warps=4,
        dependent=True, schedule=schedule.record(packed[0]), **holes,
    )  # fmt: skip


def _route(renderer: Renderer, group: Group, packed: Packed, key: object) -> Kernel:
    """The kernel that sorts rows by expert; `renderer.routes` says where it leaves them, and every expert's number."""
    first = group.matmuls[0]
    assert first.ids is not None
    order, sizes = renderer.routes[key] = Workspace(first.rows * 4), Workspace(packed.experts * 4)
    arguments = renderer.arguments()
    holes: dict[str, Any] = {
        "ids": arguments.get(root(first.ids)), "order": arguments.get(order, "i32", written=True),
        "sizes": arguments.get(sizes, "i32", written=True), "count": dim_text(first.rows), "experts": packed.experts,
        "block": ROUTE_BLOCK,
    }  # fmt: skip
    return renderer.finish(
        "route", [f"rows of {first.ids.type} sorted by expert"], arguments, ((packed.experts, 1),), num_warps=4,
        dependent=True, schedule={"block": ROUTE_BLOCK}, **holes,
    )  # fmt: skip


def _common(renderer: Renderer, arguments: Arguments, groups: Sequence[Group], packed: Sequence[Packed],
            schedule: Schedule, depth: int = 0, routed: bool = False) -> dict[str, Any]:  # fmt: skip
    """Arguments and holes of every form that reads weights, `depth` stored values of a row at a time."""
    first = groups[0].matmuls[0]
    form = weights.layout(packed[0])
    x = root(first.x)
    boxes = schedule.loads == "boxes" and renderer.device.tensor_maps and form.format in BOXED
    holes: dict[str, Any] = {"row_boxes": boxes and not routed and x in renderer.narrow and form.k % 8 == 0}
    holes["weight_boxes"] = boxes and form.format == "bf16" and all(weights.layout(p).joined for p in packed)
    holes["boxes"] = holes["row_boxes"] or holes["weight_boxes"]
    if holes["row_boxes"]:
        holes["x"] = arguments.tensor_map(x, "bf16", Matrix(first.rows, form.k, (schedule.block, depth)))
    else:
        holes["x"] = arguments.get(x)
    if holes["weight_boxes"]:
        pointers = [
            arguments.tensor_map(
                entry, weights.element(entry),
                Matrix(entry.interleave * entry.experts * entry.n, form.row, (schedule.columns, depth)),
            )
            for entry in packed
        ]  # fmt: skip
    else:
        pointers = [arguments.get(entry, weights.element(entry)) for entry in packed]
    holes |= _parts(renderer, arguments, groups, packed, schedule, epilogue=schedule.splits == 1)
    for part, pointer, entry in zip(holes["parts"], pointers, packed, strict=True):
        each = weights.layout(entry)
        size = each.n if holes["weight_boxes"] else each.slab
        offsets = [f" + {s * entry.experts * size}" if s else "" for s in range(entry.interleave)]
        if first.ids is not None:
            offsets = [o + (" + slab.to(tl.int32)" if holes["weight_boxes"] else " + slab") for o in offsets]
        part |= {"weight": pointer, "offsets": offsets, "scales": each.scales}
    return holes | {
        "ragged": any(p.n % schedule.columns for p in packed), "count": dim_text(first.rows), "format": form.format,
        "group": form.group, "groups": form.groups, "row": form.row, "k": form.k,
        "scale_type": SCALES[form.scale_element], "row_scaled": form.row_scaled,
        "widen": WIDEN_F8 if form.row_scaled and renderer.device.vendor == "cuda" else "",
    }  # fmt: skip


def _parts(renderer: Renderer, arguments: Arguments, groups: Sequence[Group], packed: Sequence[Packed],
           schedule: Schedule, epilogue: bool = True) -> dict[str, Any]:  # fmt: skip
    """The siblings' tiles of columns, and their epilogues."""
    parts: list[dict[str, Any]] = []
    start = before = 0
    for group, entry in zip(groups, packed, strict=True):
        tiles = -(-entry.n // schedule.columns)
        body = Epilogue(renderer, arguments, group).render() if epilogue else []
        parts.append({"start": start, "stop": start + tiles, "n": entry.n, "before": before, "body": body})
        start, before = start + tiles, before + entry.n
    return {
        "parts": parts, "sisters": len(groups[0].matmuls), "columns": schedule.columns, "tiles": start, "total": before,
    }  # fmt: skip


def _listing(groups: Sequence[Group]) -> list[str]:
    return [line for g in groups for line in listing(g)]


class Epilogue(Printer):
    """The riders of a matmul group over a block of its result: rows `m` [BM, 1], columns `n` [1, BN]."""

    def __init__(self, renderer: Renderer, arguments: Arguments, group: Group) -> None:
        super().__init__(arguments, renderer.bounds)
        self.group = group
        self.external = renderer.external
        self.n = group.matmuls[0].n
        rows, columns = self.axis("mask_m"), self.axis("mask_n")
        self.m = self.variable("m", rows)
        self.column = self.variable("n", columns, high=self.n) if self.n > 1 else Index()
        self.members = set(group.nodes)
        self.accumulators = {m.node: self.name(f"acc{i}", rows, columns) for i, m in enumerate(group.matmuls)}

    def is_external(self, node: Node) -> bool:
        return node not in self.members and (node.op in IN_MEMORY or self.external(node))

    def own(self, node: Node, scope: Scope) -> tuple[Index, ...]:
        """Where this element lies in a value of as many elements as the matmul's result."""
        return tuple(scope.unflatten(self.m * self.n + self.column, node.shape))

    def load(self, node: Node, index: tuple[Index, ...], scope: Scope) -> str | None:
        if node in self.accumulators:
            if index != self.own(node, scope):
                offset = flatten(index, node.shape, scope.bind)
                if dict(offset.terms) != dict((self.m * self.n + self.column).terms) or offset.const:
                    raise CompileError(f"the epilogue of {node.type} reads another element than its own")
            return self.accumulators[node]
        if node.op == "reshape" and node.tensor.size == self.group.outputs[0].tensor.size:
            source = node.inputs[0]
            if source.tensor.rank and index == self.own(node, scope):
                return scope.value(source, self.own(source, scope))  # a view of the same element, without divisions
        return super().load(node, index, scope)

    def render(self) -> list[str]:
        """Statements that compute and store the group's outputs."""
        scope = self.scope()
        for node in self.group.outputs:
            if not node.tensor.rank:
                raise CompileError(f"a scalar {node.op} cannot ride on a matmul")
            index = self.own(node, scope)
            value = scope.value(node, index)
            scope.lines.append(scope.store(node, index, value, "mask_m & mask_n"))
        return scope.lines


def packed_row(packed: Packed, which: int, pointer: str, row: str, column: str, mask: str = "") -> str:
    """The Triton expression (f32) of source `which` of a packed table at blocks of rows and columns; 0 where masked."""
    form = weights.layout(packed)
    values = f"{pointer} + {which * packed.experts * form.slab}" if which else pointer
    scale_type = SCALES[form.scale_element]
    scales = f"({values} + {form.scales}).to(tl.pointer_type({scale_type}))" if scale_type else values
    return (
        f'weights.pick({values}, {scales}, {row}, {column}, {mask or "None"}, "{form.format}", {form.group}, '
        f"{form.row}, {form.groups})"
    )
