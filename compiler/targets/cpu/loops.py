"""Loops over one row of a group: what is stored and where, loop nests that are cut where a choice asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from echoc.compiler.ir import DType, Node
from echoc.compiler.ir.ops import POINTWISE
from echoc.compiler.ir.types import Dim, Poly, dim_product
from echoc.compiler.passes.fuse import IN_MEMORY, Group, root, works_whole
from echoc.compiler.targets.cpu.emit import (
    VALUE,
    Arguments,
    Emitter,
    Place,
    Scope,
    storage,
    storage_bytes,
)
from echoc.compiler.targets.index import Index, SplitNeeded, Var, dim_text, flatten, unflatten

COSTLY = frozenset({"exp", "log", "log1p", "expm1", "sin", "cos", "atan", "tanh", "erf", "sigmoid", "pow", "div",
                    "sqrt", "rsqrt", "take", "gather", "random_bits", "mod", "floordiv"})  # fmt: skip
ALWAYS_STORED = frozenset({"sum", "max", "min", "argmax", "cumsum", "topk", "sort", "scatter", "contract"})
NEEDS_ARRAY = frozenset({"topk", "sort"})
AlongCode = Callable[[Callable[[Index, Scope], str], str, Index, Dim], list[str]]
SMALL_TREE = 8  # inlining more nodes than this into several users costs more than a pass through the cache
LARGE_TREE = 100  # pointwise nodes in one expression: compilers and this one take longer chains of them badly


def known(dim: Dim) -> int | None:
    """A dimension's value where it is a number."""
    return dim if isinstance(dim, int) else None


@dataclass(frozen=True)
class PackedRows:
    """A packed weight whose rows can be unpacked: number `which` of `interleave` in the stream of `entry`."""

    entry: object
    weight_class: str
    interleave: int
    which: int


@dataclass(frozen=True, eq=False)
class Workspace:
    """A buffer that one launch uses alone, `size` bytes."""

    size: Dim


def lead_axes(node: Node) -> int:
    """How many leading axes a row of the node does not have: 0 where it is a scalar or one row, else 1."""
    return 0 if works_whole(node) or not node.tensor.rank else 1


def product(node: Node, values: list[str]) -> str:
    if node.tensor.dtype.is_int:
        return f"echoc::op::mul<{VALUE[node.tensor.dtype]}>({values[0]}, {values[1]})"
    return f"({values[0]} * {values[1]})"


def add(node: Node, a: str, c: str) -> str:
    if node.tensor.dtype.is_int:
        return f"echoc::op::add<{VALUE[node.tensor.dtype]}>({a}, {c})"
    return f"{a} + {c}"


class RowLoops(Emitter):
    """The loop body over one row of a group of family `rows`; ops with loops of their own are in the subclass."""

    def __init__(self, group: Group, arguments: Arguments, external: Callable[[Node], bool],
                 packed: Callable[[Node], PackedRows | None]) -> None:  # fmt: skip
        super().__init__(arguments, Var("t"))
        self.group = group
        self.members = set(group.nodes)
        self.external = external
        self.packed = packed
        self.outputs = set(group.outputs)
        self.lines: list[str] = []
        self.scratch = 0
        self.forced: set[Node] = set()
        self.uses: dict[Node, list[Node]] = {}
        for node in group.nodes:
            for operand in node.inputs:
                self.uses.setdefault(root(operand), []).append(node)

    def is_external(self, node: Node) -> bool:
        return node not in self.members and (node.op in IN_MEMORY or self.external(node))

    def row_shape(self, node: Node) -> tuple[Dim, ...]:
        return node.shape[lead_axes(node) :]

    def row_size(self, node: Node) -> Dim:
        return dim_product(self.row_shape(node))

    def row_index(self) -> Index:
        assert self.row is not None
        return Index(((self.row, 1),))

    def render(self) -> list[str]:
        """The statements of one row."""
        for node in self.group.nodes:
            if self.must_store(node):
                self.store(node)
        return self.lines

    def must_store(self, node: Node) -> bool:
        uses = self.uses.get(node, [])
        if node in self.outputs or node in self.forced or node.op in ALWAYS_STORED or self.unpacks(node):
            return True
        if any(u.op in NEEDS_ARRAY for u in uses):
            return True
        if not uses:
            return False
        tree = self.tree(node)
        costly = any(n.op in COSTLY for n in tree)
        spread = any(self.row_size(u) != self.row_size(node) or (u.op in ALWAYS_STORED and len(uses) > 1) for u in uses)
        if node.op in POINTWISE and spread and (costly or self.row_size(node) == 1):
            return True
        if node.op in POINTWISE and len(tree) > LARGE_TREE:
            return True
        return len(set(uses)) > 1 and (costly or len(tree) > SMALL_TREE)

    def unpacks(self, node: Node) -> bool:
        """Whether rows of the node are rows of a packed table (one single row of it is read from plain values)."""
        whole_rows = node.op == "take" and node["axis"] == 0 and node.inputs[1].tensor.rank > 0
        return whole_rows and self.packed(node.inputs[0]) is not None

    def tree(self, node: Node) -> list[Node]:
        """The nodes that inlining this one repeats."""
        out, stack = [], [node]
        while stack:
            inner = root(stack.pop())
            if inner in out or inner in self.places or inner not in self.members:
                continue
            out.append(inner)
            stack += inner.inputs
        return out

    def store(self, node: Node) -> None:
        """Emit the loops that compute a node's row and remember where it lies."""
        size = self.row_size(node)
        dtype = node.tensor.dtype
        if node in self.outputs:
            name = f"{self.arguments.get(node, written=True)}_row"
            kind = storage(dtype, self.arguments.is_half(node))
            self.lines.append(
                f"{kind}* __restrict {name} = {self.arguments.get(node, written=True)} + t * {dim_text(size)};"
            )
            place = Place(self.kind(node), name)
        elif size == 1:
            name = self.fresh("s")
            self.lines.append(f"{VALUE[dtype]} {name};")
            place = Place("scalar", name)
        else:
            place = self.allocate(node, size)
        emit = getattr(self, f"_store_{node.op}", None)
        if self.unpacks(node):
            emit = self.store_unpacked
        (emit or self.store_map)(node, place)
        self.places[node] = place

    def pointer(self, node: Node) -> str:
        """A pointer to the row of a stored node."""
        place = self.places[node]
        return f"&{place.name}" if place.kind == "scalar" else place.name

    def allocate(self, node: Node, size: Dim) -> Place:
        """A row of a value that no other kernel reads: in scratch, or in a buffer where its size is symbolic."""
        name = self.fresh("r")
        kind = storage(node.tensor.dtype, False)
        if isinstance(size, Poly):
            size_bytes = self.group.domain * size * storage_bytes(node.tensor.dtype)
            buffer = self.arguments.get(Workspace(size_bytes), kind, written=True)
            self.lines.append(f"{kind}* __restrict {name} = {buffer} + t * {dim_text(size)};")
        else:
            self.lines.append(f"{kind}* __restrict {name} = reinterpret_cast<{kind}*>(call->scratch + {self.scratch});")
            self.scratch += -(-size * storage_bytes(node.tensor.dtype) // 64) * 64
        return Place("bool" if node.tensor.dtype is DType.BOOL else "array", name)

    def kind(self, node: Node) -> str:
        """How the elements of an output lie in memory."""
        if self.arguments.is_half(node):
            return "half"
        return "bool" if node.tensor.dtype is DType.BOOL else "array"

    def assign(self, node: Node, place: Place, offset: Index | str, value: str) -> str:
        if place.kind == "scalar":
            return f"{place.name} = {value};"
        if place.kind == "half":
            value = f"echoc::to_{node.tensor.dtype}({value})"
        return f"{place.name}[{offset}] = {value};"

    def loop_dims(self, node: Node) -> tuple[Dim, ...]:
        """The finest factorisation of the row among the shapes that its expression goes through."""
        best = tuple(d for d in self.row_shape(node) if d != 1)
        total = self.row_size(node)
        stack: list[Node] = list(node.inputs)
        seen: set[Node] = set()
        while stack:
            inner = stack.pop()
            if inner in seen or inner.tensor.rank == 0 or inner in self.places:
                continue
            seen.add(inner)
            dims = tuple(d for d in inner.shape[1:] if d != 1)
            if dim_product(dims) == total and len(dims) > len(best) and inner.shape[0] == self.group.domain:
                best = dims
            if inner.op in POINTWISE or inner.op in ("reshape", "broadcast", "transpose", "concat", "slice"):
                stack += inner.inputs
        return best

    def nest(self, dims: Sequence[Dim], body: Callable[[list[Index], Scope], list[str]], ranges: tuple[Var, ...] = ()
             ) -> list[str]:  # fmt: skip
        """Nested loops over `dims` around `body(indices, scope)`, cut where a choice inside asks for it."""
        variables = ranges or tuple(Var(self.fresh("j"), 0, known(d)) for d in dims)
        counter = self.counter
        scope = self.scope()
        try:
            lines = body([Index((), v.low) if v.high == v.low + 1 else Index(((v, 1),)) for v in variables], scope)
        except SplitNeeded as split:
            if split.var not in variables:
                raise
            self.counter = counter
            out: list[str] = []
            for low, high in ((split.var.low, split.at), (split.at, split.var.high)):
                cut = tuple(Var(v.name, low, high) if v is split.var else v for v in variables)
                out += self.nest(dims, body, cut)
            return out
        inner = scope.lines + lines
        loops = [(v, d) for v, d in zip(variables, dims, strict=True) if v.high != v.low + 1]
        for depth, (var, dim) in enumerate(reversed(loops)):
            end = dim_text(dim) if var.high is None else str(var.high)
            head = f"for (int64_t {var.name} = {var.low}; {var.name} < {end}; ++{var.name}) {{"
            pragma = ["#pragma GCC ivdep"] if depth == 0 and not any("for (" in x for x in inner) else []
            inner = [*pragma, head, *("  " + x for x in inner), "}"]
        return inner if loops else ["{", *("  " + x for x in inner), "}"]

    def store_map(self, node: Node, place: Place) -> None:
        dims = self.loop_dims(node)

        def body(indices: list[Index], scope: Scope) -> list[str]:
            offset = flatten(indices, dims, scope.bind)
            index = (self.row_index(), *unflatten(offset, self.row_shape(node), scope.bind))
            value = scope.value(node, index[: node.tensor.rank])
            return [self.assign(node, place, offset, value)]

        self.lines += self.nest(dims, body)

    def store_unpacked(self, node: Node, place: Place) -> None:
        """Rows of a packed table, dequantised one by one."""
        table, places = node.inputs
        packed = self.packed(table)
        assert packed is not None
        count, width = table.shape
        lead = places.shape[1:]

        def body(indices: list[Index], scope: Scope) -> list[str]:
            index = (self.row_index(), *indices)[: places.tensor.rank]
            row = scope.integer(places, index, count)
            pointer = self.arguments.get(packed.entry, "std::byte")
            offset = flatten(indices, lead, scope.bind) * int(str(width))
            return [
                f"{packed.weight_class}::unpack_row({pointer}, {width}, {row}, {place.name} + {offset}, "
                f"{packed.interleave}, {packed.which});"
            ]

        self.lines += self.nest(lead, body)
