"""Integer index expressions: affine forms over loop variables, with exact division and remainder where ranges allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from echoc.compiler.ir.types import Dim, dim_product


@dataclass(frozen=True, eq=False)
class Var:
    """An integer variable with values in low..high-1 (None: unknown, but not negative).

    `loops`: whether it is a loop's counter, so that its range can be cut.
    """

    name: str
    low: int = 0
    high: int | None = None
    loops: bool = True


class SplitNeeded(Exception):
    """The loop over `var` must be cut at `at` so that a choice inside it is the same all through."""

    def __init__(self, var: Var, at: int) -> None:
        super().__init__(var.name, at)
        self.var, self.at = var, at


@dataclass(frozen=True)
class Index:
    """A sum of variables times coefficients, plus a constant."""

    terms: tuple[tuple[Var, int], ...] = ()
    const: int = 0

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.terms, self.const + other)
        coefficients: dict[Var, int] = dict(self.terms)
        for var, c in other.terms:
            coefficients[var] = coefficients.get(var, 0) + c
        return Index(tuple((v, c) for v, c in coefficients.items() if c), self.const + other.const)

    def __mul__(self, factor: int) -> Index:
        return Index(tuple((v, c * factor) for v, c in self.terms), self.const * factor) if factor else Index()

    def range(self) -> tuple[int, int | None]:
        """The least value and the greatest (None where unbounded)."""
        low, high = self.const, self.const
        unbounded = False
        for var, c in self.terms:
            if var.high is None:
                unbounded = unbounded or c > 0
                low += c * var.low if c > 0 else 0
                continue
            ends = (c * var.low, c * (var.high - 1))
            low, high = low + min(ends), high + max(ends)
        return low, None if unbounded else high

    def split(self, size: int) -> tuple[Index, Index] | None:
        """(self // size, self % size) as affine forms, where that is exact."""
        divisible = tuple((v, c // size) for v, c in self.terms if c % size == 0)
        others = tuple((v, c) for v, c in self.terms if c % size)
        for carried in (self.const // size, 0, self.const // size + 1):
            rest = Index(others, self.const - carried * size)
            low, high = rest.range()
            if low >= 0 and high is not None and high < size:
                return Index(divisible, carried), rest
        return None

    def __str__(self) -> str:
        parts = [v.name if c == 1 else f"{v.name} * {c}" for v, c in self.terms]
        if self.const or not parts:
            parts.append(str(self.const))
        return " + ".join(parts).replace("+ -", "- ")


Bind = Callable[[str, int, int | None], Var]
Divide = Callable[[Index, Dim], tuple[Index, Index]]


def dim_text(dim: Dim) -> str:
    """A dimension as an expression over the variables named like its symbols."""
    if isinstance(dim, int):
        return str(dim)
    text = " + ".join("*".join([str(c), *names]) if c != 1 or not names else "*".join(names) for names, c in dim.terms)
    return f"({text})"


def scaled(index: Index, size: Dim, bind: Bind) -> Index:
    """index * size; a symbolic size goes through a new variable made by `bind`."""
    if isinstance(size, int):
        return index * size
    if not index.terms and index.const == 0:
        return index
    return Index(((bind(f"({index}) * {dim_text(size)}", 0, None), 1),))


def flatten(indices: Sequence[Index], shape: Sequence[Dim], bind: Bind) -> Index:
    """The row-major offset of an index into a shape."""
    out = Index()
    for axis, index in enumerate(indices):
        out = out + scaled(index, dim_product(tuple(shape[axis + 1 :])), bind)
    return out


def unflatten(offset: Index, shape: Sequence[Dim], bind: Bind, divide: Divide | None = None) -> list[Index]:
    """The index of a row-major offset into a shape, exact where ranges allow, else through `divide`."""
    out: list[Index] = []
    rest = offset
    for axis in range(len(shape) - 1, -1, -1):
        size = shape[axis]
        if size == 1:
            out.append(Index())
            continue
        if axis == 0 or dim_product(tuple(shape[:axis])) == 1:
            out.append(rest)
            rest = Index()
            continue
        exact = rest.split(size) if isinstance(size, int) else None
        rest, last = exact or (divide(rest, size) if divide else divided(rest, size, bind))
        out.append(last)
    return out[::-1]


def divided(index: Index, size: Dim, bind: Bind, quotient: str = "/") -> tuple[Index, Index]:
    """(index // size, index % size) as new variables; `quotient` is the language's operator of integer division."""
    text = dim_text(size)
    low, high = index.range()
    whole = high // size + 1 if isinstance(size, int) and high is not None and low >= 0 else None
    remainder = bind(f"({index}) % {text}", 0, size if isinstance(size, int) else None)
    return Index(((bind(f"({index}) {quotient} {text}", 0, whole), 1),)), Index(((remainder, 1),))


def choose(index: Index, cut: int) -> bool | None:
    """Whether index < cut: True or False where it always or never is. Raises SplitNeeded where cutting a loop helps.

    None: it cannot be decided by cutting one loop.
    """
    low, high = index.range()
    if high is not None and high < cut:
        return True
    if low >= cut:
        return False
    for var, c in index.terms:
        if c <= 0 or var.high is None or not var.loops:
            continue
        rest = Index(tuple((v, k) for v, k in index.terms if v is not var), index.const)
        least, most = rest.range()
        if most is None or most - least >= c or (cut - least) % c:
            continue
        at = (cut - least) // c
        if var.low < at < var.high:
            raise SplitNeeded(var, at)
    return None
