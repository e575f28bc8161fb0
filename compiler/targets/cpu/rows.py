"""Bodies of row kernels: a group's nodes one after another, each finished before the next begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from echoc.compiler.ir import Node
from echoc.compiler.ir.types import Dim, dim_product
from echoc.compiler.passes.fuse import root, works_whole
from echoc.compiler.targets.cpu.emit import (
    VALUE,
    Place,
    Scope,
    storage,
)
from echoc.compiler.targets.cpu.loops import AlongCode, RowLoops, add, known, lead_axes, product
from echoc.compiler.targets.index import Index, SplitNeeded, Var, dim_text, flatten


class RowKernel(RowLoops):
    """Generates the loop body over one row: reductions, contractions, scans, selections and scatters."""

    def reduction(self, node: Node, place: Place, kept: list[int], reduced: list[int],
                  term: Callable[[list[Index], Scope], str], extents: Sequence[Dim], kind: str) -> None:  # fmt: skip
        """Loops over kept axes around a lane-ordered reduction over the reduced ones."""
        dims = [extents[a] for a in kept]

        def body(indices: list[Index], scope: Scope) -> list[str]:
            offset = flatten(indices, dims, scope.bind)
            whole: list[Index] = [Index()] * len(extents)
            for axis, index in zip(kept, indices, strict=True):
                whole[axis] = index
            total = self.fresh("acc")
            value_kind = VALUE[node.tensor.dtype]
            start = f"echoc::op::start_{kind}<{value_kind}>()"
            loops, closing = [f"{value_kind} {total} = {start};"], []
            for depth, axis in enumerate(reduced[:-1]):
                var = self.whole_loop(self.fresh("k"), extents[axis])
                whole[axis] = Index(((var, 1),))
                pad = "  " * depth
                head = f"int64_t {var.name} = 0; {var.name} < {dim_text(extents[axis])}; ++{var.name}"
                loops.append(f"{pad}for ({head}) {{")
                closing.append("}")
            last = reduced[-1]
            var = Var(self.fresh("k"), 0, known(extents[last]))
            pieces = self.reduce_pieces(var, extents[last], whole, last, term, value_kind)
            for low, high, text in pieces:
                loops.append(
                    f"{total} = echoc::op::combine_{kind}({total}, echoc::op::reduce_{kind}<{value_kind}>"
                    f"({low}, {high}, [&](int64_t {var.name}) {{ {text} }}));"
                )
            return [*loops, *closing, self.assign(node, place, offset, total)]

        self.lines += self.nest(dims, body)

    def reduce_pieces(self, var: Var, extent: Dim, whole: list[Index], axis: int,
                      term: Callable[[list[Index], Scope], str], kind: str) -> list[tuple[str, str, str]]:  # fmt: skip
        """The reduced range, cut where a choice inside asks for it, with the code of each piece."""
        inner = self.scope()
        try:
            value = term([Index(((var, 1),)) if a == axis else i for a, i in enumerate(whole)], inner)
        except SplitNeeded as split:
            if split.var is not var:
                raise
            return [
                piece
                for low, high in ((var.low, split.at), (split.at, var.high))
                for piece in self.reduce_pieces(Var(var.name, low, high), extent, whole, axis, term, kind)
            ]
        high = dim_text(extent) if var.high is None else str(var.high)
        return [(str(var.low), high, " ".join([*inner.lines, f"return {kind}({value});"]))]

    def store_reduce(self, node: Node, place: Place) -> None:
        (operand,) = node.inputs
        shape = operand.shape
        if not node["axes"]:
            self.copy(node, operand, place)
            return
        axes = [a - 1 for a in node["axes"]] if operand.tensor.rank and 0 not in node["axes"] else None
        if axes is None:
            self.store_full_reduce(node, place)
            return
        extents = shape[1:]
        kept = [a for a in range(len(extents)) if a not in axes]

        def term(whole: list[Index], scope: Scope) -> str:
            return scope.value(operand, (self.row_index(), *whole))

        self.reduction(node, place, kept, axes, term, extents, str(node.op))

    def copy(self, node: Node, operand: Node, place: Place) -> None:
        """The operand's elements as they are."""
        lead = lead_axes(node)

        def body(indices: list[Index], scope: Scope) -> list[str]:
            offset = flatten(indices, operand.shape[lead:], scope.bind)
            index = (*([self.row_index()] if lead else []), *indices)
            return [self.assign(node, place, offset, scope.value(operand, index))]

        self.lines += self.nest(operand.shape[lead:], body)

    def store_full_reduce(self, node: Node, place: Place) -> None:
        """A reduction that takes in the leading axis of its operand: the row is along the first kept axis."""
        (operand,) = node.inputs
        axes = list(node["axes"])
        kept = [a for a in range(operand.tensor.rank) if a not in axes]

        def term(whole: list[Index], scope: Scope) -> str:
            places = list(whole)
            if kept:
                places[kept[0]] = self.row_index()
            return scope.value(operand, tuple(places))

        self.reduction(node, place, kept[1:], axes, term, operand.shape, str(node.op))

    _store_sum = _store_max = _store_min = store_reduce

    def _store_contract(self, node: Node, place: Place) -> None:
        left, _, out = node["spec"].partition("->")
        names = left.split(",")
        sizes = {n: d for ns, i in zip(names, node.inputs, strict=True) for n, d in zip(ns, i.shape, strict=True)}
        letters = list(out) + [n for n in sizes if n not in out]
        extents = [sizes[n] for n in letters]
        kept = list(range(1, len(out)))
        reduced = list(range(len(out), len(letters)))

        def term(whole: list[Index], scope: Scope) -> str:
            by_letter = dict(zip(letters, whole, strict=True))
            if out:
                by_letter[out[0]] = self.row_index()
            values = [scope.value(i, tuple(by_letter[n] for n in ns)) for ns, i in zip(names, node.inputs, strict=True)]
            return product(node, values)

        if reduced:
            self.reduction(node, place, kept, reduced, term, extents, "sum")
            return

        def body(indices: list[Index], scope: Scope) -> list[str]:
            offset = flatten(indices, [extents[a] for a in kept], scope.bind)
            first = [Index()] if out else []
            return [self.assign(node, place, offset, term([*first, *indices], scope))]

        self.lines += self.nest([extents[a] for a in kept], body)

    def along(self, node: Node, place: Place, code: AlongCode) -> None:
        """Loops over all axes but one; `code(value, inner variable, offset of the start, stride)` does that one."""
        (operand,) = node.inputs
        axis, rank = node["axis"], operand.tensor.rank
        row_axis = None if works_whole(node) or rank == 1 else 1 if axis == 0 else 0
        others = [a for a in range(rank) if a not in (axis, row_axis)]
        inner_name = self.fresh("k")

        def body(indices: list[Index], scope: Scope) -> list[str]:
            whole: list[Index] = [Index()] * rank
            if row_axis is not None:
                whole[row_axis] = self.row_index()
            for a, i in zip(others, indices, strict=True):
                whole[a] = i

            def value(place_index: Index, inner: Scope) -> str:
                return inner.value(operand, tuple(place_index if a == axis else i for a, i in enumerate(whole)))

            start = [i for a, i in enumerate(whole) if a != axis or node.op != "argmax"]
            lead = lead_axes(node)
            offset = flatten(start[lead:], node.shape[lead:], scope.bind)
            stride: Dim = dim_product(node.shape[axis + 1 :]) if node.op != "argmax" else 1
            return code(value, inner_name, offset, stride)

        self.lines += self.nest([operand.shape[a] for a in others], body)

    def whole_loop(self, name: str, extent: Dim) -> Var:
        """The variable of a loop that is never cut."""
        var = Var(name, 0, known(extent))
        self.uncut.add(var)
        return var

    def _store_cumsum(self, node: Node, place: Place) -> None:
        kind = VALUE[node.tensor.dtype]

        def code(value: Callable[[Index, Scope], str], inner: str, offset: Index, stride: Dim) -> list[str]:
            var = self.whole_loop(inner, node.shape[node["axis"]])
            scope = self.scope()
            text = value(Index(((var, 1),)), scope)
            total = self.fresh("acc")
            at = f"{offset} + {inner} * {dim_text(stride)}"
            return [
                f"{kind} {total} = 0;",
                f"for (int64_t {inner} = 0; {inner} < {dim_text(node.shape[node['axis']])}; ++{inner}) {{",
                *("  " + x for x in scope.lines),
                f"  {total} = {add(node, total, text)};",
                f"  {self.assign(node, place, at, total)}",
                "}",
            ]

        self.along(node, place, code)

    def _store_argmax(self, node: Node, place: Place) -> None:
        (operand,) = node.inputs
        length = operand.shape[node["axis"]]
        kind = VALUE[operand.tensor.dtype]

        def code(value: Callable[[Index, Scope], str], inner: str, offset: Index, stride: Dim) -> list[str]:
            var = self.whole_loop(inner, length)
            scope = self.scope()
            text = value(Index(((var, 1),)), scope)
            best, at = self.fresh("best"), self.fresh("at")
            return [
                f"{kind} {best}{{}};",
                f"int64_t {at} = -1;",
                f"for (int64_t {inner} = 0; {inner} < {dim_text(length)}; ++{inner}) {{",
                *("  " + x for x in scope.lines),
                f"  if ({at} < 0 || {text} > {best} || ({text} != {text} && {best} == {best})) "
                f"{{ {best} = {text}; {at} = {inner}; }}",
                "}",
                self.assign(node, place, offset, at),
            ]

        self.along(node, place, code)

    def _store_select(self, node: Node, place: Place) -> None:
        """top-k and sort of the last axis, from the operand's row in memory."""
        (operand,) = node.inputs
        length, count = operand.shape[-1], node.shape[-1]
        descending = "true" if node.get("descending", True) else "false"
        local = self.fresh("one")
        if place.kind == "scalar":
            self.lines.append(f"{storage(node.tensor.dtype, False)} {local}[1];")
        lead = lead_axes(node)
        row = self.row_memory(operand, length)

        def body(indices: list[Index], scope: Scope) -> list[str]:
            source, lines = self.filled_row(operand, indices, row, scope)
            target = flatten([*indices, Index()], node.shape[lead:], scope.bind)
            out = local if place.kind == "scalar" else f"{place.name} + {target}"
            lines.append(
                f"echoc::op::select_{node['part']}({source}, {dim_text(length)}, {dim_text(count)}, {descending}, "
                f"{out});"
            )
            return [*lines, f"{place.name} = {local}[0];"] if place.kind == "scalar" else lines

        self.lines += self.nest(operand.shape[lead:-1], body)

    _store_topk = _store_sort = _store_select

    def row_memory(self, operand: Node, length: Dim) -> Place | None:
        """Memory for the last axis of an operand; None where it lies in memory as the values that the kernel uses."""
        place = self.places.get(root(operand))
        if place is not None and place.kind in ("array", "bool"):
            return None
        if place is None and self.is_external(root(operand)) and not self.arguments.is_half(root(operand)):
            return None
        return self.allocate(operand, length)

    def filled_row(self, operand: Node, indices: list[Index], row: Place | None, scope: Scope
                   ) -> tuple[str, list[str]]:  # fmt: skip
        """A pointer to the last axis of an operand at `indices` of its row, and the statements that fill it."""
        source = root(operand)
        lead = lead_axes(operand) if operand.tensor.rank > 1 else 0
        if row is not None:

            def fill(last: list[Index], inner: Scope) -> list[str]:
                index = (*([self.row_index()] if lead else []), *indices, *last)
                return [f"{row.name}[{last[0]}] = {inner.value(operand, index)};"]

            return row.name, self.nest(operand.shape[-1:], fill)
        offset = flatten([*indices, Index()], operand.shape[lead:], scope.bind)
        place = self.places.get(source)
        if place is not None:
            return f"{place.name} + {offset}", []
        return f"{self.arguments.get(source)} + t * {dim_text(dim_product(operand.shape[lead:]))} + {offset}", []

    def _store_scatter(self, node: Node, place: Place) -> None:
        base, index_node, updates = node.inputs
        axis, lead = node["axis"], lead_axes(node)
        before = place.name if place.kind == "scalar" else f"{place.name}[%s]"

        def write(indices: list[Index], scope: Scope) -> list[str]:
            index = (*([self.row_index()] if lead else []), *indices)
            where = scope.integer(index_node, index, base.shape[axis])
            target = [where if a == axis else i for a, i in enumerate(index)]
            offset = flatten(target[lead:], base.shape[lead:], scope.bind)
            value = scope.value(updates, index)
            if node["mode"] == "add":
                old = before.replace("%s", str(offset))
                value = add(node, old, value)
            return [self.assign(node, place, offset, value)]

        self.copy(node, base, place)
        self.lines += [x for x in self.nest(index_node.shape[lead:], write) if "ivdep" not in x]
