"""Bodies of row kernels: reductions, contractions, scans and selections over the blocks of a row.

A reduction has kept and reduced axes, each flattened to one. It is laid out as one block of reduced lanes (nothing
kept), as a block [kept, reduced], or, where few elements are reduced into many, as a loop over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from echoc.compiler.ir import DType, Node
from echoc.compiler.ir.types import Dim, dim_product
from echoc.compiler.passes.fuse import works_whole
from echoc.compiler.targets.cpu.loops import lead_axes
from echoc.compiler.targets.gpu.blocks import CHUNK, LIMIT, Block, RowBlocks, indented, power_of_two
from echoc.compiler.targets.gpu.printer import TYPES, Scope, known, typed, where
from echoc.compiler.targets.index import Index, dim_text

TILE = 4096  # elements of a block of two dimensions
SERIAL = 32  # so few reduced elements are taken one after another where many are kept
FINAL = {"sum": "tl.sum", "max": "ops.reduce_max", "min": "ops.reduce_min"}
Term = Callable[[list[Index], list[Index], Scope], str]


@dataclass
class Fold:
    """Reduces terms over the reduced axes, for the lanes of one block of kept ones; `form` is flat, tile or serial."""

    kernel: RowKernel
    form: str
    scope: Scope
    kept: Index
    lanes: int
    kept_dims: Sequence[Dim]
    reduced_dims: Sequence[Dim]
    shape: str = ""

    def __call__(self, term: Term, kind: str, dtype: DType) -> str:
        """The name of the reduced value. bool terms become i32, whose sum is whether any is set."""
        kind = "max" if dtype is DType.BOOL and kind == "sum" else kind
        count = dim_product(tuple(self.reduced_dims))
        value = DType.I32 if dtype is DType.BOOL else dtype

        def element(reduced: Index, scope: Scope) -> str:
            kept = scope.unflatten(self.kept, self.kept_dims)
            text = typed(term(kept, scope.unflatten(reduced, self.reduced_dims), scope), dtype)
            return f"{text}.to(tl.int32)" if dtype is DType.BOOL else text

        if self.form == "serial":
            name = self.serial(element, count, kind, value)
        else:
            name = self.tiled(element, count, kind, value)
        return self.scope.line("v", f"{name} != 0") if dtype is DType.BOOL else name

    def serial(self, element: Callable[[Index, Scope], str], count: Dim, kind: str, dtype: DType) -> str:
        kernel = self.kernel
        total = self.scope.line("acc", f"tl.full({self.shape or '[]'}, {start(kind, dtype)}, tl.{TYPES[dtype]})")
        kernel.axes[total] = kernel.axes_of(str(self.kept))
        r, inner = kernel.fresh("r"), self.scope.child()
        value = element(kernel.variable(r, high=known(count)), inner)
        inner.lines.append(f"{total} = {combined(kind, total, value, dtype)}")
        self.scope.lines += [f"for {r} in range(0, {dim_text(count)}):", *indented(inner.lines)]
        return total

    def tiled(self, element: Callable[[Index, Scope], str], count: Dim, kind: str, dtype: DType) -> str:
        kernel, tile = self.kernel, self.form == "tile"
        least = start(kind, dtype)
        most = max(TILE // self.lanes, 16) if tile else LIMIT

        def masked(block: Block, scope: Scope) -> str:
            value = element(block.index, scope)
            value = where(block.mask, value, least, dtype) if block.mask else value
            return f"tl.broadcast_to({value}, {block.shape})"

        if count == 1 and not tile:
            return element(Index(), self.scope)
        if isinstance(count, int) and count <= most:
            block = kernel.row_block(count, self.lanes, self.scope) if tile else kernel.block(count)
            text = masked(block, self.scope)
        else:
            chunk = most if tile else CHUNK
            shape = f"[{self.lanes}, {chunk}]" if tile else f"[{chunk}]"
            total = self.scope.line("acc", f"tl.full({shape}, {least}, tl.{TYPES[dtype]})")

            def emit(block: Block, scope: Scope) -> None:
                value = masked(Block(block.index, block.mask, shape), scope)
                scope.lines.append(f"{total} = {combined(kind, total, value, dtype)}")

            kernel.loop(count, chunk, self.scope, emit, "[None, :]" if tile else "")
            text = total
        name = self.scope.line("v", f"{FINAL[kind]}({text}, {1 if tile else 0}).to(tl.{TYPES[dtype]})")
        kernel.axes[name] = kernel.axes_of(str(self.kept))
        return name

    def expand(self, name: str) -> str:
        """A reduced value as it meets the terms of another reduction."""
        if self.form != "tile":
            return name
        out = self.scope.line("v", f"{name}[:, None]")
        self.kernel.axes[out] = self.kernel.axes_of(str(self.kept))
        return out


class RowKernel(RowBlocks):
    """Generates the statements of one row."""

    def row_block(self, size: int, lanes: int, scope: Scope) -> Block:
        """All of a range along the second dimension of a block."""
        width = power_of_two(size)
        self.widest = max(self.widest, lanes * width)
        name = scope.line("j", f"tl.arange(0, {width})[None, :]")
        mask = None if width == size else scope.line("m", f"{name} < {size}")
        return Block(self.variable(name, self.axis(mask), high=size), mask, f"[{lanes}, {width}]")

    def column(self, block: Block, scope: Scope) -> Index:
        """The lanes of a block along the first dimension of a block of two."""
        self.widest = max(self.widest, TILE // 4)
        name = scope.line("k", f"{block.index}[:, None]")
        mask = scope.line("m", f"{block.mask}[:, None]") if block.mask else None
        return self.variable(name, self.axis(mask), high=block.index.terms[0][0].high)

    def reduction(self, node: Node, kept: Sequence[Dim], reduced: Sequence[Dim], finish: Callable[[Fold], str]) -> None:
        """The node's row as `finish` makes it of reductions; the row's elements are those of the kept axes."""
        size, count = dim_product(tuple(kept)), dim_product(tuple(reduced))

        def emit(form: str, block: Block, scope: Scope) -> None:
            lanes = int(block.shape.strip("[]") or 1)
            at = self.column(block, scope) if form == "tile" else block.index
            value = finish(Fold(self, form, scope, at, lanes, kept, reduced, block.shape))
            self.settle(node, self.own(node, block.index, scope), value, [block.mask], scope)

        if size == 1:
            emit("flat", self.block(1), self.body)
            self.settled(node, True)
        elif isinstance(count, int) and count <= SERIAL and not (isinstance(size, int) and size < 4 * count):
            self.settled(node, self.over(size, lambda block, scope: emit("serial", block, scope)))
        elif isinstance(size, int) and power_of_two(size) * 16 <= TILE:
            emit("tile", self.block(size), self.body)
            self.settled(node, True)
        else:
            self.loop(size, TILE // 64, self.body, lambda block, scope: emit("tile", block, scope))
            self.settled(node, False)

    def fold_reduce(self, node: Node) -> None:
        (operand,) = node.inputs
        axes = list(node["axes"])
        kept = [a for a in range(operand.tensor.rank) if a not in axes]
        row = kept[:1]  # the row is along the first kept axis

        def finish(fold: Fold) -> str:
            def term(at: list[Index], reduced: list[Index], scope: Scope) -> str:
                index = [self.row] * operand.tensor.rank
                for axis, i in zip([*kept[1:], *axes], [*at, *reduced], strict=True):
                    index[axis] = i
                return scope.value(operand, tuple(index))

            return fold(term, node.op, node.tensor.dtype)

        dims = operand.shape
        self.reduction(node, [dims[a] for a in kept if a not in row], [dims[a] for a in axes], finish)

    fold_sum = fold_max = fold_min = fold_reduce

    def fold_contract(self, node: Node) -> None:
        left, _, out = node["spec"].partition("->")
        names = left.split(",")
        sizes = {n: d for ns, i in zip(names, node.inputs, strict=True) for n, d in zip(ns, i.shape, strict=True)}
        kept, reduced = list(out[1:]), [n for n in sizes if n not in out]
        row = [self.row] if out else []
        dtype = node.tensor.dtype

        def finish(fold: Fold) -> str:
            def term(at: list[Index], places: list[Index], scope: Scope) -> str:
                letters = dict(zip([*out[:1], *kept, *reduced], [*row, *at, *places], strict=True))
                pairs = zip(names, node.inputs, strict=True)
                a, c = (typed(scope.value(i, tuple(letters[n] for n in ns)), dtype) for ns, i in pairs)
                return scope.declare(f"{a} & {c}" if dtype is DType.BOOL else f"{a} * {c}", dtype)

            return fold(term, "sum", dtype)

        self.reduction(node, [sizes[n] for n in kept], [sizes[n] for n in reduced], finish)

    def lines_along(self, node: Node) -> tuple[int | None, list[int]]:
        """For a node that works along an axis: the operand's axis that is the row, and those beside both."""
        axis, rank = node["axis"], node.inputs[0].tensor.rank
        row = None if works_whole(node) or rank == 1 else 1 if axis == 0 else 0
        return row, [a for a in range(rank) if a not in (axis, row)]

    def element_along(self, node: Node) -> Callable[[list[Index], Index, Scope], str]:
        """The operand's element at (places on the other axes, place on the node's axis); bools as i32."""
        (operand,) = node.inputs
        row, others = self.lines_along(node)

        def element(at: list[Index], place: Index, scope: Scope) -> str:
            index = [Index()] * operand.tensor.rank
            index[node["axis"]] = place
            if row is not None:
                index[row] = self.row
            for a, i in zip(others, at, strict=True):
                index[a] = i
            text = typed(scope.value(operand, tuple(index)), operand.tensor.dtype)
            return scope.line("v", f"{text}.to(tl.int32)") if operand.tensor.dtype is DType.BOOL else text

        return element

    def fold_argmax(self, node: Node) -> None:
        (operand,) = node.inputs
        _, others = self.lines_along(node)
        length = operand.shape[node["axis"]]
        dtype = DType.I32 if operand.tensor.dtype is DType.BOOL else operand.tensor.dtype
        element = self.element_along(node)

        def finish(fold: Fold) -> str:
            best = fold.expand(fold(lambda at, places, scope: element(at, places[0], scope), "max", dtype))

            def term(at: list[Index], places: list[Index], scope: Scope) -> str:
                value = element(at, places[0], scope)
                found = f"({value} == {best}) | (({value} != {value}) & ({best} != {best}))"
                return scope.line("v", f"tl.where({found}, {scope.position(places[0])}, {2**62})")

            return fold(term, "min", DType.I64)

        self.reduction(node, [operand.shape[a] for a in others], [length], finish)

    def fold_cumsum(self, node: Node) -> None:
        """A scan by blocks; what comes before a block is carried."""
        (operand,) = node.inputs
        _, others = self.lines_along(node)
        dims = [operand.shape[a] for a in others]
        size, length, dtype = dim_product(tuple(dims)), operand.shape[node["axis"]], node.tensor.dtype
        element = self.element_along(node)
        convert = f".to(tl.{TYPES[dtype]})"

        def place(at: list[Index], along: Index) -> tuple[Index, ...]:
            index = [self.row] * operand.tensor.rank
            for a, i in zip([node["axis"], *others], [along, *at], strict=True):
                index[a] = i
            return tuple(index)

        if size == 1 and isinstance(length, int) and length <= LIMIT:
            block = self.block(length)
            at = self.body.unflatten(Index(), dims)
            value = f"tl.broadcast_to({element(at, block.index, self.body)}, {block.shape or '[1]'})"
            name = self.body.line("v", f"tl.cumsum({value}, 0){convert}" if block.shape else value[16:-6])
            self.axes[name] = self.axes_of(str(block.index))
            self.settle(node, self.own(node, block.index, self.body), name, [block.mask], self.body)
            self.settled(node, True)
            return

        def emit(outer: Block, scope: Scope) -> None:
            lanes = int(outer.shape.strip("[]") or 1)
            kept = self.column(outer, scope) if outer.shape else outer.index
            width = max(TILE // lanes, 16) if outer.shape else CHUNK
            width = min(width, power_of_two(length)) if isinstance(length, int) else width
            zero = f"tl.full({outer.shape or '[]'}, 0, tl.{TYPES[dtype]})"
            carry = scope.line("acc", zero)
            axis, before = (1, f"{carry}[:, None]") if outer.shape else (0, carry)

            def step(block: Block, inner: Scope) -> None:
                at = inner.unflatten(kept, dims)
                value = element(at, block.index, inner)
                value = where(block.mask, value, "0", dtype) if block.mask else value
                shape = f"[{lanes}, {width}]" if outer.shape else f"[{width}]"
                value = inner.line("v", f"tl.broadcast_to({value}, {shape})")
                total = inner.line("v", f"tl.cumsum({value}, {axis}){convert} + {before}")
                self.axes[total] = self.axes_of(f"{kept} {block.index}")
                masks = [self.axes_masks(kept), block.mask]
                self.store_at(node, place(at, block.index), total, masks, inner)
                inner.lines.append(f"{carry} = {carry} + tl.sum({value}, {axis}){convert}")

            self.loop(length, width, scope, step, "[None, :]" if outer.shape else "")

        if size == 1:
            emit(self.block(1), self.body)
        elif isinstance(size, int) and power_of_two(size) * 16 <= TILE:
            emit(self.block(size), self.body)
        else:
            self.loop(size, TILE // 64, self.body, emit)
        self.settled(node, False)

    def axes_masks(self, index: Index) -> str | None:
        """The mask of an index of one variable."""
        return next((a.mask for v, _ in index.terms for a in self.axes[v.name] if a.mask), None)

    def fold_select(self, node: Node) -> None:
        """top-k and sort of the last axis: an element's place is the number of those that come before it."""
        (operand,) = node.inputs
        length, count = operand.shape[-1], node.shape[-1]
        descending = bool(node.get("descending", True))
        lead = lead_axes(node)
        dims = operand.shape[lead:-1]
        lines = dim_product(tuple(dims))
        element = self.element_along(node)
        wide = 64 if isinstance(length, int) and length <= 64 else 32

        def one(at: list[Index], scope: Scope) -> None:
            def emit(block: Block, inner: Scope) -> None:
                i = self.column(block, inner)
                p = inner.line("v", f"tl.broadcast_to({element(at, i, inner)}, [{wide}, 1])")
                rank = inner.line("acc", f"tl.full([{wide}], 0, tl.int32)")

                def compare(other: Block, deep: Scope) -> None:
                    q = element(at, other.index, deep)
                    ahead = f"ops.before({q}, {other.index}, {p}, {i}, {descending})"
                    ahead = f"({ahead}) & {other.mask}" if other.mask else ahead
                    deep.lines.append(f"{rank} = {rank} + tl.sum(({ahead}).to(tl.int32), 1)")

                self.loop(length, TILE // wide, inner, compare, "[None, :]")
                place = inner.line("r", f"{rank}[:, None]")
                self.axes[p] = self.axes[place] = self.axes_of(str(i))
                kept = f"({place} < {dim_text(count)})"
                value = p if node["part"] == "values" else inner.line("v", inner.position(i))
                value = f"({value} != 0)" if node.tensor.dtype is DType.BOOL else value
                where_to = self.variable(place, *self.axes[place], high=known(count))
                index = (*((self.row,) if lead else ()), *at, where_to)
                self.store_at(node, index, value, [self.axes_masks(i), kept], inner)

            self.loop(length, wide, scope, emit)

        if lines == 1:
            one([Index()] * len(dims), self.body)
        else:
            line, inner = self.fresh("line"), self.body.child()
            one(inner.unflatten(self.variable(line, high=known(lines)), dims), inner)
            self.body.lines += [f"for {line} in range(0, {dim_text(lines)}):", *indented(inner.lines)]
        self.settled(node, False)

    fold_topk = fold_sort = fold_select


def start(kind: str, dtype: DType) -> str:
    """The value that a reduction begins with."""
    if kind == "sum":
        return "0"
    if dtype.is_float:
        return f'float("{"-" if kind == "max" else ""}inf")'
    limits = np.iinfo(str(TYPES[dtype]))
    return str(limits.min if kind == "max" else limits.max)


def combined(kind: str, total: str, value: str, dtype: DType) -> str:
    """One more term in a running reduction."""
    if kind == "sum":
        return f"{total} + {value}"
    return f"ops.{'maximum' if kind == 'max' else 'minimum'}({total}, {value})"
