"""Formulas in the notation of PeP as expressions."""

from __future__ import annotations

import math
from collections.abc import Callable

from echoc.compiler.ir.expression import Expression, call, name, number

from .tokens import Tokens

MAX_NESTING = 200  # of the expression tree: a sum of n terms is n - 1 deep
MAX_NODES = 100_000  # of the expression tree: some functions are made of several copies of their argument
MAX_PARENTHESES = 60  # inside each other, signs and arguments of functions included
LEVELS: tuple[dict[str, str], ...] = (  # PeP has its comparisons in this order too
    {"==": "eq"}, {"!=": "ne"}, {"<": "lt"}, {"<=": "le"}, {">": "gt"}, {">=": "ge"},
    {"+": "add", "-": "sub"}, {"*": "mul", "/": "div"},
)  # fmt: skip


def _binary(op: str, a: Expression, b: Expression) -> Expression:
    if op == "ne":
        return call("not", call("eq", a, b))
    return call({"gt": "lt", "ge": "le"}[op], b, a) if op in ("gt", "ge") else call(op, a, b)


def _degrees(function: Callable[[Expression], Expression]) -> Callable[[Expression], Expression]:
    return lambda x: function(call("mul", x, number(math.pi / 180)))


def _to_degrees(function: Callable[..., Expression]) -> Callable[..., Expression]:
    return lambda *x: call("mul", function(*x), number(180 / math.pi))


def _of(op: str) -> Callable[[Expression], Expression]:
    return lambda x: call(op, x)


def _log(base: float) -> Callable[[Expression], Expression]:
    return lambda x: call("div", call("log", x), number(math.log(base)))


def _inverse(x: Expression) -> Expression:
    return call("div", number(1), x)


def _cot(x: Expression) -> Expression:
    return _inverse(call("tan", x))


def _acot(x: Expression) -> Expression:
    return call("atan", _inverse(x))


def _asin(x: Expression) -> Expression:
    """atan(x / sqrt(1 - x^2)), which is right at -1 and 1 too, where the quotient is infinite."""
    return call("atan", call("div", x, call("sqrt", call("sub", number(1), call("mul", x, x)))))


def _acos(x: Expression) -> Expression:
    return call("sub", number(math.pi / 2), _asin(x))


def _atan2(y: Expression, x: Expression) -> Expression:
    """The angle of (x, y): atan(y / x), turned by half a circle where x < 0; 0 at the origin."""
    turn = call("where", call("lt", y, number(0)), number(-math.pi), number(math.pi))
    turned = call("add", call("atan", call("div", y, x)), call("where", call("lt", x, number(0)), turn, number(0)))
    origin = call("and", call("eq", x, number(0)), call("eq", y, number(0)))
    upright = call("where", call("lt", y, number(0)), number(-math.pi / 2), number(math.pi / 2))
    return call("where", origin, number(0), call("where", call("eq", x, number(0)), upright, turned))


FUNCTIONS: dict[str, tuple[int, Callable[..., Expression]]] = {
    **{op: (1, _of(op)) for op in ("sqrt", "abs", "exp", "log", "floor", "ceil", "sin", "cos", "tan", "tanh", "atan")},
    **{op + "d": (1, _degrees(_of(op))) for op in ("sin", "cos", "tan")},
    "log2": (1, _log(2)),
    "log10": (1, _log(10)),
    "cot": (1, _cot),
    "cotd": (1, _degrees(_cot)),
    "asin": (1, _asin),
    "acos": (1, _acos),
    "acot": (1, _acot),
    "atand": (1, _to_degrees(_of("atan"))),
    "asind": (1, _to_degrees(_asin)),
    "acosd": (1, _to_degrees(_acos)),
    "acotd": (1, _to_degrees(_acot)),
    "atan2": (2, _atan2),
    "atan2d": (2, _to_degrees(_atan2)),
    "min": (2, lambda a, b: call("min", a, b)),
    "max": (2, lambda a, b: call("max", a, b)),
    "pow": (2, lambda a, b: call("pow", a, b)),
}


class FormulaReader:
    """Reads formulas off tokens of the kinds `number` and `name` and the marks of LEVELS, `^`, `~`, `(`, `)`, `,`.

    Comparisons (1 or 0) bind least, then + -, then * /, then the sign -, then ^, which groups from the left, then ~.
    """

    def __init__(self, tokens: Tokens, is_name: Callable[[str], bool]) -> None:
        self.tokens = tokens
        self.is_name = is_name
        self.sizes: dict[int, tuple[int, Expression]] = {}

    def formula(self) -> Expression:
        """The formula that comes next. Raises SourceError, also beyond MAX_NESTING and MAX_PARENTHESES."""
        return self.level(0, 0)[0]

    def deeper(self, depth: int) -> int:
        if depth >= MAX_NESTING:
            raise self.tokens.error(f"this formula is nested more than {MAX_NESTING} deep", "a flatter formula")
        return depth + 1

    def inner(self, depth: int) -> int:
        if depth >= MAX_PARENTHESES:
            raise self.tokens.error(f"more than {MAX_PARENTHESES} parentheses inside each other", "a flatter formula")
        return depth + 1

    def level(self, index: int, depth: int) -> tuple[Expression, int]:
        """An expression of operators of level `index` and above, and the height of its tree."""
        if index == len(LEVELS):
            return self.sign(depth)
        left, height = self.level(index + 1, depth)
        while (op := LEVELS[index].get(self.tokens.next.text)) is not None:
            self.tokens.take()
            right, other = self.level(index + 1, depth)
            left = _binary(op, left, right)
            height = self.deeper(max(height, other))
        return left, height

    def sign(self, depth: int) -> tuple[Expression, int]:
        if self.tokens.next.text in ("-", "+"):
            negative = self.tokens.take().text != "+"
            operand, height = self.sign(self.inner(depth))
            return (call("neg", operand) if negative else operand), self.deeper(height)
        base, height = self.signed(depth)
        while self.tokens.accept("^"):
            exponent, other = self.signed(depth)
            base, height = call("pow", base, exponent), self.deeper(max(height, other))
        return base, height

    def signed(self, depth: int) -> tuple[Expression, int]:
        if self.tokens.next.text in ("-", "~"):
            self.tokens.take()
            operand, height = self.signed(self.inner(depth))
            return call("neg", operand), self.deeper(height)
        return self.atom(depth)

    def atom(self, depth: int) -> tuple[Expression, int]:
        tokens = self.tokens
        token = tokens.next
        if token.kind == "number":
            tokens.take()
            if not math.isfinite(value := float(token.text)):
                raise tokens.error("this number is too large", "a float64 number", token)
            return number(value), 0
        if token.kind == "name":
            tokens.take()
            if tokens.next.text == "(" and not self.is_name(token.text):
                return self.application(token.text, depth)
            if not self.is_name(token.text):
                raise tokens.error(f"{token.text} is not a variable", "a variable of the system", token)
            return name(token.text), 0
        if tokens.accept("("):
            inner = self.level(0, self.inner(depth))
            tokens.expect(")", "at the end of this parenthesis")
            return inner
        raise tokens.error(f"found {token}", "a number, a variable, a function or '('")

    def application(self, function: str, depth: int) -> tuple[Expression, int]:
        """`f(x)`, `f(x, y)` or PeP's `f((x) (y))`."""
        tokens = self.tokens
        if function not in FUNCTIONS:
            raise tokens.error(
                f"the function {function} is not known", f"one of {', '.join(sorted(FUNCTIONS))}", tokens.look(-1)
            )
        arity, meaning = FUNCTIONS[function]
        opening = tokens.expect("(")
        arguments = [self.level(0, self.inner(depth))]
        while len(arguments) < arity:
            if not tokens.accept(",") and tokens.next.text != "(":
                raise tokens.error(f"found {tokens.next}", f"{arity} arguments of {function}")
            arguments.append(self.level(0, self.inner(depth)))
        tokens.expect(")", f"after {arity} argument{'s' if arity > 1 else ''} of {function}, opened in column "
                           f"{tokens.where(opening).column}")  # fmt: skip
        height = max(h for _, h in arguments)
        for _ in range(6):  # the deepest meaning adds 6 levels
            height = self.deeper(height)
        made = meaning(*(a for a, _ in arguments))
        if self.size(made) > MAX_NODES:
            raise tokens.error(
                f"this formula has more than {MAX_NODES} parts when {function} is written out",
                "fewer functions inside each other",
            )
        return made, height

    def size(self, expression: Expression) -> int:
        """The number of nodes of the tree, counted once for each part that is shared."""
        if id(expression) not in self.sizes:
            self.sizes[id(expression)] = (1 + sum(self.size(a) for a in expression.arguments), expression)
        return self.sizes[id(expression)][0]
