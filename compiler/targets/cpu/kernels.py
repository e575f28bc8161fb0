"""From groups to kernel sources: one rendering per family, through the templates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from echoc.compiler.ir import DType, Node, StateType
from echoc.compiler.ir.text import show_attrs
from echoc.compiler.ir.types import Dim
from echoc.compiler.passes.fuse import IN_MEMORY, Group, root
from echoc.compiler.passes.pack import Packed, Packing
from echoc.compiler.schedules import Schedule, matmul_key
from echoc.compiler.targets.cpu.emit import Argument, Arguments, Emitter, Place, Scope
from echoc.compiler.targets.cpu.loops import PackedRows, Workspace
from echoc.compiler.targets.cpu.rows import RowKernel
from echoc.compiler.targets.index import Index, Var, dim_text, flatten, unflatten
from echoc.errors import CompileError

TEMPLATES = Path(__file__).parents[3] / "templates" / "cpu"
STATE_TYPES = {
    DType.F32: "float", DType.BF16: "echoc::bf16_t", DType.F16: "echoc::f16_t", DType.I8: "echoc::i8_t",
    DType.F8: "echoc::f8_t",
}  # fmt: skip
SCHEDULE = ("rows", "panels", "ahead")  # the fields of echoc::Schedule, in order
CANDIDATES = 64  # of a row of logits, at most
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    keep_trailing_newline=True, autoescape=False,
)  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """Activations in the form a weight format wants: the rows of `x`, `k` values each."""

    x: Node
    rows: Dim
    k: int
    weight_class: str


@dataclass(frozen=True)
class Kernel:
    """One generated function and what a launch of it passes. `rows`: those that threads share, None where they share
    something else."""

    name: str
    family: str
    source: str
    arguments: tuple[Argument, ...]
    scratch_bytes: str
    schedule: Mapping[str, Any]
    rows: Dim | None = None


class Renderer:
    """Renders groups for one program: knows the symbols, the packing and which nodes lie in buffers."""

    def __init__(
        self, symbols: Sequence[str], packing: Packing, stored: set[Node], boundary: frozenset[Node] = frozenset(),
        schedules: Mapping[str, Schedule] | None = None,
    ) -> None:  # fmt: skip
        self.symbols = list(symbols)
        self.boundary = boundary
        self.packing = packing
        self.schedules = schedules or {}
        self.stored = stored
        self.prepared: dict[tuple[Node, str, int], Prepared] = {}
        self.wanted: dict[Node, list[Prepared]] = {}
        self.only_prepared: set[Node] = set()
        self.split: dict[Node, Workspace] = {}  # attentions whose contexts may be split between threads

    def announce(self, groups: Sequence[Group]) -> None:
        """Tell which nodes matmuls will want as prepared activations, so that the kernels that make them do it."""
        readers: dict[Node, set[str]] = {}
        for group in groups:
            if group.matmuls:
                first = group.matmuls[0]
                cls = weight_class(self.packing.of(group))
                entry = Prepared(root(first.x), first.rows, first.k, cls)
                if entry not in self.wanted.setdefault(entry.x, []):
                    self.wanted[entry.x].append(entry)
            for node in group.nodes:
                matmul = next((m for m in group.matmuls if m.node is node), None)
                for operand in node.inputs:
                    kind = "x" if matmul is not None and root(operand) is root(matmul.x) else "other"
                    if root(operand) not in group.nodes:
                        readers.setdefault(root(operand), set()).add(kind)
        self.only_prepared = {n for n, kinds in readers.items() if kinds == {"x"}} - self.boundary

    def external(self, node: Node) -> bool:
        return node in self.stored

    def kernels(self, group: Group, deterministic: bool) -> list[Kernel]:
        """The kernels of one group, in launch order."""
        if group.family in ("gemm", "experts"):
            return self.matmul(group, deterministic)
        family: Callable[[Group, bool], Kernel] = getattr(self, group.family)
        made = [family(group, deterministic)]
        if group.family == "attend" and group.nodes[0] in self.split and group.nodes[0] not in self.only_prepared:
            made.append(self.attend_merge(group.nodes[0]))
        return made

    def finish(
        self, family: str, group_text: list[str], arguments: Arguments, schedule: Mapping[str, Any], scratch: str = "0",
        **holes: Any,
    ) -> Kernel:  # fmt: skip
        source = ENVIRONMENT.get_template(f"{family}.cpp.j2").render(
            name="@NAME@", ir=group_text, arguments=arguments.items, symbols=self.symbols, **holes
        )
        digest = hashlib.sha256(source.encode()).hexdigest()[:8]
        name = f"{family}_{digest}"
        return Kernel(name, family, source.replace("@NAME@", name), tuple(arguments.items), scratch, schedule)

    def rows(self, group: Group, deterministic: bool) -> Kernel:
        arguments = Arguments(self.boundary)
        ready = [p for n in group.outputs for p in self.wanted.get(n, []) if p.rows == group.domain]
        kept = [n for n in group.outputs if n not in self.only_prepared or not any(p.x is n for p in ready)]
        kernel = RowKernel(replace(group, outputs=kept), arguments, self.external, self.packed_rows)
        kernel.forced = {p.x for p in ready}
        body = kernel.render()
        for p in ready:
            self.prepared[p.x, p.weight_class, p.k] = p
            out = arguments.get(p, "std::byte", written=True)
            stride = f"{p.weight_class}::row_bytes({p.k})"
            body.append(f"{p.weight_class}::prepare({kernel.pointer(p.x)}, {p.k}, {out} + t * {stride});")
        made = self.finish(
            "rows", listing(group), arguments, {"axis": dim_text(group.domain)}, str(kernel.scratch), body=body,
            rows=dim_text(group.domain),
        )  # fmt: skip
        return replace(made, rows=group.domain)

    def packed_rows(self, weight: Node) -> PackedRows | None:
        found = self.packing.row_source(weight)
        if found is None:
            return None
        return PackedRows(found[0], weight_class(found[0]), found[0].interleave, found[1])

    def matmul(self, group: Group, deterministic: bool, choosing: bool = False) -> list[Kernel]:
        """The product, behind the preparation of its rows where nobody made it. `choosing`: in place of its result, it
        writes the best of each row (kernels/cpu/choose.h)."""
        first = group.matmuls[0]
        packed = self.packing.of(group)
        cls = weight_class(packed)
        key = (root(first.x), cls, first.k)
        out: list[Kernel] = []
        rows_per_x: Dim = 1
        if key not in self.prepared:
            self.prepared[key] = Prepared(root(first.x), first.rows, first.k, cls)
            out.append(self.prepare(self.prepared[key]))
        arguments = Arguments(self.boundary)
        x = arguments.get(self.prepared[key], "std::byte")
        w = arguments.get(packed, "std::byte")
        emitter = EpilogueEmitter(arguments, group, self.external)
        body, lists = emitter.render_values() if choosing else (emitter.render(), "")
        holes: dict[str, Any] = {
            "weight_class": cls, "count": len(group.matmuls), "x": x, "w": w, "rows": dim_text(first.rows),
            "n": first.n, "k": first.k, "deterministic": "true" if deterministic else "false", "body": body,
            "rows_per_x": dim_text(rows_per_x), "lists": lists, "most": CANDIDATES,
        }  # fmt: skip
        measured = self.schedules.get(matmul_key(packed.format, packed.group, len(group.matmuls), first.n, first.k), {})
        holes["chosen"] = [measured.get(name, 0) for name in SCHEDULE] if measured else []
        if first.ids is not None:
            holes |= {"ids": arguments.get(root(first.ids)), "experts": packed.experts}
        schedule = {
            "format": packed.format, "group": packed.group, "interleave": len(group.matmuls), "n": first.n,
            "k": first.k, "deterministic": deterministic, **measured,
        }  # fmt: skip
        out.append(self.finish(group.family, listing(group), arguments, schedule, **holes))
        return out

    def prepare(self, prepared: Prepared) -> Kernel:
        arguments = Arguments(self.boundary)
        x = arguments.get(prepared.x)
        out = arguments.get(prepared, "std::byte", written=True)
        attended = self.attended(prepared.x, arguments) if prepared.x in self.split else None
        made = self.finish(
            "prepare", [f"prepared activations of {prepared.x.type}"], arguments, {"k": prepared.k},
            str(4 * prepared.k) if attended else "0", x=x, out=out, rows=dim_text(prepared.rows), k=prepared.k,
            weight_class=prepared.weight_class, attended=attended,
        )  # fmt: skip
        return replace(made, rows=prepared.rows)

    def append(self, group: Group, deterministic: bool) -> Kernel:
        (node,) = group.nodes
        state, values, sequences, positions, table = node.inputs
        type_ = state.type
        assert isinstance(type_, StateType)
        arguments = Arguments(self.boundary)
        name = state_name(state)
        holes: dict[str, Any] = {
            "state": arguments.get(name, "std::byte", written=True), "values": arguments.get(root(values)),
            "sequences": arguments.get(sequences), "positions": arguments.get(positions),
            "table": arguments.get(table), "kv": STATE_TYPES[type_.dtype], "rows": dim_text(values.shape[0]),
            "heads": type_.shape[0], "dim": type_.shape[1], "which": name.rpartition(".")[2],
            "blocks": dim_text(table.shape[1]),
        }  # fmt: skip
        return self.finish("append", listing(group), arguments, {"dtype": str(type_.dtype)}, **holes)

    def attend(self, group: Group, deterministic: bool) -> Kernel:
        (node,) = group.nodes
        q, k, v, table = *node.inputs[:3], node.inputs[5]
        k_type, v_type = k.type, v.type
        assert isinstance(k_type, StateType) and isinstance(v_type, StateType)
        arguments = Arguments(self.boundary)
        if not deterministic:
            self.split[node] = Workspace(attend_workspace_bytes(v_type.shape[1]))
        holes: dict[str, Any] = {
            "q": arguments.get(root(q)), "out": arguments.get(node, written=True),
            "k": arguments.get(state_name(k), "std::byte"), "v": arguments.get(state_name(v), "std::byte"),
            "kv": STATE_TYPES[k_type.dtype], "table": arguments.get(table), "blocks": dim_text(table.shape[1]),
            "deterministic": "true" if deterministic else "false",
            "body": self.attention_body(node, arguments) if node["body"] else [],
            **self.attended(node, arguments, written=True),
        }  # fmt: skip
        scratch = f"echoc::attend_scratch_bytes({k_type.shape[1]}, {v_type.shape[1]})"
        return self.finish("attend", listing(group), arguments, {"page": 16}, scratch, **holes)

    def attend_merge(self, node: Node) -> Kernel:
        arguments = Arguments(self.boundary)
        return self.finish(
            "attend_merge", [f"split contexts of {node.type}"], arguments, {}, out=arguments.get(node, written=True),
            **self.attended(node, arguments),
        )  # fmt: skip

    def attended(self, node: Node, arguments: Arguments, written: bool = False) -> dict[str, Any]:
        """What finds an attention's results again: its shape, tokens and sinks, and the workspace of split contexts."""
        q, k, v, sequences, positions = node.inputs[:5]
        k_type, v_type = k.type, v.type
        assert isinstance(k_type, StateType) and isinstance(v_type, StateType)
        workspace = self.split.get(node)
        return {
            "shape": {
                "heads": q.shape[1], "kv_heads": k_type.shape[0], "head_dim": k_type.shape[1],
                "v_head_dim": v_type.shape[1], "scale": f"float({node['scale']!r})",
                "softcap": f"float({node['softcap']!r})", "window": node["window"],
                "causal": "true" if node["causal"] else "false",
            },
            "rows": dim_text(q.shape[0]), "sequences": arguments.get(sequences), "positions": arguments.get(positions),
            "sinks": arguments.get(root(node.inputs[6])) if node["sinks"] else "nullptr",
            "workspace": arguments.get(workspace, "std::byte", written) if workspace else "nullptr",
            "workspace_bytes": workspace.size if workspace else 0,
        }  # fmt: skip

    def attention_body(self, node: Node, arguments: Arguments) -> list[str]:
        emitter = Emitter(arguments)
        emitter.named = {"score": "score", "head": "int64_t(head)", "qpos": "qpos", "kpos": "kpos"}
        scope = emitter.scope()
        value = scope.value(node.inputs[-1], ())
        return [*scope.lines, f"return {value};"]


class EpilogueEmitter(Emitter):
    """The epilogue of a matmul: its riders over one segment of a row."""

    def __init__(self, arguments: Arguments, group: Group, external: Callable[[Node], bool]) -> None:
        super().__init__(arguments, Var("t"))
        self.group = group
        self.n = group.matmuls[0].n
        self.column = Var("n", 0, self.n)
        self.members = set(group.nodes)
        self.external = external
        for i, matmul in enumerate(group.matmuls):
            self.places[matmul.node] = Place("acc", f"acc[{i}]")

    def is_external(self, node: Node) -> bool:
        return node not in self.members and (node.op in IN_MEMORY or self.external(node))

    def linear(self) -> Index:
        assert self.row is not None
        return Index(((self.row, self.n), (self.column, 1)))

    def own(self, node: Node, scope: Scope) -> tuple[Index, ...]:
        """Where this element lies in a value of as many elements as the matmul's result."""
        return tuple(unflatten(self.linear(), node.shape, scope.bind))

    def load(self, node: Node, index: tuple[Index, ...], scope: Scope) -> str | None:
        if node.op == "reshape" and node.tensor.size == self.group.outputs[0].tensor.size:
            source = node.inputs[0]
            if source.tensor.rank and index == self.own(node, scope):
                return scope.value(source, self.own(source, scope))  # a view of the same element, without divisions
        return super().load(node, index, scope)

    def accumulator(self, node: Node, index: tuple[Index, ...], place: Place, scope: Scope) -> str:
        if index == self.own(node, scope):
            return f"{place.name}[n - n0]"
        offset = flatten(index, node.shape, scope.bind)
        own = {v: c for v, c in self.linear().terms if v is not self.column or self.n > 1}
        if dict(offset.terms) != own or offset.const:
            raise CompileError(f"the epilogue of {node.type} reads another element than its own")
        return f"{place.name}[n - n0]"

    def render(self) -> list[str]:
        scope = self.scope()
        stores = []
        for node in self.group.outputs:
            index = self.own(node, scope)
            if not node.tensor.rank:
                raise CompileError(f"a scalar {node.op} cannot ride on a matmul")
            value = scope.value(node, index)
            pointer = self.arguments.get(node, written=True)
            if self.arguments.is_half(node):
                value = f"echoc::to_{node.tensor.dtype}({value})"
            stores.append(f"{pointer}[t * {self.n} + n] = {value};")
        return [*scope.lines, *stores]

    def render_values(self) -> tuple[list[str], str]:
        """The epilogue that leaves the output's values in `values`; in its place a pointer to the lists of the best."""
        (node,) = self.group.outputs
        scope = self.scope()
        value = scope.value(node, self.own(node, scope))
        return [*scope.lines, f"values[n - n0] = {value};"], self.arguments.get(node, "std::byte", written=True)


def attend_workspace_bytes(v_head_dim: int) -> int:
    """Bytes in which 64 threads may split contexts; attend.h has the formula."""
    return 64 + 2 * 64 * 96 * (2 + -(-v_head_dim // 16) * 16) * 4


def weight_class(packed: Packed) -> str:
    bits = {"f32": 32, "bf16": 16, "bf16c": 12, "f8": 8, "i8": 8, "i4": 4}[packed.format]
    return f"echoc::Weight<{bits}, {packed.group}>"


def state_name(node: Node) -> str:
    """The name of the state that a chain of versions began with."""
    while node.op != "state":
        node = node.inputs[0]
    name: str = node["name"]
    return name


def listing(group: Group) -> list[str]:
    """The IR of a group with positional names, alike for groups that do the same."""
    names: dict[Node, str] = {}
    inputs = 0
    lines = []
    for node in group.nodes:
        for operand in _operands(group, node):
            if operand not in names:
                if operand.op in ("const", "reshape", "iota", "arg"):
                    continue
                names[operand] = f"%in{inputs}"
                inputs += 1
                lines.append(f"{names[operand]} : {operand.type}")
        names[node] = f"%{len(names) - inputs}"
        shown = ", ".join(_show(i, names) for i in node.inputs)
        lines.append(f"{names[node]} = {node.op}({shown}){show_attrs(node)} : {node.type}")
    return lines


def _operands(group: Group, node: Node) -> list[Node]:
    out: list[Node] = []
    for operand in node.inputs:
        source = root(operand)
        if source not in group.nodes:
            out.append(source)
    return out


def _show(node: Node, names: dict[Node, str]) -> str:
    if node in names:
        return names[node]
    if node.op == "const":
        return str(node["value"])
    if node.op == "reshape":
        return f"{_show(node.inputs[0], names)} as [{', '.join(map(str, node.shape))}]"
    return str(node.op)


def argument_type(argument: Argument) -> str:
    return f"{'' if argument.written else 'const '}{argument.kind}* __restrict"


ENVIRONMENT.filters["pointer"] = argument_type
