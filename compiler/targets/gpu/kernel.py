"""What a generated GPU kernel is: its source, its arguments and the shape of its launch. CUDA and ROCm share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from echoc.compiler.ir.types import Dim, Poly

ELEMENTS = ("f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8")  # of pointer arguments; bool lies as u8


@dataclass(frozen=True)
class Matrix:
    """What a tensor map says of an argument's memory: `rows` of `columns` elements, one behind the other, that a kernel
    reads in boxes of (rows, columns)."""

    rows: Dim
    columns: int
    box: tuple[int, int]


@dataclass
class Argument:
    """A pointer argument. `key` says what it points to: a node (a buffer, port or plain weight), a packed weight, a
    workspace, or a state by name; `element` is one of ELEMENTS. All pointers are 16-byte aligned. With a `matrix` the
    kernel gets a tensor map of the memory (CUDA: CUtensorMap) instead of its address."""

    name: str
    key: object
    element: str
    written: bool
    matrix: Matrix | None = None


@dataclass(frozen=True)
class Kernel:
    """One generated kernel and what a launch of it passes: the pointers, then `symbols` as 32-bit integers.

    `grid` has one (size, tile) per axis, at most three: ceil(size / tile) blocks. `dependent`: the kernel itself
    waits for the launches before it (programmatic dependent launch), so that it may start while they run.
    """

    name: str
    family: str
    language: str  # "triton" or "cuda"
    source: str
    arguments: tuple[Argument, ...]
    symbols: tuple[str, ...]
    grid: tuple[tuple[Dim, int], ...]
    num_warps: int
    num_stages: int = 1
    dependent: bool = False
    schedule: Mapping[str, Any] = field(default_factory=dict)


def grid_json(grid: Sequence[tuple[Dim, int]], symbols: Sequence[str]) -> list[list[Any]]:
    """The grid for the manifest: per axis [[[coefficient, [symbol index, ...]], ...], tile]."""
    return [[_terms(size, symbols), tile] for size, tile in grid]


def _terms(size: Dim, symbols: Sequence[str]) -> list[list[Any]]:
    if not isinstance(size, Poly):
        return [[int(size), []]]
    return [[coefficient, [list(symbols).index(n) for n in names]] for names, coefficient in size.terms]
