"""Arithmetic over named quantities: production functions of numerical P systems and rate laws of reactions.

An expression is a tree of frozen nodes. `evaluate` is its meaning in float64; `render` prints it as C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from echoc.errors import CompileError

TIME = "@time"
"""The name of the time; no source can give it to a quantity."""


@dataclass(frozen=True, slots=True)
class Expression:
    """`op` is `number` (value), `name` (symbol), or a function of FUNCTIONS applied to `arguments`."""

    op: str
    arguments: tuple[Expression, ...] = ()
    value: float = 0.0
    symbol: str = ""


def number(value: float) -> Expression:
    return Expression("number", value=float(value))


def name(symbol: str) -> Expression:
    return Expression("name", symbol=symbol)


def call(op: str, *arguments: Expression) -> Expression:
    """An application; raises CompileError for an unknown function or a wrong number of arguments."""
    if op not in FUNCTIONS:
        raise CompileError(f"unknown function {op!r}; known: {', '.join(sorted(FUNCTIONS))}")
    arity = FUNCTIONS[op][0]
    if len(arguments) != arity:
        raise CompileError(f"{op} takes {arity} arguments; found {len(arguments)}")
    return Expression(op, tuple(arguments))


def _power(a: float, b: float) -> float:
    try:
        result = math.pow(a, b)
    except (OverflowError, ValueError):
        return math.nan
    return result


def _divide(a: float, b: float) -> float:
    return a / b if b != 0 else math.copysign(math.inf, a) * math.copysign(1.0, b) if a else math.nan


def _guarded(function: Callable[[float], float]) -> Callable[[float], float]:
    def call_it(x: float) -> float:
        try:
            return function(x)
        except (OverflowError, ValueError):
            return math.nan

    return call_it


# name: (arity, meaning, C with {0}, {1} for the arguments)
FUNCTIONS: Mapping[str, tuple[int, Callable[..., float], str]] = {
    "add": (2, lambda a, b: a + b, "({0} + {1})"),
    "sub": (2, lambda a, b: a - b, "({0} - {1})"),
    "mul": (2, lambda a, b: a * b, "({0} * {1})"),
    "div": (2, _divide, "({0} / {1})"),
    "pow": (2, _power, "echoc::real::pow({0}, {1})"),
    "neg": (1, lambda a: -a, "(-{0})"),
    "exp": (1, _guarded(math.exp), "echoc::real::exp({0})"),
    "log": (1, _guarded(math.log), "echoc::real::log({0})"),
    "sqrt": (1, _guarded(math.sqrt), "echoc::real::sqrt({0})"),
    "sin": (1, _guarded(math.sin), "echoc::real::sin({0})"),
    "cos": (1, _guarded(math.cos), "echoc::real::cos({0})"),
    "tan": (1, _guarded(math.tan), "echoc::real::tan({0})"),
    "tanh": (1, math.tanh, "echoc::real::tanh({0})"),
    "atan": (1, math.atan, "echoc::real::atan({0})"),
    "abs": (1, abs, "echoc::real::abs({0})"),
    "floor": (1, _guarded(math.floor), "echoc::real::floor({0})"),
    "ceil": (1, _guarded(math.ceil), "echoc::real::ceil({0})"),
    "min": (2, min, "echoc::real::min({0}, {1})"),
    "max": (2, max, "echoc::real::max({0}, {1})"),
    "lt": (2, lambda a, b: float(a < b), "double({0} < {1})"),
    "le": (2, lambda a, b: float(a <= b), "double({0} <= {1})"),
    "eq": (2, lambda a, b: float(a == b), "double({0} == {1})"),
    "and": (2, lambda a, b: float(bool(a) and bool(b)), "double(({0} != 0) && ({1} != 0))"),
    "or": (2, lambda a, b: float(bool(a) or bool(b)), "double(({0} != 0) || ({1} != 0))"),
    "not": (1, lambda a: float(not a), "double({0} == 0)"),
    "where": (3, lambda c, a, b: a if c else b, "({0} != 0 ? {1} : {2})"),
}


def evaluate(expression: Expression, values: Mapping[str, float]) -> float:
    """The value in float64; NaN where a function is not defined. Raises CompileError for a name without a value."""
    if expression.op == "number":
        return expression.value
    if expression.op == "name":
        if expression.symbol not in values:
            raise CompileError(f"{expression.symbol!r} has no value; known: {', '.join(sorted(values))}")
        return float(values[expression.symbol])
    return float(FUNCTIONS[expression.op][1](*(evaluate(a, values) for a in expression.arguments)))


def render(expression: Expression, spell: Callable[[str], str]) -> str:
    """C++ in double over kernels/cpu/real.h; `spell` gives the C++ of a name."""
    if expression.op == "number":
        value = expression.value
        if not math.isfinite(value):
            return "echoc::real::kNan" if math.isnan(value) else f"({'-' if value < 0 else ''}echoc::real::kInfinity)"
        return f"({value!r})" if value < 0 else repr(value)
    if expression.op == "name":
        return spell(expression.symbol)
    return FUNCTIONS[expression.op][2].format(*(render(a, spell) for a in expression.arguments))


def names(expression: Expression) -> Iterator[str]:
    """Every name in it, left to right, repeats included."""
    if expression.op == "name":
        yield expression.symbol
    for argument in expression.arguments:
        yield from names(argument)
