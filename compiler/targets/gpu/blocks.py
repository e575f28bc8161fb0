"""Rows in blocks: a program computes the nodes of a group for one row, one node after another.

A value stays in registers as long as it is read at the place of its own lane. What is read at another place is computed
anew there where that is cheap; else it goes to memory and is read back behind a barrier. Which nodes those are turns up
while printing: the printing starts again with the node in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echoc.compiler.ir import DType, Node
from echoc.compiler.ir.ops import POINTWISE
from echoc.compiler.ir.types import Dim, dim_product, dim_value
from echoc.compiler.passes.fuse import IN_MEMORY, Group, root
from echoc.compiler.targets.cpu.loops import COSTLY, SMALL_TREE, lead_axes
from echoc.compiler.targets.gpu import matmul, weights
from echoc.compiler.targets.gpu.printer import (
    ELEMENT,
    ELEMENT_BYTES,
    TYPES,
    Printer,
    Scope,
    Workspace,
    known,
    narrowed,
    typed,
    widened,
)
from echoc.compiler.targets.index import Index, dim_text

if TYPE_CHECKING:
    from echoc.compiler.targets.gpu.render import Renderer

FOLDED = frozenset({"sum", "max", "min", "argmax", "cumsum", "topk", "sort", "scatter", "contract"})
LIMIT = 8192  # elements of a row that a program holds at once
CHUNK = 2048  # elements of a longer row that it takes at a time
ROWS = 128  # rows of one element that a program takes


class InMemory(Exception):
    """The node's row must lie in memory: it is read at other places than its own."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.op)
        self.node = node


@dataclass(frozen=True)
class Block:
    """The lanes of a loop over a flat range: their positions, their mask's name and their shape, as code."""

    index: Index
    mask: str | None
    shape: str


@dataclass(frozen=True)
class Parts:
    """Products [rows, N] whose K a matmul took in `splits` parts. Their sums, f32 [splits, rows, total], lie in
    `memory`; `columns` says where in a row those of each product begin."""

    memory: Workspace
    splits: int
    columns: Mapping[Node, int]
    total: int


class RowBlocks(Printer):
    """The statements of one row: what is stored and where, maps and scatters. Folds are in the subclass.

    `parts` are products that the kernel sums itself."""

    def __init__(self, group: Group, renderer: Renderer, parts: Parts | None = None) -> None:
        super().__init__(renderer.arguments(), renderer.bounds)
        self.group = group
        self.renderer = renderer
        self.parts = parts
        self.members = set(group.nodes)
        self.outputs = set(group.outputs)
        self.in_memory: set[Node] = set()
        self.uses: dict[Node, list[Node]] = {}
        for node in group.nodes:
            for operand in node.inputs:
                self.uses.setdefault(root(operand), []).append(node)
        single = all(self.row_size(n) == 1 and not self.folds(n) for n in group.nodes)
        self.rows = ROWS if single and group.domain != 1 else 1

    @property
    def num_warps(self) -> int:
        """So many that a thread has about eight lanes of the widest block."""
        return next(w for w in (1, 2, 4, 8) if self.widest <= 256 * w or w == 8)

    def render(self) -> list[str]:
        """The statements; `arguments` are theirs."""
        while True:
            try:
                return self.attempt()
            except InMemory as need:
                if need.node in self.in_memory:
                    raise
                self.in_memory.add(need.node)

    def attempt(self) -> list[str]:
        Printer.__init__(self, self.renderer.arguments(), self.bounds)
        self.stored: set[Node] = set()
        self.unseen: set[Node] = set()  # stored since the last barrier
        self.computing: set[Node] = set()
        self.blocks: dict[int, Block] = {}
        self.workspaces: dict[Node, Workspace] = {}
        self.widest = self.rows
        self.body = self.scope()
        self.row_mask: str | None = None
        domain = self.group.domain
        if self.rows > 1:
            axis = self.axis("here")
            self.row_mask = "here"
            self.body.lines += [
                f"t = tl.program_id(0) * {self.rows} + tl.arange(0, {self.rows})", f"here = t < {dim_text(domain)}",
            ]  # fmt: skip
            self.row = self.variable("t", axis, high=known(domain))
        else:
            self.body.lines.append("t = tl.program_id(0)")
            self.row = self.variable("t", high=known(domain))
        summed = self.parts.columns if self.parts is not None else ()
        for node in self.group.nodes:
            if self.folds(node) and node not in summed:
                self.fold(node)
            elif node in self.outputs or node in self.in_memory:
                self.map(node)
        return self.body.lines

    @staticmethod
    def folds(node: Node) -> bool:
        """Whether the node is more than an expression over other nodes' elements."""
        return node.op in FOLDED and not (node.op in ("sum", "max", "min") and not node["axes"])

    def is_external(self, node: Node) -> bool:
        return node not in self.members and (node.op in IN_MEMORY or self.renderer.external(node))

    def row_shape(self, node: Node) -> tuple[Dim, ...]:
        return node.shape[lead_axes(node) :]

    def row_size(self, node: Node) -> Dim:
        return dim_product(self.row_shape(node))

    def load(self, node: Node, index: tuple[Index, ...], scope: Scope) -> str | None:
        if node in self.stored:
            self.see(node)
            return self.stored_value(node, index, scope)
        if self.parts is not None and node in self.parts.columns:
            return self.summed(self.parts, node, index, scope)
        if node not in self.members:
            return super().load(node, index, scope)
        if node.op in ("sum", "max", "min") and not node["axes"]:
            return scope.value(node.inputs[0], index)
        if self.folds(node):
            raise InMemory(node)
        if node in self.computing:
            return None
        if self.at_home(node, index):
            return None if scope is self.body else self.body.value(node, index)
        if self.is_cheap(node):
            return None
        raise InMemory(node)

    def summed(self, parts: Parts, node: Node, index: tuple[Index, ...], scope: Scope) -> str:
        """An element of a product in parts, summed in their order."""
        pointer = self.arguments.get(parts.memory, "f32")
        row, column = index
        offset = row * parts.total + column + parts.columns[node]
        size = dim_value(node.shape[0], self.bounds) * parts.total * parts.splits
        lines = f"tl.cast({dim_text(node.shape[0])}, tl.int64)"
        places = [f"{pointer} + {lines} * {i * parts.total}" if i else pointer for i in range(parts.splits)]
        return " + ".join(scope.load(place, offset, size) for place in places)

    def at_home(self, node: Node, index: tuple[Index, ...]) -> bool:
        """Whether a place of a node is that of its own lane, at hand all the time."""
        size = self.row_size(node)
        return isinstance(size, int) and size <= LIMIT and index == self.own(node, self.block(size).index, self.body)

    def fold(self, node: Node) -> None:
        """Compute a node that is more than an expression."""
        compute: Callable[[Node], None] = getattr(self, f"fold_{node.op}")
        compute(node)

    def table_element(self, table: Node, row: Index, column: Index, scope: Scope) -> str | None:
        found = self.renderer.packing.row_source(table)
        if found is None:
            return None
        packed, which = found
        pointer = self.arguments.get(packed, weights.element(packed))
        mask = " & ".join(scope.masks(self.axes_of(f"{row} {column}")))
        place = f"({row})" if row.terms else f"tl.full([], {row}, tl.int32)"
        return matmul.packed_row(packed, which, pointer, place, f"({column})", mask or f"{place} >= 0")

    def is_cheap(self, node: Node) -> bool:
        """Whether the node may be computed anew at another place than its own."""
        tree = self.tree(node)
        costly = any(n.op in COSTLY for n in tree)
        uses = self.uses.get(node, [])
        spread = any(self.row_size(u) != self.row_size(node) or self.folds(u) for u in uses)
        if node.op in POINTWISE and spread and costly:
            return False
        return len(set(uses)) <= 1 or not (costly or len(tree) > SMALL_TREE)

    def tree(self, node: Node) -> list[Node]:
        """The nodes that computing this one again repeats."""
        out, stack = [], [node]
        while stack:
            inner = root(stack.pop())
            if inner in out or inner in self.stored or inner not in self.members or self.folds(inner):
                continue
            out.append(inner)
            stack += inner.inputs
        return out

    def see(self, node: Node) -> None:
        """Let every thread read what others have stored of the node."""
        if node in self.unseen:
            self.body.lines.append("tl.debug_barrier()")
            self.unseen.clear()

    def pointer(self, node: Node) -> tuple[str, str]:
        """(the pointer to a node's memory, its element type): its own buffer, or a workspace."""
        if node in self.outputs:
            return self.arguments.get(node, written=True), self.arguments.element(node)
        element = ELEMENT[node.tensor.dtype]
        if node not in self.workspaces:
            self.workspaces[node] = Workspace(node.tensor.size * ELEMENT_BYTES[element])
        return self.arguments.get(self.workspaces[node], element, written=True), element

    def stored_value(self, node: Node, index: tuple[Index, ...], scope: Scope) -> str:
        pointer, element = self.pointer(node)
        size = dim_value(node.tensor.size, self.bounds)
        return widened(scope.load(pointer, scope.flatten(index, node.shape), size), element, node.tensor.dtype)

    def store_at(self, node: Node, index: tuple[Index, ...], value: str, masks: Sequence[str | None], scope: Scope
                 ) -> None:  # fmt: skip
        """The statement that writes node[index]."""
        pointer, element = self.pointer(node)
        size = dim_value(node.tensor.size, self.bounds)
        where = scope.address(pointer, scope.flatten(index, node.shape), size)
        mask = " & ".join(m for m in (*masks, self.row_mask) if m)
        text = narrowed(value, element, node.tensor.dtype)
        scope.lines.append(f"tl.store({where}, {text}{f', mask={mask}' if mask else ''})")

    def written(self, node: Node) -> None:
        self.stored.add(node)
        self.unseen.add(node)

    def is_stored(self, node: Node) -> bool:
        return node in self.outputs or node in self.in_memory

    def own(self, node: Node, flat: Index, scope: Scope) -> tuple[Index, ...]:
        """The index of element `flat` of the node's row."""
        lead = (self.row,) if lead_axes(node) else ()
        return (*lead, *scope.unflatten(flat, self.row_shape(node)))

    def block(self, size: int) -> Block:
        """All of a range at once, in the statements that every node shares."""
        if size == 1:
            return Block(Index(), None, "")
        if size not in self.blocks:
            lanes = power_of_two(size)
            self.widest = max(self.widest, lanes)
            name, mask = f"lane{size}", None if lanes == size else f"mask{size}"
            axis = self.axis(mask)
            self.body.lines.append(f"{name} = tl.arange(0, {lanes})")
            if mask:
                self.body.lines.append(f"{mask} = {name} < {size}")
            self.blocks[size] = Block(self.variable(name, axis, high=size), mask, f"[{lanes}]")
        return self.blocks[size]

    def over(self, size: Dim, emit: Callable[[Block, Scope], None]) -> bool:
        """`emit` for the lanes of a flat range; whether they were all at hand at once, without a loop."""
        if isinstance(size, int) and size <= LIMIT:
            emit(self.block(size), self.body)
            return True
        self.loop(size, CHUNK, self.body, emit)
        return False

    def loop(self, size: Dim, chunk: int, scope: Scope, emit: Callable[[Block, Scope], None], suffix: str = "") -> None:
        """A loop over chunks of a range; `suffix` gives the lanes their dimension in a block of two."""
        self.widest = max(self.widest, chunk)
        inner = scope.child()
        start, name, mask = self.fresh("start"), self.fresh("j"), self.fresh("m")
        axis = self.axis(mask)
        inner.lines += [f"{name} = {start} + tl.arange(0, {chunk}){suffix}", f"{mask} = {name} < {dim_text(size)}"]
        emit(Block(self.variable(name, axis, high=known(size)), mask, f"[{chunk}]"), inner)
        scope.lines += [f"for {start} in range(0, {dim_text(size)}, {chunk}):", *indented(inner.lines)]

    def map(self, node: Node) -> None:
        """Compute a node's row and store it."""

        def emit(block: Block, scope: Scope) -> None:
            index = self.own(node, block.index, scope)
            self.store_at(node, index, scope.value(node, index), [block.mask], scope)

        self.computing = {node}
        self.over(self.row_size(node), emit)
        self.computing = set()
        self.written(node)

    def fold_scatter(self, node: Node) -> None:
        """Every element looks for the updates that aim at it, in their order."""
        base, places, updates = node.inputs
        axis = node["axis"]
        dtype = node.tensor.dtype

        def emit(block: Block, scope: Scope) -> None:
            index = self.own(node, block.index, scope)
            value = self.fresh("v")
            start = typed(scope.value(base, index), dtype)
            shape = block.shape or (f"[{self.rows}]" if self.rows > 1 else "")
            scope.lines.append(f"{value} = tl.broadcast_to({start}, {shape})" if shape else f"{value} = {start}")
            self.axes[value] = self.axes_of(f"{block.index} {self.row} {start}")
            inner = scope.child()
            u = self.fresh("u")
            at = list(index)
            at[axis] = self.variable(u, high=known(places.shape[axis]))
            tests = [
                f"({i} < {dim_text(d)})" for a, (i, d) in enumerate(zip(index, places.shape, strict=True))
                if a != axis and d != node.shape[a]
            ]  # fmt: skip
            reached = inner.guarded(" & ".join(tests)) if tests else inner
            place = reached.integer(places, tuple(at), node.shape[axis])
            update = typed(reached.value(updates, tuple(at)), dtype)
            if node["mode"] == "add":
                update = f"{value} | {update}" if dtype is DType.BOOL else f"{value} + {update}"
            here = " & ".join([f"({index[axis]} == {place})", *(g.name for g in reached.guards)])
            inner.lines.append(f"{value} = tl.where({here}, ({update}).to(tl.{TYPES[dtype]}), {value})")
            scope.lines += [f"for {u} in range(0, {dim_text(places.shape[axis])}):", *indented(inner.lines)]
            self.settle(node, index, value, [block.mask], scope)

        whole = self.over(self.row_size(node), emit)
        self.settled(node, whole)

    def settle(self, node: Node, index: tuple[Index, ...], value: str, masks: Sequence[str | None], scope: Scope
               ) -> None:  # fmt: skip
        """A computed element: named at its own place, and stored where the node lies in memory."""
        scope.values[node, index] = value
        if self.is_stored(node):
            self.store_at(node, index, value, masks, scope)

    def settled(self, node: Node, whole: bool) -> None:
        """All elements are computed; where they were not at hand `whole`, memory is the only place to find them."""
        if self.is_stored(node):
            self.written(node)
        elif not whole:
            raise InMemory(node)


def power_of_two(n: int) -> int:
    """The power of two that holds n."""
    return 1 << (n - 1).bit_length()


def indented(lines: Sequence[str]) -> list[str]:
    return ["    " + line for line in lines]
