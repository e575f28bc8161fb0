"""The expression printer: IR nodes at an index as C++ statements in single-assignment form."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from echoc.compiler.ir import DType, Node
from echoc.compiler.ir.types import Dim, Poly
from echoc.compiler.passes.fuse import IN_MEMORY, root, works_whole
from echoc.compiler.targets import scope as shared
from echoc.compiler.targets.index import Index, SplitNeeded, Var, choose, dim_text, flatten
from echoc.compiler.targets.scope import at_most
from echoc.errors import CompileError

VALUE = {
    DType.F64: "double", DType.F32: "float", DType.F16: "float", DType.BF16: "float", DType.I64: "int64_t",
    DType.I32: "int32_t", DType.I16: "int16_t", DType.I8: "int8_t", DType.I4: "int8_t", DType.U8: "uint8_t",
    DType.BOOL: "bool",
}  # fmt: skip
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "eq": "==", "ne": "!=", "lt": "<", "le": "<="}
COMPARE = frozenset({"eq", "ne", "lt", "le"})
BITWISE = {"and": "&", "or": "|", "xor": "^"}


def storage(dtype: DType, boundary: bool) -> str:
    """The element type in memory. 16-bit floats are stored as such at ports and in weights, as f32 in between."""
    if dtype is DType.BOOL:
        return "uint8_t"
    if boundary and dtype in (DType.F16, DType.BF16):
        return f"echoc::{dtype}_t"
    return VALUE[dtype]


def storage_bytes(dtype: DType) -> int:
    """Bytes of an element of an intermediate buffer."""
    return {"double": 8, "float": 4, "int64_t": 8, "int32_t": 4, "int16_t": 2}.get(VALUE[dtype], 1)


@dataclass
class Place:
    """Where a computed node's row lies: `scalar` (a C++ variable) or `array` (a pointer to the row's elements)."""

    kind: str
    name: str


@dataclass
class Argument:
    """A pointer argument of a kernel. `key` says what it points to: a node (a buffer, port or plain weight), a packed
    weight, prepared activations, or a state by name; `kind` is its C++ element type."""

    name: str
    key: object
    kind: str
    written: bool


class Arguments:
    """The pointers that a kernel takes, in the order in which its code first mentions them."""

    def __init__(self, boundary: Collection[Node] = ()) -> None:
        self.items: list[Argument] = []
        self.boundary = boundary

    def at_boundary(self, node: Node) -> bool:
        """Whether a node's memory has the element type that the outside sees."""
        return node.op in IN_MEMORY or node in self.boundary

    def is_half(self, node: Node) -> bool:
        """Whether a node's elements lie in memory as 16-bit floats."""
        return node.tensor.dtype in (DType.F16, DType.BF16) and self.at_boundary(node)

    def get(self, key: object, kind: str = "", written: bool = False) -> str:
        if isinstance(key, Node) and not kind:
            kind = storage(key.tensor.dtype, self.at_boundary(key))
        for item in self.items:
            if item.key is key or (isinstance(key, str) and item.key == key):
                item.written = item.written or written
                return item.name
        self.items.append(Argument(f"a{len(self.items)}", key, kind, written))
        return self.items[-1].name


class Scope(shared.Scope):
    """Statements of one loop body; values and index variables already computed in it."""

    def __init__(self, emitter: Emitter) -> None:
        super().__init__()
        self.emitter = emitter

    def bind(self, text: str, low: int, high: int | None) -> Var:
        if text not in self.bound:
            name = self.emitter.fresh("i")
            self.lines.append(f"const int64_t {name} = {text};")
            self.bound[text] = Var(name, low, high, loops=False)
        return self.bound[text]

    def read(self, node: Node, index: tuple[Index, ...]) -> str | None:
        return self.emitter.load(node, index, self)

    def declare(self, text: str, dtype: DType) -> str:
        if text.replace("_", "").isalnum():
            return text
        name = self.emitter.fresh("v")
        self.lines.append(f"const {VALUE[dtype]} {name} = {text};")
        return name

    def pointwise(self, node: Node, operands: list[str]) -> str:
        return pointwise_text(node, operands)

    def literal(self, value: float | int | bool, dtype: DType) -> str:
        return literal(value, dtype)

    def integer(self, node: Node, index: tuple[Index, ...], size: Dim) -> Index:
        if node.op == "iota" and at_most(node["size"], size):
            return index[0]
        value = self.value(node, index)
        high = size if isinstance(size, int) else None
        return Index(((self.bind(f"echoc::op::clamp_index({value}, {dim_text(size)})", 0, high), 1),))

    def position(self, index: Index) -> str:
        return f"int64_t({index})"

    def _concat(self, node: Node, index: tuple[Index, ...]) -> str:
        axis, start = node["axis"], 0
        open_parts: list[tuple[int, int, Node]] = []
        if isinstance(node.shape[axis], Poly):
            return self.concat_symbolic(node, index)
        for part in node.inputs:
            size = part.shape[axis]
            assert isinstance(size, int)
            after = self.choose(index[axis], start + size)
            before = self.choose(index[axis], start) if start else False
            if after is True and before is False:
                return self.value(part, (*index[:axis], index[axis] + -start, *index[axis + 1 :]))
            if (before is not True and after is not False) or (before is None or after is None):
                open_parts.append((start, size, part))
            start += size
        text = ""
        for start, size, part in open_parts:
            place = self.bind(f"echoc::op::clamp_index({index[axis] + -start}, {size})", 0, size)
            value = self.value(part, (*index[:axis], Index(((place, 1),)), *index[axis + 1 :]))
            text = value if not text else f"({index[axis]} < {start} ? {text} : {value})"
        return text

    def choose(self, index: Index, cut: int) -> bool | None:
        """Whether index < cut, where that is known; asks for a loop to be cut only where it can be."""
        try:
            return choose(index, cut)
        except SplitNeeded as split:
            if split.var in self.emitter.uncut:
                return None
            raise

    def concat_symbolic(self, node: Node, index: tuple[Index, ...]) -> str:
        """Parts whose borders are known only when the kernel runs."""
        axis = node["axis"]
        start: Dim = 0
        text = ""
        for part in node.inputs:
            size = part.shape[axis]
            at = f"{index[axis]} - {dim_text(start)}"
            place = self.bind(f"echoc::op::clamp_index({at}, {dim_text(size)})", 0, None)
            value = self.value(part, (*index[:axis], Index(((place, 1),)), *index[axis + 1 :]))
            text = value if not text else f"({index[axis]} < {dim_text(start)} ? {text} : {value})"
            start = start + size
        return text

    def _pad(self, node: Node, index: tuple[Index, ...]) -> str:
        places, tests = [], []
        for i, low, size in zip(index, node["low"], node.inputs[0].shape, strict=True):
            place = i + -low
            least, most = place.range()
            inside = isinstance(size, int) and least >= 0 and most is not None and most < size
            if not inside and (low or node.shape != node.inputs[0].shape):
                tests.append(f"{place} >= 0 && {place} < {dim_text(size)}")
                high = size if isinstance(size, int) else None
                var = self.bind(f"echoc::op::clamp_index({place}, {dim_text(size)})", 0, high)
                place = Index(((var, 1),))
            places.append(place)
        value = self.value(node.inputs[0], tuple(places))
        fill = literal(node["value"], node.tensor.dtype)
        return f"({' && '.join(tests)} ? {value} : {fill})" if tests else value


class Emitter:
    """What all scopes of one kernel share: arguments, places of computed rows, fresh names."""

    def __init__(self, arguments: Arguments, row: Var | None = None) -> None:
        self.arguments = arguments
        self.row = row
        self.places: dict[Node, Place] = {}
        self.counter = 0
        self.named: dict[str, str] = {}
        self.uncut: set[Var] = set()  # variables of loops that stay in one piece

    def fresh(self, prefix: str) -> str:
        self.counter += 1
        return f"{prefix}{self.counter}"

    def scope(self) -> Scope:
        return Scope(self)

    def is_external(self, node: Node) -> bool:
        """Whether a node's value lies in memory that another kernel, a port or a weight provides."""
        return node.op in IN_MEMORY

    def load(self, node: Node, index: tuple[Index, ...], scope: Scope) -> str | None:
        """The text that reads node[index] from where it lies; None where it must be computed."""
        if node.op == "arg":
            return self.named[node["name"]]
        place = self.places.get(node)
        if place is not None:
            if place.kind == "scalar":
                return place.name
            if place.kind == "acc":
                return self.accumulator(node, index, place, scope)
            lead = 0 if works_whole(node) else 1
            offset = flatten(index[lead:], node.shape[lead:], scope.bind)
            if place.kind == "bool":
                return f"({place.name}[{offset}] != 0)"
            if place.kind == "half":
                return f"echoc::to_float({place.name}[{offset}])"
            return f"{place.name}[{offset}]"
        source = root(node)
        if not self.is_external(source):
            return None
        if source is not node:
            return None
        offset = flatten(index, node.shape, scope.bind)
        text = f"{self.arguments.get(node)}[{offset}]"
        dtype = node.tensor.dtype
        if dtype is DType.BOOL:
            return f"({text} != 0)"
        if self.arguments.is_half(node):
            return f"echoc::to_float({text})"
        return text

    def accumulator(self, node: Node, index: tuple[Index, ...], place: Place, scope: Scope) -> str:
        raise CompileError("no accumulator in this kernel")


def literal(value: float | int | bool, dtype: DType) -> str:
    if dtype is DType.BOOL:
        return "true" if value else "false"
    if dtype.is_float:
        number = float(value)
        kind = VALUE[dtype]
        if math.isnan(number):
            return f"std::numeric_limits<{kind}>::quiet_NaN()"
        if math.isinf(number) or (kind == "float" and abs(number) > 3.4028235677973366e38):
            return f"{'-' if number < 0 else ''}std::numeric_limits<{kind}>::infinity()"
        return f"{kind}({number!r})"
    if int(value) == -(2**63):
        return "std::numeric_limits<int64_t>::min()"
    return f"{VALUE[dtype]}({int(value)}{'LL' if abs(int(value)) >= 2**31 else ''})"


def pointwise_text(node: Node, operands: list[str]) -> str:
    """One pointwise op on C++ values."""
    dtype = node.tensor.dtype
    kind = VALUE[dtype]
    if node.op in INFIX and (dtype.is_float or dtype is DType.BOOL):
        text = f"({operands[0]} {INFIX[node.op]} {operands[1]})"
        return text if dtype.is_float or node.op in COMPARE else f"bool{text}"
    if node.op in BITWISE:
        return f"{kind}({operands[0]} {BITWISE[node.op]} {operands[1]})"
    if node.op == "neg" and dtype.is_float:
        return f"(-{operands[0]})"
    if node.op == "not":
        return f"(!{operands[0]})"
    if node.op == "where":
        return f"({operands[0]} ? {operands[1]} : {operands[2]})"
    if node.op == "cast":
        if dtype is DType.BOOL:
            return f"({operands[0]} != 0)"
        if dtype in (DType.F16, DType.BF16):
            return f"echoc::to_float(echoc::to_{dtype}(float({operands[0]})))"
        return f"echoc::op::cast<{kind}>({operands[0]})" if dtype.is_int else f"{kind}({operands[0]})"
    if node.op in COMPARE:
        return f"({operands[0]} {INFIX[node.op]} {operands[1]})"
    function = f"echoc::op::{node.op}<{kind}>" if dtype.is_int else f"echoc::op::{node.op}"
    return f"{function}({', '.join(operands)})"
