"""Attention of a few rows with everything around it: q, k and v as maps of what the projections left, the writing of
k and v into their pages, and the context in parts (kernels/cuda/attend.cuh). The parts are merged by whoever reads the
result: the prologue of a product, or a small kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from echoc.compiler.ir import DType, Node, StateType
from echoc.compiler.ir.ops import POINTWISE
from echoc.compiler.ir.types import Dim, dim_mul
from echoc.compiler.passes.fuse import Group, root
from echoc.compiler.targets.cpu import emit
from echoc.compiler.targets.cpu.emit import Place
from echoc.compiler.targets.cpu.kernels import listing, state_name
from echoc.compiler.targets.cuda.ring import VIEWS, Source
from echoc.compiler.targets.cuda.source import Device, Emitter, finish
from echoc.compiler.targets.gpu.attention import element
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.printer import Arguments, Workspace
from echoc.compiler.targets.index import Index, Var, dim_text

LOG2_E = 1.4426950408889634
BUSY = 128  # blocks of one row
MAX_GROUP = 16
TILE = 64
STATE_TYPES = {
    DType.F32: "float", DType.BF16: "echoc::bf16_t", DType.F16: "echoc::f16_t", DType.I8: "echoc::i8_t",
    DType.F8: "echoc::f8_t",
}  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """An attention whose result lies in memory in parts: [rows, heads, splits, value dim] and their bounds."""

    node: Node
    splits: int
    partial: Workspace
    bounds: Workspace

    @property
    def heads(self) -> int:
        return int(str(self.node.shape[1]))

    @property
    def value_dim(self) -> int:
        return int(str(self.node.shape[2]))

    def source(self, arguments: Arguments) -> Source:
        """How a prologue loads four columns of a row of the merged result."""
        partial, bounds = arguments.get(self.partial, "f32"), arguments.get(self.bounds, "f32")
        positions = arguments.get(self.node.inputs[4])
        width = self.heads * self.value_dim

        def load(out: str, row: str, used: str) -> str:
            head = f"int64_t(({row}) / {width}) * {self.heads} + column(c) / {self.value_dim}"
            return (
                f"echoc::merge_parts<{self.splits}, {self.value_dim}>({out}, {partial}, {bounds}, {head}, "
                f"column(c) % {self.value_dim}, {used}, {self.sink(arguments, f'column(c) / {self.value_dim}')});"
            )

        def used(row: str) -> str:
            return f"echoc::used_parts({positions}[({row}) / {width}], {self.node['window']}, {self.splits})"

        return Source(load, used)

    def sink(self, arguments: Arguments, head: str) -> str:
        if not self.node["sinks"]:
            return "-std::numeric_limits<float>::infinity()"
        return f"echoc::to_float({arguments.get(root(self.node.inputs[6]))}[{head}])"


def fits(node: Node, appends: Sequence[Node], rows: int) -> bool:
    """Whether one attention, with the appends of its states, has sizes that the kernel can take."""
    k, v = node.inputs[1].type, node.inputs[2].type
    assert isinstance(k, StateType) and isinstance(v, StateType)
    heads = node.inputs[0].shape[1]
    group = int(str(heads)) // k.shape[0]
    each = 16 * 8 // k.dtype.bits
    places = {a.inputs[2:5] for a in appends}
    return (
        len(appends) == 2 and list(appends) == [node.inputs[1], node.inputs[2]] and places == {node.inputs[3:6]}
        and k.dtype == v.dtype and k.dtype in STATE_TYPES and group <= MAX_GROUP
        and k.shape[1] % each == 0 and v.shape[1] % each == 0 and v.shape[1] <= 512 and rows <= 4
    )  # fmt: skip


def is_vector(node: Node, rows: Dim, heads: int, dim: int) -> bool:
    """Whether a node can stand in the expression of one head's vector: maps, and sums over a head."""
    if node.op == "sum":
        whole = node.inputs[0].tensor.size == dim_mul(dim_mul(rows, heads), dim)
        return whole and node.tensor.size == dim_mul(rows, heads) and node.tensor.dtype is DType.F32
    return node.op in POINTWISE or node.op in VIEWS


class _Vector(Emitter):
    """One head's vector by a warp: lane `lane` takes every 32nd element."""

    def __init__(self, arguments: Arguments, members: Collection[Node], stored: Collection[Node], value: Node) -> None:
        super().__init__(arguments, members, stored)
        self.value = value
        self.heads, self.dim = int(str(value.shape[1])), int(str(value.shape[2]))
        self.head = Var("h", 0, self.heads, loops=False)
        self.element = Var("d", 0, self.dim, loops=False)

    def own(self, node: Node, scope: emit.Scope) -> tuple[Index, ...]:
        assert self.row is not None
        linear = Index(((self.row, self.heads * self.dim), (self.head, self.dim), (self.element, 1)))
        return tuple(scope.unflatten(linear, node.shape))

    def sums(self) -> list[Node]:
        """The sums that the value depends on, operands first."""
        out: list[Node] = []
        seen: set[Node] = set()

        def visit(node: Node) -> None:
            node = root(node)
            if node in seen or self.is_external(node):
                return
            seen.add(node)
            for operand in node.inputs:
                visit(operand)
            if node.op == "sum":
                out.append(node)

        visit(self.value)
        return out

    def loop(self, body: Callable[[emit.Scope], str]) -> list[str]:
        scope = self.scope()
        last = body(scope)
        return ["#pragma unroll", f"for (int d = lane; d < {self.dim}; d += 32) {{",
                *("  " + x for x in [*scope.lines, last]), "}"]  # fmt: skip

    def render(self, scale: str) -> list[str]:
        lines: list[str] = []
        for node in self.sums():
            name = self.fresh("s")
            (operand,) = node.inputs
            lines.append(f"float {name} = 0;")

            def add(scope: emit.Scope, name: str = name, operand: Node = operand) -> str:
                return f"{name} += {scope.value(operand, self.own(operand, scope))};"

            lines += self.loop(add)
            lines.append(f"{name} = echoc::warp_sum({name});")
            self.places[node] = Place("scalar", name)
        own = (Index(((self.row, 1),)), Index(((self.head, 1),)), Index(((self.element, 1),)))  # type: ignore[arg-type]
        lines += self.loop(lambda scope: f"out[d] = {scope.value(self.value, own)}{scale};")
        return lines


def splits_for(kv_heads: int) -> int:
    """Parts of a context: a power of two that makes enough blocks of one row."""
    splits = 1
    while splits < 16 and splits * 2 * kv_heads <= BUSY:
        splits *= 2
    return splits


def attend(
    group: Group, appends: Sequence[Node], members: Collection[Node], stored: Collection[Node], rows: int,
    arguments: Arguments, symbols: Sequence[str], device: Device, early: bool,
) -> tuple[Kernel, Parts]:  # fmt: skip
    """The kernel of an attention and its appends; `members` are nodes it computes on the way to q, k and v, `early`
    says that it may read ports and states before the launches before it are done."""
    (node,) = group.nodes
    k, v = node.inputs[1].type, node.inputs[2].type
    assert isinstance(k, StateType) and isinstance(v, StateType)
    count, heads = node.inputs[0].shape[0], int(str(node.inputs[0].shape[1]))
    splits = splits_for(k.shape[0])
    parts = Parts(
        node, splits, Workspace(count * (heads * splits * v.shape[1] * 4)), Workspace(count * (heads * splits * 8))
    )
    plain = not node["softcap"] and not node["body"]
    scale = f" * {node['scale'] * (LOG2_E if plain else 1.0)!r}f"
    vectors = [
        _Vector(arguments, members, stored, value).render(scale if i == 0 else "")
        for i, value in enumerate((node.inputs[0], appends[0].inputs[1], appends[1].inputs[1]))
    ]
    weigh = ["float score = dot;"]
    if node["softcap"]:
        weigh.append(f"score = {node['softcap']!r}f * echoc::op::tanh(score * {1.0 / node['softcap']!r}f);")
    if node["body"]:
        emitter = Emitter(arguments, members, stored)
        emitter.named = {"score": "score", "head": "int64_t(head)", "qpos": "qpos", "kpos": "int64_t(kpos)"}
        scope = emitter.scope()
        value = scope.value(node.inputs[-1], ())
        weigh += [
            f"const int64_t qpos = {arguments.get(node.inputs[4])}[blockIdx.z];",
            *scope.lines,
            f"score = {value};",
        ]
    weigh.append("return score;" if plain else f"return score * {LOG2_E!r}f;")
    group_size = heads // k.shape[0]
    most = device.shared_bytes // 2  # two blocks for each multiprocessor
    buffers = next((b for b in (4, 3) if shared_bytes(group_size, k, v, rows, b) <= most), 2)
    shape = {
        "kRows": rows, "kHeads": heads, "kKvHeads": k.shape[0], "kGroup": group_size, "kDim": k.shape[1],
        "kValueDim": v.shape[1], "kSplits": splits, "kWindow": node["window"], "kEarly": int(early),
        "kBuffers": buffers,
    }  # fmt: skip
    kernel = finish(
        "attend_decode", [*listing(group)], arguments_with(arguments, parts, appends, element(k)), symbols,
        ((k.shape[0], 1), (splits, 1), (count, 1)), 256, device,
        shared_bytes(group_size, k, v, rows, buffers), {"splits": splits, "rows": rows, "buffers": buffers},
        shape=shape, kv=STATE_TYPES[k.dtype], vectors=vectors, weigh=weigh,
        sequences=arguments.get(node.inputs[3]), positions=arguments.get(node.inputs[4]),
        table=arguments.get(node.inputs[5]), blocks=dim_text(node.inputs[5].shape[1]),
        k=arguments.get(state_name(appends[0])), v=arguments.get(state_name(appends[1])),
        partial=arguments.get(parts.partial), bounds=arguments.get(parts.bounds),
    )  # fmt: skip
    return kernel, parts


def arguments_with(arguments: Arguments, parts: Parts, appends: Sequence[Node], element: str) -> Arguments:
    """The arguments with those that only the template mentions."""
    for node in parts.node.inputs[3:6]:
        arguments.get(node)
    for append in appends:
        arguments.get(state_name(append), element, written=True)
    arguments.get(parts.partial, "f32", written=True)
    arguments.get(parts.bounds, "f32", written=True)
    return arguments


def shared_bytes(group: int, k: StateType, v: StateType, rows: int, buffers: int) -> int:
    """As kernels/cuda/attend.cuh lays it out."""
    dim, value_dim, bits = k.shape[1], v.shape[1], k.dtype.bits
    scales = 4 if k.scaled else 0
    key_pitch = -(-dim * bits // 8 // 128) * 128 + 64
    tile = -(-(TILE * (key_pitch + value_dim * bits // 8 + 2 * scales)) // 128) * 128
    floats = group * (dim + TILE + 3) + rows * (dim + value_dim + scales)
    sums = 256 // (value_dim // 2) * group * value_dim * 4
    return -(-floats * 4 // 128) * 128 + max(buffers * tile, sums)


def merge(parts: Parts, arguments: Arguments, symbols: Sequence[str], device: Device) -> Kernel:
    """The kernel that merges the parts, where no prologue does."""
    node = parts.node
    partial, bounds = arguments.get(parts.partial, "f32"), arguments.get(parts.bounds, "f32")
    out = arguments.get(node, written=True)
    element = arguments.element(node)
    width = parts.heads * parts.value_dim
    return finish(
        "attend_merge", [f"merged parts of {node.type}"], arguments, symbols,
        ((node.shape[0], 1), (width, 512)), 128, device, 0, {"splits": parts.splits},
        positions=arguments.get(node.inputs[4]), partial=partial, bounds=bounds, out=out, heads=parts.heads,
        value_dim=parts.value_dim, splits=parts.splits, window=node["window"],
        sink=parts.sink(arguments, f"i / {parts.value_dim}"), store=f"echoc::to_{element}" if element != "f32" else "",
    )  # fmt: skip
