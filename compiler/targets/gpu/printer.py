"""The expression printer: IR nodes at an index as Triton statements in single-assignment form.

A name in the printed code is a scalar or a block. An `Axis` is a dimension of the blocks of one loop; it knows the mask
that tells which of its lanes exist. `Printer.axes` says for every name on which axes it varies; names broadcast as in
numpy, so a row `t` of shape [BM, 1] and a column `n` of shape [1, BN] index together, and a value that depends on `t`
alone stays [BM, 1]. Loads are masked by the masks of the axes that their offset varies on; stores are the caller's.

How a kernel's renderer uses it:

    arguments = Arguments(boundary, narrow)          # pointers, in the order in which the code first mentions them
    printer = Printer(arguments, bounds)             # bounds: the highest value of every symbol
    rows = printer.axis("mask_m")                    # the mask's name; None where every lane exists
    columns = printer.axis("mask_n")
    t = printer.variable("t", rows, low=0, high=None)  # declares names that the template has already bound
    n = printer.variable("n", columns, low=0, high=N)
    printer.keep(node, (t, n), "acc0", rows, columns)  # node[t, n] is the value named acc0
    printer.named["score"] = printer.name("score", rows, columns)  # what an `arg` of an inlined body is called
    scope = printer.scope()
    text = scope.value(node, (t, n))                 # a name or a literal; scope.lines are the statements before it
    store = scope.store(node, (t, n), text, "mask_m & mask_n")

Values have the element types of `TYPES` (16-bit floats are computed in f32, bools are int1); what lies in memory has
those of `Arguments.element`. Literals are Python's and take the type of the other operand. Integers as indices are i32,
but i64 where a buffer may have 2^31 elements.

The names that a generated kernel may call lie in kernels/triton/ops.py (PRELUDE imports them).
"""

from __future__ import annotations

import math
import re
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from echoc.compiler.ir import DType, Node
from echoc.compiler.ir.types import Dim, Poly, dim_value
from echoc.compiler.passes.fuse import IN_MEMORY, root
from echoc.compiler.targets import scope as shared
from echoc.compiler.targets.gpu.kernel import Argument, Matrix
from echoc.compiler.targets.index import Index, Var, choose, dim_text, divided, unflatten
from echoc.compiler.targets.scope import at_most
from echoc.errors import CompileError

TYPES = {
    DType.F64: "float64", DType.F32: "float32", DType.F16: "float32", DType.BF16: "float32", DType.I64: "int64",
    DType.I32: "int32", DType.I16: "int16", DType.I8: "int8", DType.I4: "int8", DType.U8: "uint8", DType.BOOL: "int1",
}  # fmt: skip
ELEMENT = {
    DType.F64: "f64", DType.F32: "f32", DType.F16: "f32", DType.BF16: "f32", DType.I64: "i64", DType.I32: "i32",
    DType.I16: "i16", DType.I8: "i8", DType.I4: "i8", DType.U8: "u8", DType.BOOL: "u8",
}  # fmt: skip
ELEMENT_BYTES = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i16": 2, "i8": 1, "u8": 1}
PRELUDE = """import triton
import triton.language as tl

from echoc.kernels.triton import ops"""
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "eq": "==", "ne": "!=", "lt": "<", "le": "<="}
COMPARE = frozenset({"eq", "ne", "lt", "le"})
BITWISE = {"and": "&", "or": "|", "xor": "^"}
ON_BOOLS = {"add": "|", "mul": "&", "maximum": "|", "minimum": "&"} | BITWISE
CORE = frozenset({"exp", "log", "sqrt", "rsqrt", "sin", "cos", "erf", "floor", "ceil", "abs"})
OPS = {"round": "round_even"}  # by another name in ops.py
WIDE = 2**31
K = TypeVar("K")
V = TypeVar("V")
_LITERAL = re.compile(r"True|False|float\(\"(?:nan|-?inf)\"\)|-?\d[\d.]*(?:e[-+]?\d+)?")
_NAME = re.compile(r"\b[A-Za-z_]\w*")


@dataclass(frozen=True, eq=False)
class Axis:
    """A dimension of the blocks of a loop; `mask` names the block that says which lanes exist (None: all)."""

    mask: str | None = None


Axes = frozenset[Axis]
SCALAR: Axes = frozenset()


@dataclass(frozen=True, eq=False)
class Workspace:
    """A buffer that one launch uses alone, `size` bytes."""

    size: Dim


@dataclass(frozen=True)
class Guard:
    """A condition under which the lanes of a scope are used."""

    name: str
    axes: Axes


class Arguments:
    """The pointers that a kernel takes, in the order in which its code first mentions them.

    `boundary` are nodes whose memory has the element type that the outside sees; `narrow` are intermediates that lie in
    memory as bf16, because nobody reads more of them.
    """

    def __init__(self, boundary: Collection[Node] = (), narrow: Collection[Node] = ()) -> None:
        self.items: list[Argument] = []
        self.boundary = boundary
        self.narrow = narrow

    def element(self, node: Node) -> str:
        """The element type of a node in memory. 16-bit floats lie as such at ports and in weights, else as f32."""
        dtype = node.tensor.dtype
        if node in self.narrow:
            return "bf16"
        if dtype in (DType.F16, DType.BF16) and (node.op in IN_MEMORY or node in self.boundary):
            return str(dtype)
        return ELEMENT[dtype]

    def get(self, key: object, element: str = "", written: bool = False) -> str:
        """The name of the pointer to `key`: a node, a packed weight, a workspace, or a state by name."""
        for item in self.items:
            if item.matrix is None and (item.key is key or (isinstance(key, str) and item.key == key)):
                item.written = item.written or written
                return item.name
        if not element:
            assert isinstance(key, Node)
            element = self.element(key)
        self.items.append(Argument(f"a{len(self.items)}", key, element, written))
        return self.items[-1].name

    def tensor_map(self, key: object, element: str, matrix: Matrix) -> str:
        """The name of a tensor map of a buffer or weight that is read in boxes."""
        self.items.append(Argument(f"a{len(self.items)}", key, element, False, matrix))
        return self.items[-1].name


class Printer:
    """What all scopes of one kernel share: arguments, kept values, fresh names, the axes of every name."""

    def __init__(self, arguments: Arguments, bounds: Mapping[str, int]) -> None:
        self.arguments = arguments
        self.bounds = bounds
        self.axes: dict[str, Axes] = {}
        self.named: dict[str, str] = {}
        self.kept: dict[Node, dict[tuple[Index, ...], str]] = {}
        self.quotients: dict[tuple[Var, Var], tuple[Index, int]] = {}
        self.counter = 0

    def fresh(self, prefix: str) -> str:
        self.counter += 1
        return f"{prefix}{self.counter}"

    def axis(self, mask: str | None = None) -> Axis:
        """A dimension of blocks; `mask` is the name of its mask."""
        out = Axis(mask)
        if mask is not None:
            self.axes[mask] = frozenset({out})
        return out

    def name(self, name: str, *axes: Axis) -> str:
        """Declare that a name of the template varies on these axes."""
        self.axes[name] = frozenset(axes)
        return name

    def variable(self, name: str, *axes: Axis, low: int = 0, high: int | None = None) -> Index:
        """A name of the template as an index with values in low..high-1."""
        self.name(name, *axes)
        return Index(((Var(name, low, high, loops=False), 1),))

    def keep(self, node: Node, index: tuple[Index, ...], name: str, *axes: Axis) -> None:
        """node[index] is the value of this name."""
        if axes or name not in self.axes:
            self.name(name, *axes)
        self.kept.setdefault(node, {})[index] = name

    def scope(self) -> Scope:
        return Scope(self)

    def axes_of(self, text: str) -> Axes:
        """The axes on which an expression varies: those of the names in it."""
        return frozenset().union(*(self.axes.get(n, SCALAR) for n in _NAME.findall(text)))

    def is_external(self, node: Node) -> bool:
        """Whether a node's value lies in memory that another kernel, a port or a weight provides."""
        return node.op in IN_MEMORY

    def table_element(self, table: Node, row: Index, column: Index, scope: Scope) -> str | None:
        """An element of a table whose rows lie in a packed weight; None where it lies plain."""
        return None

    def load(self, node: Node, index: tuple[Index, ...], scope: Scope) -> str | None:
        """The text that reads node[index] from where it lies; None where it must be computed."""
        if node.op == "arg":
            return self.named[node["name"]]
        kept = self.kept.get(node)
        if kept is not None:
            if index not in kept:
                return self.elsewhere(node, index, scope)
            return kept[index]
        if node is root(node) and self.is_external(node):
            return scope.memory(node, index)
        return None

    def elsewhere(self, node: Node, index: tuple[Index, ...], scope: Scope) -> str | None:
        """node[index], where a value of the node is kept at another index only."""
        raise CompileError(f"{node.op} : {node.type} is read at another place than its own")


class Scope(shared.Scope):
    """Statements of one block of code. A child sees what its parents have computed; `guards` restrict its loads."""

    def __init__(self, printer: Printer, parent: Scope | None = None, lines: list[str] | None = None,
                 guards: tuple[Guard, ...] = ()) -> None:  # fmt: skip
        super().__init__()
        self.printer = printer
        self.guards = guards
        if lines is not None:
            self.lines = lines
        if parent is not None:
            self.values = _below(parent.values)
            self.bound = _below(parent.bound)

    def child(self) -> Scope:
        """A scope for the body of a loop: its lines are its own."""
        return Scope(self.printer, self, guards=self.guards)

    def guarded(self, condition: str) -> Scope:
        """A scope whose lanes count only where the condition holds; it writes into the same lines."""
        name = self.line("g", condition)
        return Scope(self.printer, self, self.lines, (*self.guards, Guard(name, self.printer.axes[name])))

    def line(self, prefix: str, text: str) -> str:
        """A new name for an expression."""
        name = self.printer.fresh(prefix)
        self.printer.axes[name] = self.printer.axes_of(text)
        self.lines.append(f"{name} = {text}")
        return name

    def bind(self, text: str, low: int, high: int | None) -> Var:
        if text not in self.bound:
            self.bound[text] = Var(self.line("i", text), low, high, loops=False)
        return self.bound[text]

    def flatten(self, indices: Sequence[Index], shape: Sequence[Dim]) -> Index:
        return self.joined(super().flatten(indices, shape))

    def unflatten(self, offset: Index, shape: Sequence[Dim]) -> list[Index]:
        return unflatten(offset, shape, self.bind, self.divide)

    def divide(self, index: Index, size: Dim) -> tuple[Index, Index]:
        """Quotient and remainder, of which the printer remembers what they came from."""
        quotient, remainder = divided(index, size, self.bind, "//")
        if isinstance(size, int):
            self.printer.quotients[quotient.terms[0][0], remainder.terms[0][0]] = (index, size)
        return quotient, remainder

    def joined(self, index: Index) -> Index:
        """The index with quotient * size + remainder written as what they came from."""
        terms = dict(index.terms)
        for (quotient, remainder), (whole, size) in self.printer.quotients.items():
            factor = terms.get(remainder)
            if factor is not None and terms.get(quotient) == factor * size:
                rest = Index(tuple((v, c) for v, c in index.terms if v not in (quotient, remainder)), index.const)
                return self.joined(rest + whole * factor)
        return index

    def read(self, node: Node, index: tuple[Index, ...]) -> str | None:
        return self.printer.load(node, index, self)

    def memory(self, node: Node, index: tuple[Index, ...]) -> str:
        """The load of node[index] from the node's buffer."""
        size = dim_value(node.tensor.size, self.printer.bounds)
        element = self.printer.arguments.element(node)
        text = self.load(self.printer.arguments.get(node), self.flatten(index, node.shape), size)
        return widened(text, element, node.tensor.dtype)

    def load(self, pointer: str, offset: Index, size: int) -> str:
        """tl.load of one element per lane of a buffer of at most `size` elements."""
        where = self.address(pointer, offset, size)
        masks = self.masks(self.printer.axes_of(str(offset)))
        mask = f", mask={' & '.join(masks)}" if masks else ""
        return f"tl.load({where}{mask})"

    def masks(self, axes: Axes) -> list[str]:
        """The masks of a load that varies on these axes. A guard that varies on more does not concern it."""
        return sorted({a.mask for a in axes if a.mask} | {g.name for g in self.guards if g.axes <= axes})

    def address(self, pointer: str, offset: Index, size: int) -> str:
        if size >= WIDE:
            parts = [f"tl.cast({v.name}, tl.int64) * {c}" for v, c in offset.terms]
            return f"{pointer} + ({' + '.join([*parts, str(offset.const)])})"
        return f"{pointer} + ({offset})" if offset.terms or offset.const else pointer

    def store(self, node: Node, index: tuple[Index, ...], value: str, mask: str = "") -> str:
        """The statement that writes node[index]; `mask` covers the axes of the index."""
        size = dim_value(node.tensor.size, self.printer.bounds)
        pointer = self.printer.arguments.get(node, written=True)
        offset = self.flatten(index, node.shape)
        where = self.address(pointer, offset, size)
        if not self.printer.axes_of(mask) <= self.printer.axes_of(str(offset)):
            where = f"{where} + ({mask}).to(tl.int32) * 0"  # lanes that all mean the one element
        element = self.printer.arguments.element(node)
        return f"tl.store({where}, {narrowed(value, element, node.tensor.dtype)}{f', mask={mask}' if mask else ''})"

    def declare(self, text: str, dtype: DType) -> str:
        return text if _is_name(text) or is_literal(text) else self.line("v", text)

    def literal(self, value: float | int | bool, dtype: DType) -> str:
        return literal(value, dtype)

    def pointwise(self, node: Node, operands: list[str]) -> str:
        return pointwise_text(node, operands)

    def integer(self, node: Node, index: tuple[Index, ...], size: Dim) -> Index:
        while node.op == "cast" and node.tensor.dtype in (DType.I64, DType.I32) and node.inputs[0].op == "iota":
            node = node.inputs[0]
        if node.op == "iota" and at_most(node["size"], size):
            return index[0]
        value = self.value(node, index)
        if is_literal(value) and isinstance(size, int):
            return Index((), min(max(int(value), 0), size - 1))
        wanted = value if node.tensor.dtype is DType.I64 else f"{typed(value, node.tensor.dtype)}.to(tl.int32)"
        high = size if isinstance(size, int) else None
        return Index(((self.bind(f"ops.clamp_index({wanted}, {dim_text(size)})", 0, high), 1),))

    def position(self, index: Index) -> str:
        return f"tl.cast({index}, tl.int64)" if index.terms else str(index.const)

    def _take(self, node: Node, index: tuple[Index, ...]) -> str:
        source, places = node.inputs
        if node["axis"] == 0 and source.op == "weight" and source.tensor.rank == 2:
            row = self.integer(places, index[:-1], source.shape[0])
            found = self.printer.table_element(source, row, index[-1], self)
            if found is not None:
                return found
        return super()._take(node, index)

    def _concat(self, node: Node, index: tuple[Index, ...]) -> str:
        axis = node["axis"]
        place = index[axis]
        start: Dim = 0
        parts: list[tuple[Dim, str]] = []
        for part in node.inputs:
            size = part.shape[axis]
            end = start + size
            after, before = self.known_below(place, end), self.known_below(place, start)
            if size == 0 or after is False or before is True:
                start = end
                continue
            if after is True and (before is False or start == 0):
                return self.value(part, (*index[:axis], place + _negative(start), *index[axis + 1 :]))
            tests = [f"({place} >= {dim_text(start)})"] if start != 0 and before is not False else []
            tests += [f"({place} < {dim_text(end)})"] if after is not True else []
            inner = self.guarded(" & ".join(tests))
            high = size if isinstance(size, int) else None
            moved = Index(((self.bind(f"{place} - {dim_text(start)}", 0, high), 1),)) if start != 0 else place
            moved = moved if start != 0 else Index(((self.bind(f"{place} + 0", 0, high), 1),))
            parts.append((end, inner.value(part, (*index[:axis], moved, *index[axis + 1 :]))))
            start = end
        text = parts[-1][1]
        for end, value in reversed(parts[:-1]):
            text = where(f"{place} < {dim_text(end)}", value, text, node.tensor.dtype)
        return text

    @staticmethod
    def known_below(index: Index, cut: Dim) -> bool | None:
        """Whether index < cut, where that is known."""
        return choose(index, cut) if isinstance(cut, int) else None

    def _pad(self, node: Node, index: tuple[Index, ...]) -> str:
        places, tests = [], []
        for i, low, size in zip(index, node["low"], node.inputs[0].shape, strict=True):
            place = i + -low
            least, most = place.range()
            inside = isinstance(size, int) and least >= 0 and most is not None and most < size
            if not inside and (low or node.shape != node.inputs[0].shape):
                tests.append(f"({place} >= 0) & ({place} < {dim_text(size)})")
                place = Index(((self.bind(f"{place} + 0", 0, size if isinstance(size, int) else None), 1),))
            places.append(place)
        if not tests:
            return self.value(node.inputs[0], tuple(places))
        inner = self.guarded(" & ".join(tests))
        value = inner.value(node.inputs[0], tuple(places))
        return where(inner.guards[-1].name, value, literal(node["value"], node.tensor.dtype), node.tensor.dtype)


def _below(outer: MutableMapping[K, V]) -> MutableMapping[K, V]:
    """A mapping that shows what the outer one holds and keeps what is added to it."""
    return outer.new_child() if isinstance(outer, ChainMap) else ChainMap({}, outer)


def _negative(dim: Dim) -> int:
    assert isinstance(dim, int)
    return -dim


def _is_name(text: str) -> bool:
    return text.isidentifier()


def is_literal(text: str) -> bool:
    """Whether a text is a constant alone, as `literal` writes it."""
    return _LITERAL.fullmatch(text) is not None


def literal(value: float | int | bool, dtype: DType) -> str:
    """A constant as Python writes it; it takes the type of what it meets."""
    if dtype is DType.BOOL:
        return str(bool(value))
    if not dtype.is_float:
        return str(int(value))
    number = float(value)
    if math.isnan(number):
        return 'float("nan")'
    if math.isinf(number) or (dtype is not DType.F64 and abs(number) > 3.4028235677973366e38):
        return f'float("{"-" if number < 0 else ""}inf")'
    return repr(number)


def typed(text: str, dtype: DType) -> str:
    """A value where no other operand says its type."""
    return f"tl.full([], {text}, tl.{TYPES[dtype]})" if is_literal(text) else text


def where(condition: str, a: str, c: str, dtype: DType) -> str:
    return f"tl.where({condition}, {typed(a, dtype)}, {typed(c, dtype)})"


def widened(text: str, element: str, dtype: DType) -> str:
    """A loaded element as a value."""
    if dtype is DType.BOOL:
        return f"({text} != 0)"
    return f"{text}.to(tl.float32)" if element in ("f16", "bf16") else text


def narrowed(text: str, element: str, dtype: DType) -> str:
    """A value as it lies in memory."""
    if is_literal(text):
        return str(int(text == "True")) if dtype is DType.BOOL else text
    if dtype is DType.BOOL:
        return f"{text}.to(tl.uint8)"
    return f"{text}.to(tl.{'float16' if element == 'f16' else 'bfloat16'})" if element in ("f16", "bf16") else text


def cast_text(text: str, source: DType, dtype: DType) -> str:
    """A conversion, C-like."""
    text = typed(text, source)
    if dtype is DType.BOOL:
        return text if source is DType.BOOL else f"({text} != 0)"
    if dtype in (DType.F16, DType.BF16):
        half = "float16" if dtype is DType.F16 else "bfloat16"
        if dtype is DType.BF16 and source is not DType.F32:
            text = f"{text}.to(tl.float32)"
        return f"{text}.to(tl.{half}).to(tl.float32)"
    if dtype.is_int and source.is_float:
        text = f"ops.to_i64({text})"
        return text if dtype is DType.I64 else f"{text}.to(tl.{TYPES[dtype]})"
    return text if TYPES[source] == TYPES[dtype] else f"{text}.to(tl.{TYPES[dtype]})"


def pointwise_text(node: Node, operands: Sequence[str]) -> str:
    """One pointwise op on Triton values."""
    dtype = node.inputs[-1].tensor.dtype
    if node.op == "where":
        condition = typed(operands[0], DType.BOOL)
        return where(condition, operands[1], operands[2], dtype)
    if node.op == "cast":
        return cast_text(operands[0], dtype, node.tensor.dtype)
    if all(is_literal(o) for o in operands):
        operands = [typed(operands[0], dtype), *operands[1:]]
    if dtype is DType.BOOL:
        return _on_bools(node.op, [typed(o, dtype) for o in operands])
    if node.op in INFIX:
        return f"{_signed(operands[0])} {INFIX[node.op]} {_signed(operands[1])}"
    operands = [typed(o, dtype) for o in operands]
    if node.op in BITWISE:
        return f"{operands[0]} {BITWISE[node.op]} {operands[1]}"
    if node.op == "neg":
        return f"-{operands[0]}"
    if node.op == "random_bits":
        return f"ops.random_bits({', '.join([*operands, typed('0', dtype)][:3])})"
    module = "tl" if node.op in CORE else "ops"
    return f"{module}.{OPS.get(node.op, node.op)}({', '.join(operands)})"


def _on_bools(op: str, operands: Sequence[str]) -> str:
    a = operands[0]
    if op == "not":
        return f"{a} == 0"
    if op in ("lt", "le"):
        return f"({a} == 0) {'&' if op == 'lt' else '|'} {operands[1]}"
    symbol = ON_BOOLS.get(op) or {"eq": "==", "ne": "!="}[op]
    return f"{a} {symbol} {operands[1]}"


def _signed(text: str) -> str:
    return f"({text})" if text.startswith("-") else text


def symbols_in(texts: Iterable[str], symbols: Sequence[str]) -> tuple[str, ...]:
    """Which of the program's symbols the code mentions, in their order."""
    found = {name for text in texts for name in _NAME.findall(text)}
    return tuple(s for s in symbols if s in found)


def known(dim: Dim) -> int | None:
    """A dimension's value where it is a number."""
    return None if isinstance(dim, Poly) else dim
