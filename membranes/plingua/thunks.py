"""Small closures over the local variables: names with indices, operators, constants."""

from __future__ import annotations

from collections.abc import Callable

from echoc.compiler.ir.algebra import Bag

from . import values
from .diagnostics import Fault, Mark
from .values import Undefined, Value

Locals = dict[str, Value]
Thunk = Callable[[Locals], Value]
KeyThunk = Callable[[Locals], str]
Run = Callable[[Locals], tuple[Value] | None]
"""A statement: None, or the value of a `return` in a tuple."""
BagThunk = Callable[[Locals], Bag]


INSIDE = "@inside"
"""A key that the local variables of a module have, and no variable can."""


def bad_index(value: Value, mark: Mark) -> Fault:
    return Fault(f"an index is a whole number; found {values.type_name(value)}: {str(value)[:40]}", mark)


def system_constant(name: str, mark: Mark) -> Value:
    if name in values.CONSTANTS:
        return values.CONSTANTS[name]
    raise Fault(f"unknown variable {name}; wanted one that is assigned before", mark)


def apply_binary(operator: str, a: Value, b: Value, mark: Mark) -> Value:
    try:
        return values.binary(operator, a, b)
    except Undefined as problem:
        raise Fault(str(problem), mark) from None
    except OverflowError:
        raise Fault("the result is too large for a double", mark) from None


def folded_chain(value: Value, rest: list[tuple[str, Mark, Value]]) -> Value | None:
    """The value of a chain of constants; None where it has none: that is a fault only if it is ever asked for."""
    try:
        for op, mark, operand in rest:
            value = apply_binary(op, value, operand, mark)
    except Fault:
        return None
    return value


def pair_of(operator: str, first: Thunk, second: Thunk, mark: Mark) -> Thunk:
    """One operator. Sums and differences of small whole numbers, by far the most common, go a short way."""
    sign = {"+": 1, "-": -1}.get(operator)
    if sign is None:
        return lambda local: apply_binary(operator, first(local), second(local), mark)
    plus, limit = sign > 0, 1 << 62

    def pair(local: Locals) -> Value:
        a, b = first(local), second(local)
        if a.__class__ is int and b.__class__ is int and -limit < a < limit and -limit < b < limit:
            return a + b if plus else a - b
        return apply_binary(operator, a, b, mark)

    return pair


def logic_of(both: bool, runs: list[Thunk], mark: Mark) -> Thunk:
    """`&&` (both) and `||`, which stop at the first operand that decides."""

    def logic(local: Locals) -> Value:
        try:
            for run in runs:
                if values.true(run(local)) != both:
                    return int(not both)
        except Undefined as problem:
            raise Fault(str(problem), mark) from None
        return int(both)

    return logic
