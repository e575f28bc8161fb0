"""Values of P-Lingua: 64-bit whole numbers, doubles and strings, and what operators and functions do with them.

Division and remainder of whole numbers go towards zero, as in C; mixed operands become doubles.
"""

from __future__ import annotations

import logging
import math
import random
import re
from collections.abc import Callable

Value = int | float | str

LOW, HIGH = -(1 << 63), (1 << 63) - 1
MAX_STRING = 10_000
_LOG = logging.getLogger("echoc.plingua")


class Undefined(Exception):
    """An operation without a value; the message says why."""


def whole(value: int) -> int:
    """`value`, if it fits in 64 bits."""
    if LOW <= value <= HIGH:
        return value
    raise Undefined("whole number overflow: the result does not fit in 64 bits")


def type_name(value: Value) -> str:
    return "a string" if isinstance(value, str) else "a double" if isinstance(value, float) else "a whole number"


def to_whole(value: Value) -> int:
    """The cast to long_t: towards zero; the digits at the start of a string."""
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        found = re.match(r"\s*([+-]?\d{1,19})", value, re.ASCII)
        return whole(int(found.group(1))) if found else 0
    if not math.isfinite(value):
        raise Undefined(f"{value} is no whole number")
    return whole(int(value))


def to_double(value: Value) -> float:
    if isinstance(value, str):
        found = re.match(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value, re.ASCII)
        return float(found.group()) if found else 0.0
    return float(value)


def to_string(value: Value) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else f"{value:f}"


def _divide(a: int | float, b: int | float) -> int | float:
    if b == 0:
        raise Undefined("division by zero")
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    return a / b


def _remainder(a: int, b: int) -> int:
    if b == 0:
        raise Undefined("division by zero")
    return a - b * int(_divide(a, b))


def _shift(a: int, b: int, left: bool) -> int:
    if not 0 <= b < 64:
        raise Undefined(f"a shift by {b} bits; wanted 0 to 63")
    return a << b if left else a >> b


def _power(a: int | float, b: int | float) -> int | float:
    if isinstance(a, int) and isinstance(b, int) and b >= 0:
        if abs(a) > 1 and b > 63:
            raise Undefined("whole number overflow: the result does not fit in 64 bits")
        return int(a**b)
    try:
        return math.pow(a, b)
    except ValueError:
        raise Undefined(f"{a} to the power of {b} is not defined") from None


def _divide_real(a: int | float, b: int | float) -> int | float:
    if b == 0:
        raise Undefined("division by zero")
    quotient = a / b
    return int(quotient) if quotient.is_integer() and abs(quotient) < 2.0**53 else quotient


REAL_DIVISION = "real /"
_BOTH_WHOLE: dict[str, Callable[[int, int], int]] = {
    "%": _remainder,
    "<<": lambda a, b: _shift(a, b, True),
    ">>": lambda a, b: _shift(a, b, False),
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
}
_NUMBERS: dict[str, Callable[[int | float, int | float], int | float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "**": _power,
    REAL_DIVISION: _divide_real,
    "<": lambda a, b: int(a < b),
    "<=": lambda a, b: int(a <= b),
    ">": lambda a, b: int(a > b),
    ">=": lambda a, b: int(a >= b),
    "==": lambda a, b: int(a == b),
    "<>": lambda a, b: int(a != b),
}
_COMPARISONS = frozenset({"<", "<=", ">", ">=", "==", "<>"})


def binary(operator: str, a: Value, b: Value) -> Value:
    """The value of `a operator b`; raises Undefined. `&&` and `||` are not here: they may skip their right side."""
    if isinstance(a, str) or isinstance(b, str):
        if operator == "+":
            joined = to_string(a) + to_string(b)
            if len(joined) > MAX_STRING:
                raise Undefined(f"a string of more than {MAX_STRING} characters")
            return joined
        if operator in _COMPARISONS and isinstance(a, str) and isinstance(b, str):
            order = (a > b) - (a < b)
            return _NUMBERS[operator](order, 0)
    elif isinstance(a, int) and isinstance(b, int) and operator in _BOTH_WHOLE:
        return whole(_BOTH_WHOLE[operator](a, b))
    elif operator in _NUMBERS:
        result = _NUMBERS[operator](a, b)
        return whole(result) if isinstance(result, int) else result
    raise Undefined(f"{operator!r} is not defined for {type_name(a)} and {type_name(b)}")


def unary(operator: str, a: Value) -> Value:
    if not isinstance(a, str):
        if operator == "+":
            return a
        if operator == "-":
            return whole(-a) if isinstance(a, int) else -a
        if isinstance(a, int):
            return int(not a) if operator == "!" else ~a
    raise Undefined(f"{operator!r} is not defined for {type_name(a)}")


def true(value: Value) -> bool:
    """Whether a condition holds: a whole number or double that is not 0."""
    if isinstance(value, str):
        raise Undefined("a condition is a number; found a string")
    return value != 0


CONSTANTS: dict[str, float] = {"e": math.e, "pi": math.pi, "PI": math.pi, "Pi": math.pi}

_REAL: dict[str, Callable[[float], float]] = {
    name: getattr(math, name)
    for name in [
        "cos",
        "sin",
        "tan",
        "acos",
        "asin",
        "atan",
        "cosh",
        "sinh",
        "tanh",
        "acosh",
        "asinh",
        "atanh",
        "exp",
        "log",
        "sqrt",
    ]
} | {"exp2": lambda x: math.pow(2.0, x)}
_ROUND: dict[str, Callable[[float], float]] = {
    "ceil": math.ceil,
    "floor": math.floor,
    "round": lambda x: math.copysign(math.floor(abs(x) + 0.5), x),
}
_LOGARITHM = re.compile(r"log([1-9][0-9]{0,8})")


def is_function(name: str) -> bool:
    return name in _FUNCTIONS or name in _REAL or name in _ROUND or bool(_LOGARITHM.fullmatch(name))


def function(name: str, arguments: list[Value], generator: random.Random) -> Value:
    """The value of a built-in function; raises Undefined for a wrong number of arguments or outside its domain."""
    try:
        return _function(name, arguments, generator)
    except (ValueError, OverflowError, ZeroDivisionError):
        shown = ", ".join(str(a) for a in arguments)
        raise Undefined(f"{name}({shown}) is not defined") from None


def _function(name: str, arguments: list[Value], generator: random.Random) -> Value:
    count = len(arguments)
    if count == 1 and name in _REAL:
        return _REAL[name](to_double(arguments[0]))
    if count == 1 and name in _ROUND:
        return to_whole(float(_ROUND[name](to_double(arguments[0]))))
    base = _LOGARITHM.fullmatch(name)
    if base is not None and count == 1:
        return math.log(to_double(arguments[0])) / math.log(int(base.group(1)))
    if name == "random" and count == 1:
        most = to_whole(arguments[0])
        if not 0 < most < 1 << 32:
            raise Undefined(f"random({most}): wanted 1 to 2^32 - 1")
        return generator.randrange(most)
    if name in _FUNCTIONS and (_FUNCTIONS[name][0] < 0 or count == _FUNCTIONS[name][0] or (name, count) == ("log", 2)):
        return _FUNCTIONS[name][1](arguments)
    raise Undefined(f"there is no function {name} of {count} arguments")


def _absolute(arguments: list[Value]) -> Value:
    value = arguments[0]
    return whole(abs(value)) if isinstance(value, int) else abs(to_double(value))


def _position(arguments: list[Value]) -> Value:
    text, at = to_string(arguments[0]), to_whole(arguments[1])
    if not 0 <= at < len(text):
        raise Undefined(f"pos: the index {at} is outside of a string of {len(text)} characters")
    return text[at]


def _print(arguments: list[Value]) -> Value:
    _LOG.info("%s", "".join(to_string(a) for a in arguments))
    return 1


_FUNCTIONS: dict[str, tuple[int, Callable[[list[Value]], Value]]] = {
    "random": (1, lambda a: a[0]),
    "log": (2, lambda a: math.log(to_double(a[0])) / math.log(to_double(a[1]))),
    "pow": (2, lambda a: math.pow(to_double(a[0]), to_double(a[1]))),
    "atan2": (2, lambda a: math.atan2(to_double(a[0]), to_double(a[1]))),
    "abs": (1, _absolute),
    "max0": (1, lambda a: a[0] if isinstance(a[0], int | float) and a[0] > 0 else 0),
    "len": (1, lambda a: len(to_string(a[0]))),
    "pos": (2, _position),
    "print": (-1, _print),
    "printn": (-1, _print),
}
