"""ATen operators that make, move and index."""

from __future__ import annotations

from typing import Any

from echoc.compiler.importers import build as b
from echoc.compiler.importers.aten import Refused, dtype_of, lower, operand, shape_of
from echoc.compiler.ir import DType, Node, make
from echoc.compiler.ir.types import Dim, Poly


@lower("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten.squeeze.dims",
       "aten.squeeze.dim", "aten.squeeze.default", "aten.unsqueeze.default")  # fmt: skip
def _view(meta: Any, x: Node, *_: Any) -> Node:
    return b.reshape(x, shape_of(meta))


@lower("aten.alias.default", "aten.clone.default", "aten.detach.default", "aten.lift_fresh_copy.default",
       "aten.contiguous.default", "aten.detach_.default")  # fmt: skip
def _same(meta: Any, x: Node, **_: Any) -> Node:
    return x


@lower("aten._to_copy.default", "aten.to.dtype", "prims.convert_element_type.default")
def _to_copy(meta: Any, x: Node, *_: Any, **__: Any) -> Node:
    return b.cast(x, dtype_of(meta))


@lower("aten.expand.default")
def _expand(meta: Any, x: Node, *_: Any, **__: Any) -> Node:
    return b.broadcast(x, shape_of(meta))


@lower("aten.permute.default")
def _permute(meta: Any, x: Node, dims: list[int]) -> Node:
    return b.transpose(x, [d % len(x.shape) for d in dims])


@lower("aten.transpose.int")
def _transpose(meta: Any, x: Node, i: int, j: int) -> Node:
    perm = list(range(len(x.shape)))
    i, j = i % len(perm), j % len(perm)
    perm[i], perm[j] = perm[j], perm[i]
    return b.transpose(x, perm)


@lower("aten.t.default")
def _t(meta: Any, x: Node) -> Node:
    return b.transpose(x, list(range(len(x.shape)))[::-1])


@lower("aten.slice.Tensor")
def _slice(meta: Any, x: Node, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Node:
    axis = dim % len(x.shape)
    size = x.shape[axis]
    out = shape_of(meta)[axis]
    if out == size and step == 1:
        return x
    begin = 0 if start is None else start
    if isinstance(begin, int) and isinstance(size, int):
        begin = max(begin + size, 0) if begin < 0 else min(begin, size)
        if isinstance(out, int):
            end = min(begin + out * step, size)
            return b.slice_axis(x, axis, begin, end, step)
    if step != 1:
        raise Refused(f"a strided slice of the axis {size}")
    if isinstance(begin, int) and begin >= 0:
        return b.slice_axis(x, axis, begin, out + begin)
    offset = b.dim_scalar(begin if isinstance(begin, Poly) or begin >= 0 else size + begin, DType.I64)
    return make("take", x, make("add", make("iota", size=out), offset), axis=axis)


@lower("aten.select.int")
def _select(meta: Any, x: Node, dim: int, index: Any) -> Node:
    axis = dim % len(x.shape)
    size = x.shape[axis]
    if isinstance(index, int) and isinstance(size, int):
        return b.select(x, axis, index % size)
    if isinstance(index, int) and index >= 0:
        return make("take", x, b.const(index, DType.I64), axis=axis)
    place: Dim = size + index if isinstance(index, int) else index
    return make("take", x, b.dim_scalar(place, DType.I64), axis=axis)


@lower("aten.split_with_sizes.default", "aten.split_with_sizes_copy.default")
def _split_with_sizes(meta: Any, x: Node, sizes: list[int], dim: int = 0) -> tuple[Node, ...]:
    axis, at, parts = dim % len(x.shape), 0, []
    for size in sizes:
        parts.append(b.slice_axis(x, axis, at, at + size))
        at += size
    return tuple(parts)


@lower("aten.split.Tensor", "aten.split_copy.Tensor")
def _split(meta: Any, x: Node, size: int, dim: int = 0) -> tuple[Node, ...]:
    total = x.shape[dim % len(x.shape)]
    if not isinstance(total, int):
        raise Refused(f"a split of the axis {total}")
    return _split_with_sizes(meta, x, [min(size, total - i) for i in range(0, total, size)], dim)


@lower("aten.unbind.int")
def _unbind(meta: Any, x: Node, dim: int = 0) -> tuple[Node, ...]:
    axis = dim % len(x.shape)
    size = x.shape[axis]
    if not isinstance(size, int):
        raise Refused(f"an unbind of the axis {size}")
    return tuple(b.select(x, axis, i) for i in range(size))


@lower("aten.cat.default")
def _cat(meta: Any, parts: list[Node], dim: int = 0) -> Node:
    kept = [b.cast(p, dtype_of(meta)) for p in parts if not (len(p.shape) == 1 and p.shape[0] == 0)]
    kept = [p for p in kept if p.shape[dim % len(p.shape)] != 0]
    return kept[0] if len(kept) == 1 else make("concat", *kept, axis=dim % len(kept[0].shape))


@lower("aten.stack.default")
def _stack(meta: Any, parts: list[Node], dim: int = 0) -> Node:
    axis = dim % (len(parts[0].shape) + 1)
    lifted = [b.reshape(b.cast(p, dtype_of(meta)), (*p.shape[:axis], 1, *p.shape[axis:])) for p in parts]
    return make("concat", *lifted, axis=axis)


@lower("aten.repeat.default")
def _repeat(meta: Any, x: Node, times: list[Any]) -> Node:
    lead = len(times) - len(x.shape)
    shape: list[Dim] = [*([1] * lead), *x.shape]
    split = [d for size in shape for d in (1, size)]
    wide = [d for count, size in zip(times, shape, strict=True) for d in (count, size)]
    return b.reshape(b.broadcast(b.reshape(x, split), wide), shape_of(meta))


@lower("aten.repeat_interleave.self_int")
def _repeat_interleave(meta: Any, x: Node, times: int, dim: int, **_: Any) -> Node:
    axis = dim % len(x.shape)
    split = (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :])
    wide = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    return b.reshape(b.broadcast(b.reshape(x, split), wide), shape_of(meta))


@lower("aten.full.default", "aten.full_like.default", "aten.new_full.default")
def _full(meta: Any, *args: Any, **_: Any) -> Node:
    return b.broadcast(operand(args[-1], dtype_of(meta)), shape_of(meta))


@lower("aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default", "aten.empty.memory_format",
       "aten.new_empty.default", "aten.empty_like.default")  # fmt: skip
def _zeros(meta: Any, *_: Any, **__: Any) -> Node:
    return b.broadcast(b.const(0, dtype_of(meta)), shape_of(meta))


@lower("aten.ones.default", "aten.ones_like.default", "aten.new_ones.default")
def _ones(meta: Any, *_: Any, **__: Any) -> Node:
    return b.broadcast(b.const(1, dtype_of(meta)), shape_of(meta))


@lower("aten.scalar_tensor.default")
def _scalar_tensor(meta: Any, value: Any, **_: Any) -> Node:
    return operand(value, dtype_of(meta))


@lower("aten.fill.Scalar", "aten.fill.Tensor")
def _fill(meta: Any, x: Node, value: Any) -> Node:
    return b.broadcast(operand(value, dtype_of(meta)), shape_of(meta))


@lower("aten.copy.default")
def _copy(meta: Any, x: Node, y: Node, *_: Any) -> Node:
    return b.broadcast(b.cast(y, dtype_of(meta)), shape_of(meta))


@lower("aten.arange.start_step", "aten.arange.default", "aten.arange.start")
def _arange(meta: Any, *args: Any, **_: Any) -> Node:
    start, step = (args[0], args[2] if len(args) > 2 else 1) if len(args) > 1 else (0, 1)
    kind = dtype_of(meta)
    out = b.cast(make("iota", size=shape_of(meta)[0]), kind)
    out = out if step == 1 else make("mul", out, operand(step, kind))
    return out if start == 0 else make("add", out, operand(start, kind))


@lower("aten.constant_pad_nd.default")
def _pad(meta: Any, x: Node, pads: list[int], value: Any = 0) -> Node:
    rank = len(x.shape)
    low, high = [0] * rank, [0] * rank
    for i in range(len(pads) // 2):
        low[rank - 1 - i], high[rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    for axis in range(rank):
        for side in (low, high):
            if side[axis] < 0 and not isinstance(x.shape[axis], int):
                raise Refused(f"cutting {-side[axis]} off the axis {x.shape[axis]}")
    for axis in range(rank):
        size = x.shape[axis]
        if isinstance(size, int) and (low[axis] < 0 or high[axis] < 0):
            x = b.slice_axis(x, axis, max(-low[axis], 0), size - max(-high[axis], 0))
    if not any(max(p, 0) for p in (*low, *high)):
        return x
    fill = float(value) if x.tensor.dtype.is_float else int(value)
    return make("pad", x, low=tuple(max(p, 0) for p in low), high=tuple(max(p, 0) for p in high), value=fill)


@lower("aten.flip.default")
def _flip(meta: Any, x: Node, dims: list[int]) -> Node:
    for dim in dims:
        axis = dim % len(x.shape)
        size = x.shape[axis]
        index = make("sub", b.binary("sub", b.dim_scalar(size, DType.I64), 1), make("iota", size=size))
        x = make("take", x, index, axis=axis)
    return x


@lower("aten.tril.default")
def _tril(meta: Any, x: Node, diagonal: int = 0) -> Node:
    return _triangle(x, diagonal, True)


@lower("aten.triu.default")
def _triu(meta: Any, x: Node, diagonal: int = 0) -> Node:
    return _triangle(x, diagonal, False)


def _triangle(x: Node, diagonal: int, lower_half: bool) -> Node:
    rows, columns = x.shape[-2], x.shape[-1]
    row = b.binary("add", b.reshape(make("iota", size=rows), (rows, 1)), diagonal)
    column = b.reshape(make("iota", size=columns), (1, columns))
    keep = make("le", column, row) if lower_half else make("le", row, column)
    return make("where", keep, x, b.const(0, x.tensor.dtype))


def _wrapped(index: Node, size: Dim) -> Node:
    """Negative places count from the end, as torch's indexing does."""
    index = b.cast(index, DType.I64)
    if index.op in ("iota", "topk", "argmax"):
        return index
    return make("where", make("lt", index, b.const(0, DType.I64)),
                make("add", index, b.dim_scalar(size, DType.I64)), index)  # fmt: skip


@lower("aten.embedding.default")
def _embedding(meta: Any, table: Node, index: Node, *_: Any) -> Node:
    return make("take", table, b.cast(index, DType.I64), axis=0)


@lower("aten.index_select.default")
def _index_select(meta: Any, x: Node, dim: int, index: Node) -> Node:
    return make("take", x, b.cast(index, DType.I64), axis=dim % len(x.shape))


@lower("aten.index.Tensor")
def _index(meta: Any, x: Node, indices: list[Node | None]) -> Node:
    used = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if any(i.tensor.dtype is DType.BOOL for _, i in used):
        raise Refused("indexing by a mask: the number of rows would depend on data")
    if len(used) == 1:
        axis, index = used[0]
        return make("take", x, _wrapped(index, x.shape[axis]), axis=axis)
    axes = [a for a, _ in used]
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise Refused("indexing by tensors on separate axes")
    sizes = [x.shape[a] for a in axes]
    flat: Node | None = None
    total: Dim = 1
    for (axis, index), size in zip(used, sizes, strict=True):
        place = _wrapped(index, size)
        flat = place if flat is None else make("add", make("mul", flat, b.dim_scalar(size, DType.I64)), place)
        total = total * x.shape[axis]
    assert flat is not None
    merged = b.reshape(x, (*x.shape[: axes[0]], total, *x.shape[axes[-1] + 1 :]))
    return b.broadcast(make("take", merged, flat, axis=axes[0]), shape_of(meta))


@lower("aten.gather.default")
def _gather(meta: Any, x: Node, dim: int, index: Node, **_: Any) -> Node:
    axis = dim % len(x.shape)
    for i, (have, want) in enumerate(zip(x.shape, index.shape, strict=True)):
        if i != axis and have != want:
            x = b.slice_axis(x, i, 0, want)
    return make("gather", x, b.cast(index, DType.I64), axis=axis)


@lower("aten.scatter.src", "aten.scatter.value")
def _scatter(meta: Any, x: Node, dim: int, index: Node, source: Any, **_: Any) -> Node:
    kind = dtype_of(meta)
    updates = operand(source, kind)
    updates = b.broadcast(updates, index.shape) if updates.shape != index.shape else updates
    return make("scatter", b.cast(x, kind), b.cast(index, DType.I64), updates, axis=dim % len(x.shape),
                mode="set")  # fmt: skip


@lower("aten.scatter_add.default")
def _scatter_add(meta: Any, x: Node, dim: int, index: Node, source: Node) -> Node:
    updates = b.cast(source, dtype_of(meta))
    return make("scatter", x, b.cast(index, DType.I64), updates, axis=dim % len(x.shape), mode="add")


@lower("aten.slice_scatter.default")
def _slice_scatter(
    meta: Any, x: Node, source: Node, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> Node:
    axis = dim % len(x.shape)
    size = x.shape[axis]
    if source.shape[axis] == size:
        return b.cast(source, dtype_of(meta))
    if not isinstance(size, int) or step != 1:
        raise Refused(f"writing into a part of the axis {size}")
    begin = 0 if start is None else int(start) % size if int(start) < 0 else int(start)
    width = source.shape[axis]
    assert isinstance(width, int)
    parts = [b.slice_axis(x, axis, 0, begin), b.cast(source, dtype_of(meta)),
             b.slice_axis(x, axis, begin + width, size)]  # fmt: skip
    kept = [p for p in parts if p.shape[axis] != 0]
    return kept[0] if len(kept) == 1 else make("concat", *kept, axis=axis)


@lower("aten.select_scatter.default")
def _select_scatter(meta: Any, x: Node, source: Node, dim: int, index: int) -> Node:
    axis = dim % len(x.shape)
    size = x.shape[axis]
    if not isinstance(size, int):
        raise Refused(f"writing one place of the axis {size}")
    lifted = b.reshape(source, (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    return _slice_scatter(meta, x, lifted, axis, index % size, index % size + 1)


@lower("aten.unfold.default")
def _unfold(meta: Any, x: Node, dim: int, size: int, step: int) -> Node:
    raise Refused(f"windows of {size} along axis {dim}")
