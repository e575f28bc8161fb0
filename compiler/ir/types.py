"""Types of values: tensors with symbolic dimensions, and states."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import total_ordering

import numpy as np

from echoc.errors import IRError


class DType(StrEnum):
    """Element types. `bf16` values are held as float32 rounded to bf16 by the reference device; `i4` as int8.

    `f8` (e4m3fn) is for pages alone, where a scale goes with it (ops/entries.py).
    """

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    F8 = "f8"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    I4 = "i4"
    U8 = "u8"
    BOOL = "bool"

    @property
    def is_float(self) -> bool:
        return self in (DType.F64, DType.F32, DType.F16, DType.BF16, DType.F8)

    @property
    def is_int(self) -> bool:
        return not self.is_float and self is not DType.BOOL

    @property
    def bits(self) -> int:
        return _BITS[self]

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy dtype in which the reference device holds values of this type."""
        return np.dtype(_NUMPY[self])


_BITS = {
    DType.F64: 64, DType.F32: 32, DType.F16: 16, DType.BF16: 16, DType.F8: 8, DType.I64: 64, DType.I32: 32,
    DType.I16: 16, DType.I8: 8, DType.I4: 4, DType.U8: 8, DType.BOOL: 8,
}  # fmt: skip
_NUMPY = {
    DType.F64: "float64", DType.F32: "float32", DType.F16: "float16", DType.BF16: "float32", DType.F8: "float32",
    DType.I64: "int64", DType.I32: "int32", DType.I16: "int16", DType.I8: "int8", DType.I4: "int8", DType.U8: "uint8",
    DType.BOOL: "bool",
}  # fmt: skip


@total_ordering
@dataclass(frozen=True, slots=True)
class Poly:
    """A symbolic dimension: a sum of integer coefficients times products of symbols, in canonical order."""

    terms: tuple[tuple[tuple[str, ...], int], ...]

    def __str__(self) -> str:
        parts = []
        for names, coefficient in self.terms:
            factors = ([str(coefficient)] if coefficient != 1 or not names else []) + list(names)
            parts.append("*".join(factors))
        return "+".join(parts).replace("+-", "-")

    __repr__ = __str__

    def _binary(self, other: Dim, sign: int) -> Dim:
        terms = dict(self.terms)
        for names, coefficient in _terms(other):
            terms[names] = terms.get(names, 0) + sign * coefficient
        return _poly(terms)

    def __add__(self, other: Dim) -> Dim:
        return self._binary(other, 1)

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return self._binary(other, -1)

    def __rsub__(self, other: int) -> Dim:
        return dim_mul(-1, self) + other

    def __mul__(self, other: Dim) -> Dim:
        return dim_mul(self, other)

    __rmul__ = __mul__

    def __lt__(self, other: object) -> bool:
        return str(self) < str(other)

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset(name for names, _ in self.terms for name in names)


Dim = int | Poly


def _terms(dim: Dim) -> tuple[tuple[tuple[str, ...], int], ...]:
    if isinstance(dim, Poly):
        return dim.terms
    return (((), dim),) if dim else ()


def _poly(terms: Mapping[tuple[str, ...], int]) -> Dim:
    kept = sorted(((n, c) for n, c in terms.items() if c), key=lambda item: (-len(item[0]), item[0]))
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    return Poly(tuple(kept))


def symbol(name: str) -> Poly:
    """The dimension that is one symbol."""
    return Poly((((name,), 1),))


def dim_mul(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    terms: dict[tuple[str, ...], int] = {}
    for names_a, ca in _terms(a):
        for names_b, cb in _terms(b):
            key = tuple(sorted(names_a + names_b))
            terms[key] = terms.get(key, 0) + ca * cb
    return _poly(terms)


def dim_div(a: Dim, b: Dim) -> Dim | None:
    """a / b where it is exact as a polynomial over a monomial b, else None."""
    if a == b:
        return 1
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    divisor = _terms(b)
    if len(divisor) != 1:
        return None
    names_b, cb = divisor[0]
    terms: dict[tuple[str, ...], int] = {}
    for names, coefficient in _terms(a):
        left = list(names)
        for name in names_b:
            if name not in left:
                return None
            left.remove(name)
        if coefficient % cb:
            return None
        terms[tuple(left)] = coefficient // cb
    return _poly(terms)


def dim_product(dims: tuple[Dim, ...]) -> Dim:
    out: Dim = 1
    for dim in dims:
        out = dim_mul(out, dim)
    return out


def dim_value(dim: Dim, symbols: Mapping[str, int]) -> int:
    """The value of a dimension under an assignment of its symbols."""
    if isinstance(dim, int):
        return dim
    try:
        return sum(c * math.prod(symbols[n] for n in names) for names, c in dim.terms)
    except KeyError as error:
        raise IRError(f"the symbol {error.args[0]} of dimension {dim} has no value; bound: {dict(symbols)}") from None


def parse_dim(text: str) -> Dim:
    """The inverse of str() on dimensions. Raises IRError for what is no dimension."""
    if not _DIM.fullmatch(text):
        raise IRError(f"found the dimension {text[:60]!r}; wanted something like 4, T or 2*T-1")
    out: Dim = 0
    for piece in text.replace("-", "+-").split("+"):
        if not piece:
            continue
        term: Dim = -1 if piece.startswith("-") else 1
        for factor in piece.removeprefix("-").split("*"):
            term = dim_mul(term, int(factor) if factor.isdigit() else symbol(factor))
        out = out + term
    return out


_TERM = r"(?:[0-9]{1,18}|[A-Za-z_][A-Za-z_0-9]*)(?:\*(?:[0-9]{1,18}|[A-Za-z_][A-Za-z_0-9]*))*"
_DIM = re.compile(rf"-?{_TERM}(?:[+-]{_TERM})*")


@dataclass(frozen=True, slots=True)
class TensorType:
    """A dense tensor: shape of ints and symbolic dimensions, element type."""

    shape: tuple[Dim, ...]
    dtype: DType

    def __post_init__(self) -> None:
        if self.dtype is DType.F8:
            raise IRError("found a tensor of f8; only pages hold f8, with scales: wanted f32, f16 or bf16")

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(str(d) for d in self.shape)}]"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        return dim_product(self.shape)

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset(s for d in self.shape if isinstance(d, Poly) for s in d.symbols)


STATE_KINDS = ("pages", "value", "cells", "rule", "choice")


@dataclass(frozen=True, slots=True)
class StateType:
    """A membrane's state. `pages`: one entry of `shape` per position, in pages; `value`: one tensor per instance.

    Pages of 8 bits are `scaled`: each head of an entry has an f32 scale, and what is read is code times scale.
    `cells`: a population of membranes with multisets, `rule`: a rewriting rule, `choice`: applications of rules.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: DType

    def __post_init__(self) -> None:
        if self.kind not in STATE_KINDS:
            raise IRError(f"found a state of kind {self.kind!r}; wanted {', '.join(STATE_KINDS)}")
        if self.dtype is DType.F8 and self.kind != "pages":
            raise IRError(f"found a state {self.kind} of f8; only pages hold f8: wanted f32, f16 or bf16")

    @property
    def scaled(self) -> bool:
        return self.kind == "pages" and self.dtype in (DType.I8, DType.F8)

    def __str__(self) -> str:
        return f"{self.kind}<{self.dtype}[{', '.join(str(d) for d in self.shape)}]>"


Type = TensorType | StateType


def parse_type(text: str) -> Type:
    """The inverse of str() on types."""
    text = text.strip()
    if text.endswith(">") and "<" in text:
        kind, inner = text[:-1].split("<", 1)
        shape, dtype = _parse_tensor(inner.strip())
        if any(isinstance(d, Poly) for d in shape):
            raise IRError(f"found the state type {text!r}; wanted kind<dtype[sizes]>, such as pages<bf16[8, 64]>")
        return StateType(kind, tuple(d for d in shape if isinstance(d, int)), dtype)
    return TensorType(*_parse_tensor(text))


def _parse_tensor(text: str) -> tuple[tuple[Dim, ...], DType]:
    if not text.endswith("]") or "[" not in text:
        raise IRError(f"found the type {text!r}; wanted dtype[dims], such as f32[T, 64]")
    name, dims = text[:-1].split("[", 1)
    try:
        dtype = DType(name)
    except ValueError:
        raise IRError(f"unknown dtype {name!r}; known: {', '.join(DType)}") from None
    return tuple(parse_dim(d.strip()) for d in dims.split(",") if d.strip()), dtype


def broadcast_shapes(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Numpy's broadcasting rule on symbolic shapes; raises IRError where two dimensions cannot be equal."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = []
    for axis in range(rank):
        dims = [s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0]
        kept = [d for d in dims if d != 1]
        if any(d != kept[0] for d in kept):
            raise IRError(f"shapes {', '.join(str(list(s)) for s in shapes)} do not broadcast: axis {axis} has {kept}")
        out.append(kept[0] if kept else 1)
    return tuple(out)
