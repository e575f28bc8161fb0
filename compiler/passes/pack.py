"""Which weights are packed how: one stream per matmul kernel, in the order in which the kernel reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from echoc.compiler.ir import DType, Node
from echoc.compiler.passes.fuse import Fuser, Group, root
from echoc.errors import CompileError

FORMATS = {"f32": "f32", "bf16": "bf16", "fp8": "f8", "int8": "i8", "int4": "i4"}
GROUPS = (32, 64, 128)
TABLE_SIZE = 1 << 15  # smaller embedding tables stay plain f32


@dataclass(frozen=True, eq=False)
class Packed:
    """One packed stream: `sources` of equal [n, k] (or [k, n] if transposed; with experts in front), interleaved."""

    name: str
    format: str
    group: int
    sources: tuple[Node, ...]
    transposed: bool
    experts: int
    n: int
    k: int

    @property
    def interleave(self) -> int:
        return len(self.sources)


@dataclass
class Packing:
    """All packed streams of a program, by the matmul groups and tables that read them. `codable` says whether values in
    bf16 can be held without loss in 12 bits (bf16c), where that is wanted."""

    weights_dtype: str
    group: int
    codable: Callable[[Packed], bool] | None = None
    entries: list[Packed] = field(default_factory=list)
    by_sources: dict[tuple[object, ...], Packed] = field(default_factory=dict)
    precise: set[Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.weights_dtype not in FORMATS:
            raise CompileError(f"unknown weights dtype {self.weights_dtype!r}; wanted one of {', '.join(FORMATS)}")
        if self.group not in GROUPS:
            raise CompileError(f"unknown quantisation group {self.group}; wanted one of {', '.join(map(str, GROUPS))}")

    def format_of(self, k: int, precise: bool) -> tuple[str, int]:
        """Quantised formats need at least one whole group in a row; routing decisions are never quantised."""
        chosen = FORMATS[self.weights_dtype]
        if precise:
            return "f32", 0
        if chosen in ("i8", "i4"):
            return (chosen, self.group) if k >= self.group else ("bf16", 0)
        return chosen, 0

    def add(self, sources: tuple[Node, ...], transposed: bool, experts: int, n: int, k: int, precise: bool) -> Packed:
        format_, group = self.format_of(k, precise)
        key = (*sources, transposed, format_)
        if key not in self.by_sources:
            packed = Packed(f"packed.{len(self.entries)}", format_, group, sources, transposed, experts, n, k)
            if format_ == "bf16" and self.codable is not None and self.codable(packed):
                packed = replace(packed, format="bf16c")
            self.by_sources[key] = packed
            self.entries.append(packed)
        return self.by_sources[key]

    def of(self, group: Group) -> Packed:
        """The stream that a matmul group reads."""
        first = group.matmuls[0]
        experts = first.weight.shape[0] if first.ids is not None else 1
        assert isinstance(experts, int)
        precise = any(m.node in self.precise for m in group.matmuls)
        return self.add(tuple(m.weight for m in group.matmuls), first.transposed, experts, first.n, first.k, precise)

    def row_source(self, weight: Node) -> tuple[Packed, int] | None:
        """The stream and the place in it from which rows of a table can be unpacked; None for tables kept plain."""
        if weight.op != "weight" or weight.tensor.rank != 2 or weight.tensor.dtype is not DType.F32:
            return None
        for entry in self.entries:
            if weight in entry.sources and not entry.transposed and entry.experts == 1:
                return entry, entry.sources.index(weight)
        n, k = weight.shape
        assert isinstance(n, int) and isinstance(k, int)
        if n * k < TABLE_SIZE:
            return None
        return self.add((weight,), False, 1, n, k, False), 0


def routing(fuser: Fuser, groups: Iterable[Group]) -> set[Node]:
    """Matmuls whose results choose among experts: they reach a top-k before any other matmul or attention."""
    choosers: set[Node] = set()
    for node in fuser.order:
        if node.op not in ("topk", "sort", "argmax"):
            continue
        stack, seen = [node], set[Node]()
        while stack:
            inner = root(stack.pop())
            if inner in seen:
                continue
            seen.add(inner)
            if fuser.family.get(inner) == "gemm":
                choosers.add(inner)
            elif fuser.family.get(inner) == "rows":
                stack += fuser.inputs(inner)
    return choosers


def plan_packing(
    fuser: Fuser, groups: list[Group], weights_dtype: str, group: int, codable: Callable[[Packed], bool] | None = None
) -> Packing:
    """The streams of a fused rule. Matmul streams come first so that tables can share them."""
    packing = Packing(weights_dtype, group, codable)
    packing.precise = routing(fuser, groups)
    for g in groups:
        if g.matmuls:
            packing.of(g)
    for g in groups:
        for node in g.nodes:
            if node.op == "take" and node["axis"] == 0:
                packing.row_source(node.inputs[0])
    return packing
