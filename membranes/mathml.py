"""MathML, as libsbml holds it, as expressions: names replaced, user functions inlined, constants folded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from echoc.compiler.ir.expression import Expression, call, evaluate, number

MAX_HEIGHT = 150  # of an expression's tree
MAX_NODES = 100_000
AVOGADRO = 6.02214179e23  # the value that SBML Level 3 fixes

Names = Callable[[str], "Expression"]


class MathError(Exception):
    """What is wrong with a formula; the caller knows where it stands."""


class Formulas:
    """Turns syntax trees into expressions of bounded size.

    libsbml: the module. functions: name -> the lambda of a user's function, a syntax tree.
    """

    def __init__(self, libsbml: Any, functions: Mapping[str, Any]) -> None:
        self.functions = functions
        self.kinds: dict[int, str] = {
            value: key[4:] for key, value in vars(libsbml).items() if key.startswith("AST_") and isinstance(value, int)
        }
        self.sizes: dict[int, tuple[int, int, Expression]] = {}
        self.level = 0  # of the tree that is being read, with those of what is put in
        self.work = 0  # trees read for one formula
        self.time: Expression | None = None  # what stands for it, in formulas that may depend on it

    def read(self, tree: Any, names: Names) -> Expression:
        """The expression of a syntax tree; `names` gives those of its names.

        Raises MathError for what has no meaning in a jump process: delays, rates, unknown functions, and time unless
        `time` is set.
        """
        if tree is None:
            raise MathError("there is no formula")
        self.work += 1
        if self.level >= MAX_HEIGHT:
            raise MathError(f"the formula, what it uses put in, is nested more than {MAX_HEIGHT} deep")
        if self.work > MAX_NODES:
            raise MathError(f"the formula, what it uses put in, has more than {MAX_NODES} parts")
        self.level += 1
        try:
            return self._read(tree, names)
        finally:
            self.level -= 1

    def _read(self, tree: Any, names: Names) -> Expression:
        if (leaf := self._leaf(tree, names)) is not None:
            return leaf
        kind = self.kinds.get(tree.getType(), "")
        children = _operands(tree, kind)
        if kind == "FUNCTION":
            return self._inline(tree.getName(), [self.read(c, names) for c in children])
        meaning = _MEANINGS.get(kind)
        if meaning is None:
            shown = tree.getName() or tree.getOperatorName() or kind.removeprefix("FUNCTION_").lower()
            raise MathError(f"{shown} has no meaning here")
        arguments = [self.read(c, names) for c in children]
        try:
            return meaning(self.node, *arguments)
        except TypeError as error:
            raise MathError(f"{kind.split('_', 1)[-1].lower()} of {len(arguments)} arguments") from error

    def _leaf(self, tree: Any, names: Names) -> Expression | None:
        kind = self.kinds.get(tree.getType(), "")
        if tree.isNumber():
            value = float(tree.getValue())
            return number(value)
        if kind == "NAME":
            return names(tree.getName())
        constants = {"CONSTANT_PI": math.pi, "CONSTANT_E": math.e, "CONSTANT_TRUE": 1.0, "CONSTANT_FALSE": 0.0,
                     "NAME_AVOGADRO": AVOGADRO}  # fmt: skip
        if kind in constants:
            return number(constants[kind])
        if kind == "NAME_TIME":
            if self.time is not None:
                return self.time
            raise MathError("the formula depends on time; only events may, all else on the state only")
        return None

    def _inline(self, name: str, arguments: list[Expression]) -> Expression:
        if name not in self.functions:
            raise MathError(f"the function {name} is not defined")
        definition = self.functions[name]
        if definition is None or not definition.isLambda():
            raise MathError(f"the function {name} has no formula")
        count = definition.getNumChildren() - 1
        if count != len(arguments):
            raise MathError(f"{name} takes {count} arguments; found {len(arguments)}")
        bound = {definition.getChild(i).getName(): a for i, a in enumerate(arguments)}

        def names(symbol: str) -> Expression:
            if symbol not in bound:
                raise MathError(f"the function {name} uses {symbol}, which is not one of its arguments")
            return bound[symbol]

        return self.read(definition.getChild(count), names)

    def node(self, op: str, *arguments: Expression) -> Expression:
        """A call, folded where its arguments are numbers; raises MathError where the tree gets too large."""
        made = call(op, *arguments)
        if all(a.op == "number" for a in arguments):
            return number(evaluate(made, {}))
        known = [self.sizes.get(id(a), (0, 1, a)) for a in arguments]
        height, size = 1 + max(k[0] for k in known), 1 + sum(k[1] for k in known)
        if height > MAX_HEIGHT:
            raise MathError(f"the formula, what it uses put in, is nested more than {MAX_HEIGHT} deep")
        if size > MAX_NODES:
            raise MathError(f"the formula, what it uses put in, has more than {MAX_NODES} parts")
        self.sizes[id(made)] = (height, size, made)
        return made


def _operands(tree: Any, kind: str) -> list[Any]:
    """The arguments of an application; of a sum or product, which libsbml holds as a chain of pairs, all of them."""
    last: list[Any] = []
    node = tree
    while kind in ("PLUS", "TIMES") and node.getNumChildren() == 2 and node.getChild(0).getType() == tree.getType():
        last.append(node.getChild(1))
        node = node.getChild(0)
    return [node.getChild(i) for i in range(node.getNumChildren())] + last[::-1]


Make = Callable[..., Expression]


def _chain(op: str, empty: float) -> Callable[..., Expression]:
    """An operation of any number of arguments, which are taken in pairs so that the tree stays flat."""

    def meaning(make: Make, *arguments: Expression) -> Expression:
        items = list(arguments) or [number(empty)]
        while len(items) > 1:
            odd = items[len(items) // 2 * 2 :]
            items = [make(op, a, b) for a, b in zip(items[::2], items[1::2], strict=False)] + odd
        return items[0]

    return meaning


def _some(op: str) -> Callable[..., Expression]:
    """Like `_chain`, with one argument at least."""
    return lambda make, first, *rest: _chain(op, 0)(make, first, *rest)


def _just(op: str) -> Callable[..., Expression]:
    return lambda make, x: make(op, x)


def _both(op: str) -> Callable[..., Expression]:
    return lambda make, a, b: make(op, a, b)


def _compare(op: str) -> Callable[..., Expression]:
    """a < b < c is a < b and b < c."""
    swapped = {"gt": "lt", "ge": "le"}.get(op)

    def meaning(make: Make, first: Expression, second: Expression, *rest: Expression) -> Expression:
        items = (first, second, *rest)
        parts = [make(swapped, b, a) if swapped else make(op, a, b) for a, b in pairwise(items)]
        return _chain("and", 1)(make, *parts)

    return meaning


def _minus(make: Make, a: Expression, b: Expression | None = None) -> Expression:
    return make("neg", a) if b is None else make("sub", a, b)


def _piecewise(make: Make, *items: Expression) -> Expression:
    """value, condition, value, condition, ..., value otherwise (not a number where that is left out)."""
    otherwise = items[-1] if len(items) % 2 else number(math.nan)
    result = otherwise
    for i in reversed(range(0, len(items) - 1, 2)):
        result = make("where", items[i + 1], items[i], result)
    return result


def _logarithm(make: Make, first: Expression, second: Expression | None = None) -> Expression:
    """log(base, x), or log10(x)."""
    base, x = (number(10), first) if second is None else (first, second)
    return make("div", make("log", x), make("log", base))


def _root(make: Make, first: Expression, second: Expression | None = None) -> Expression:
    """root(degree, x), or the square root."""
    if second is None or (first.op == "number" and first.value == 2):
        return make("sqrt", first if second is None else second)
    return make("pow", second, make("div", number(1), first))


def _xor(make: Make, *items: Expression) -> Expression:
    result = number(0)
    for item in items:
        truth = make("not", make("not", item))
        result = make("not", make("eq", result, truth))
    return result


def _inverse_of(op: str) -> Callable[..., Expression]:
    return lambda make, x: make("div", number(1), make(op, x))


def _hyperbolic(sign: str) -> Callable[..., Expression]:
    return lambda make, x: make("div", make(sign, make("exp", x), make("exp", make("neg", x))), number(2))


def _quotient(make: Make, a: Expression, b: Expression) -> Expression:
    """Cut towards 0."""
    ratio = make("div", a, b)
    return make("where", make("lt", ratio, number(0)), make("ceil", ratio), make("floor", ratio))


def _remainder(make: Make, a: Expression, b: Expression) -> Expression:
    return make("sub", a, make("mul", b, _quotient(make, a, b)))


def _implies(make: Make, a: Expression, b: Expression) -> Expression:
    return make("or", make("not", a), b)


def _factorial(make: Make, x: Expression) -> Expression:
    if x.op != "number" or not (0 <= x.value <= 170 and x.value == int(x.value)):
        raise MathError("a factorial of something else than a whole number up to 170")
    return number(float(math.factorial(int(x.value))))


_MEANINGS: dict[str, Callable[..., Expression]] = {
    "PLUS": _chain("add", 0), "TIMES": _chain("mul", 1), "MINUS": _minus, "DIVIDE": _both("div"), "POWER": _both("pow"),
    "FUNCTION_POWER": _both("pow"), "FUNCTION_ABS": _just("abs"), "FUNCTION_EXP": _just("exp"),
    "FUNCTION_LN": _just("log"), "FUNCTION_LOG": _logarithm, "FUNCTION_ROOT": _root, "FUNCTION_SIN": _just("sin"),
    "FUNCTION_COS": _just("cos"), "FUNCTION_TAN": _just("tan"), "FUNCTION_ARCTAN": _just("atan"),
    "FUNCTION_TANH": _just("tanh"), "FUNCTION_SINH": _hyperbolic("sub"), "FUNCTION_COSH": _hyperbolic("add"),
    "FUNCTION_SEC": _inverse_of("cos"), "FUNCTION_CSC": _inverse_of("sin"), "FUNCTION_COT": _inverse_of("tan"),
    "FUNCTION_FLOOR": _just("floor"), "FUNCTION_CEILING": _just("ceil"), "FUNCTION_FACTORIAL": _factorial,
    "FUNCTION_PIECEWISE": _piecewise, "FUNCTION_MIN": _some("min"), "FUNCTION_MAX": _some("max"),
    "FUNCTION_QUOTIENT": _quotient, "FUNCTION_REM": _remainder, "LOGICAL_AND": _chain("and", 1),
    "LOGICAL_OR": _chain("or", 0), "LOGICAL_NOT": _just("not"), "LOGICAL_XOR": _xor, "LOGICAL_IMPLIES": _implies,
    "RELATIONAL_EQ": _compare("eq"), "RELATIONAL_LT": _compare("lt"), "RELATIONAL_LEQ": _compare("le"),
    "RELATIONAL_GT": _compare("gt"), "RELATIONAL_GEQ": _compare("ge"),
    "RELATIONAL_NEQ": lambda make, a, b: make("not", make("eq", a, b)),
}  # fmt: skip
