"""Exact numbers of Runge-Kutta tableaus: rationals, and a + b sqrt(d) for one square-free d.

Gauss, Radau and Lobatto methods of few stages and many diagonally implicit ones have coefficients in such a field, so
their order conditions are decided, not estimated.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn

from .levels import TreeError

RADICAND_LIMIT = 10**9
TEXT_LIMIT = 500
SPELLED_BITS = 4000
NESTING_LIMIT = 30


@dataclass(frozen=True, slots=True, eq=False)
class Surd:
    """a + b sqrt(d) with b != 0 and d > 1 square-free: never rational. Made by `surd`, which normalises.

    Arithmetic gives a Fraction where the root cancels. Numbers of two different fields do not mix: TreeError.
    """

    a: Fraction
    b: Fraction
    d: int

    def __add__(self, other: Scalar | int) -> Scalar:
        a, b = self._parts(other)
        return surd(self.a + a, self.b + b, self.d)

    def __sub__(self, other: Scalar | int) -> Scalar:
        a, b = self._parts(other)
        return surd(self.a - a, self.b - b, self.d)

    def __rsub__(self, other: Fraction | int) -> Scalar:
        return surd(other - self.a, -self.b, self.d)

    def __mul__(self, other: Scalar | int) -> Scalar:
        a, b = self._parts(other)
        return surd(self.a * a + self.b * b * self.d, self.a * b + self.b * a, self.d)

    def __truediv__(self, other: Scalar | int) -> Scalar:
        a, b = self._parts(other)
        norm = a * a - b * b * self.d
        return self * surd(a / norm, -b / norm, self.d)

    def __rtruediv__(self, other: Fraction | int) -> Scalar:
        norm = self.a * self.a - self.b * self.b * self.d
        return surd(other * self.a / norm, -other * self.b / norm, self.d)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Surd:
        return Surd(-self.a, -self.b, self.d)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Surd) and (self.a, self.b, self.d) == (other.a, other.b, other.d)

    def __hash__(self) -> int:
        return hash((self.a, self.b, self.d))

    def __str__(self) -> str:
        root = f"sqrt({self.d})" if abs(self.b) == 1 else f"{abs(self.b)}*sqrt({self.d})"
        sign = "-" if self.b < 0 else "+"
        if not self.a:
            return f"-{root}" if self.b < 0 else root
        return f"{self.a} {sign} {root}"

    def __float__(self) -> float:
        try:
            return float(self.a) + float(self.b) * math.sqrt(self.d)
        except OverflowError:
            return math.nan

    def _parts(self, other: Scalar | int) -> tuple[Fraction, Fraction]:
        if not isinstance(other, Surd):
            return Fraction(other), Fraction(0)
        if other.d != self.d:
            raise TreeError(
                f"sqrt({self.d}) and sqrt({other.d}) in one computation; numbers of one field are supported"
            )
        return other.a, other.b


Scalar = Fraction | Surd
ZERO = Fraction(0)
ONE = Fraction(1)


def surd(a: Fraction, b: Fraction, d: int) -> Scalar:
    """a + b sqrt(d), d square-free; a Fraction when b is 0."""
    return Surd(a, b, d) if b else a


def square_root(n: int) -> Scalar:
    """sqrt(n), its square factors taken out. Raises TreeError for n < 0 and n > RADICAND_LIMIT."""
    if not 0 <= n <= RADICAND_LIMIT:
        raise TreeError(f"sqrt({n}): the radicand must be from 0 to {RADICAND_LIMIT}")
    outside, factor = 1, 2
    while factor * factor <= n:
        while n % (factor * factor) == 0:
            n //= factor * factor
            outside *= factor
        factor += 1
    return Fraction(outside * n) if n < 2 else surd(ZERO, Fraction(outside), n)


def spell(value: Scalar) -> str:
    """The number as text that `as_scalar` reads; one too long to be read is described instead."""
    parts = (value,) if isinstance(value, Fraction) else (value.a, value.b)
    bits = max(part.bit_length() for x in parts for part in (x.numerator, x.denominator))
    return str(value) if bits <= SPELLED_BITS else f"(a number of {bits} bits)"


def as_scalar(value: object) -> Scalar:
    """An exact number of an int, Fraction, Surd or text such as "1/2", "0.25", "(3 - sqrt(3))/6".

    Raises TreeError for anything else: a float has lost what it stood for (`0.1` is not 1/10).
    """
    if isinstance(value, Fraction | Surd):
        return value
    if isinstance(value, str):
        return _Reader(value).read()
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > SPELLED_BITS:
            raise TreeError(f"an integer of {value.bit_length()} bits; at most {SPELLED_BITS}")
        return Fraction(value)
    if isinstance(value, float):
        raise TreeError(f'{value!r} is a float; write the exact number as a text, such as "1/3" or "0.1"')
    raise TreeError(f"found {type(value).__name__}; wanted a number as a text, such as '1/3'")


_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|(sqrt)|([-+*/()]))", re.ASCII)


class _Reader:
    """Sums, products and quotients of numbers and square roots, read from left to right."""

    def __init__(self, text: str) -> None:
        if len(text) > TEXT_LIMIT:
            raise TreeError(f"a number of {len(text)} letters; at most {TEXT_LIMIT}")
        self.text = text
        self.at = 0
        self.nesting = 0

    def read(self) -> Scalar:
        value = self._sum()
        if self.text[self.at :].strip():
            self._refuse("wanted + - * / or the end")
        return value

    def _refuse(self, wanted: str) -> NoReturn:
        shown = self.text[:80]
        raise TreeError(f'{shown!r}, column {self.at + 1}: {wanted}; numbers look like "1/2" or "(3 - sqrt(3))/6"')

    def _next(self, symbols: str) -> str:
        """The next token if it is one of these one-letter symbols, taken; else ''."""
        match = _TOKEN.match(self.text, self.at)
        if match is None or match[3] is None or match[3] not in symbols:
            return ""
        self.at = match.end()
        return match[3]

    def _sum(self) -> Scalar:
        value = -self._product() if self._next("-") else self._product()
        while sign := self._next("+-"):
            term = self._product()
            value = value + term if sign == "+" else value - term
        return value

    def _product(self) -> Scalar:
        value = self._factor()
        while operator := self._next("*/"):
            factor = self._factor()
            if operator == "/" and not factor:
                self._refuse("division by zero")
            value = value * factor if operator == "*" else value / factor
        return value

    def _factor(self) -> Scalar:
        self.nesting += 1
        if self.nesting > NESTING_LIMIT:
            self._refuse(f"more than {NESTING_LIMIT} nested brackets")
        value = self._bracketed() if self._next("(") else self._number()
        self.nesting -= 1
        return value

    def _bracketed(self) -> Scalar:
        value = self._sum()
        if not self._next(")"):
            self._refuse("wanted )")
        return value

    def _number(self) -> Scalar:
        match = _TOKEN.match(self.text, self.at)
        if match is None or match[3] is not None:
            self._refuse("wanted a number")
        self.at = match.end()
        if match[1] is not None:
            return Fraction(match[1])
        if not self._next("("):
            self._refuse("wanted ( after sqrt")
        radicand = self._bracketed()
        if isinstance(radicand, Surd) or radicand < 0:
            self._refuse("wanted the square root of a rational number that is not negative")
        # sqrt(p/q) = sqrt(p q)/q
        return square_root(radicand.numerator * radicand.denominator) / radicand.denominator
