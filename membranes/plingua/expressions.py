"""Parsing of expressions, by precedence climbing; chains of one precedence are one flat node."""

from __future__ import annotations

from .diagnostics import Fault, Limits, Mark
from .lexer import TYPES, Tokens
from .syntax import Assign, Call, Cast, Chain, Expression, Name, Number, SystemConstant, Text, Unary
from .values import REAL_DIVISION

ASSIGNMENTS = frozenset(["=", "+=", "-=", "*=", "/=", "%=", "<<=", ">>=", "&=", "|=", "^="])
_LEVELS = ("||", "&&", "|", "^", "&", "== <>", "< <= > >=", "<< >>", "+ -", "* / %")
PRECEDENCE = {op: level for level, ops in enumerate(_LEVELS) for op in ops.split()}
PREFIX_FUNCTIONS = {"ceil": "ceil", "floor": "floor", "round": "round", "log": "log2", "max0": "max0"}
SHIFT = PRECEDENCE["<<"]  # the lowest operators that a bound of a range may have
_PREFIX = frozenset(["+", "-", "!", "~", "++", "--"])
_WANTED = {"id": "a name", "int": "a whole number", "str": "a string", "end": "the end of the file"}


class ExpressionParser:
    """Reads expressions from tokens; `at` is the index of the next token."""

    def __init__(self, tokens: Tokens, limits: Limits, version4: bool = False) -> None:
        """version4: `^` is the power, which binds closest, and `/` divides to real numbers; in version 5 they are the
        exclusive or of bits and, for whole numbers, the division to a whole number.
        """
        self.tokens, self.limits, self.version4 = tokens, limits, version4
        self.kinds, self.values, self.offsets = tokens.kinds, tokens.values, tokens.offsets
        self.at = 0
        self.depth = 0

    @property
    def kind(self) -> str:
        return self.kinds[self.at]

    @property
    def offset(self) -> int:
        return self.offsets[self.at]

    def fault(self, message: str, offset: int | None = None) -> Fault:
        return Fault(message, Mark(self.tokens.source, self.offset if offset is None else offset))

    def unexpected(self, wanted: str) -> Fault:
        kind, value = self.kind, self.values[self.at]
        shown = {"constants": "an assignment", "end": "the end of the file"}.get(kind) or repr(str(value)[:40])
        return self.fault(f"found {shown}; wanted {wanted}")

    def expect(self, kind: str, wanted: str = "") -> object:
        if self.kinds[self.at] != kind:
            raise self.unexpected(wanted or _WANTED.get(kind, f"{kind!r}"))
        self.at += 1
        return self.values[self.at - 1]

    def accept(self, kind: str) -> bool:
        if self.kinds[self.at] != kind:
            return False
        self.at += 1
        return True

    def identifier(self, wanted: str = "a name") -> str:
        return str(self.expect("id", wanted))

    def enter(self, what: str, limit: int) -> None:
        self.depth += 1
        if self.depth > limit:
            raise self.fault(f"{what} more than {limit} deep")

    def expression(self, level: int = -1) -> Expression:
        """`level` -1 allows assignments; otherwise the lowest precedence that is read."""
        self.enter("parentheses and indices", self.limits.parentheses)
        try:
            if level < 0:
                return self.assignment()
            return self.binary(level)
        finally:
            self.depth -= 1

    def assignment(self) -> Expression:
        if self.kind == "id":
            start = self.at
            value = self.binary(0)
            if self.kind in ASSIGNMENTS and isinstance(value, Name):
                operator, offset = self.kind, self.offsets[start]
                self.at += 1
                return Assign(offset, value, operator, self.binary(0))
            return value
        return self.binary(0)

    def binary(self, level: int) -> Expression:
        left = self.unary()
        while True:
            precedence = PRECEDENCE.get(self.kind)
            if precedence is None or precedence < level:
                return left
            rest = []
            while PRECEDENCE.get(self.kind) == precedence:
                operator, offset = self.kind, self.offset
                if operator == "/" and self.version4:
                    operator = REAL_DIVISION
                self.at += 1
                rest.append((operator, offset, self.binary(precedence + 1)))
            left = Chain(left.at, left, tuple(rest))

    def unary(self) -> Expression:
        offset, operators = self.offset, []
        while self.kind in _PREFIX:
            operators.append(self.kind)
            self.at += 1
            if operators[-1] in ("++", "--"):
                target = self.name()
                change: Expression = Assign(offset, target, operators.pop(), prefix=True)
                return Unary(offset, tuple(operators), change) if operators else change
        operand = self.primary()
        if self.version4 and self.kind == "^":
            operand = self.power(operand)
        if self.kind in ("++", "--") and isinstance(operand, Name):
            operand = Assign(operand.at, operand, self.kind)
            self.at += 1
        return Unary(offset, tuple(operators), operand) if operators else operand

    def power(self, operand: Expression) -> Expression:
        rest = []
        while self.kind == "^":
            self.at += 1
            rest.append(("**", self.offset, self.primary()))
        return Chain(operand.at, operand, tuple(rest))

    def primary(self) -> Expression:
        """A number, string, variable, call, constant, parenthesis or cast: what may stand after `*` in a multiset."""
        kind, offset = self.kind, self.offset
        value = self.values[self.at]
        if kind == "id":
            return self.call(False) if self.kinds[self.at + 1] == "(" else self.name()
        if kind in ("int", "real"):
            self.at += 1
            assert isinstance(value, int | float)
            return Number(offset, value)
        if kind in ("true", "false"):
            self.at += 1
            return Number(offset, int(kind == "true"))
        if kind == "str":
            self.at += 1
            return Text(offset, str(value))
        if kind == "(":
            return self.parenthesis()
        if kind == "system":
            self.at += 1
            self.expect("::")
            if self.kinds[self.at + 1] == "(":
                return self.call(True)
            return SystemConstant(offset, self.identifier("the name of a constant or function"))
        if kind == "@" and self.kinds[self.at + 1] == "id":
            return self.prefix_function()
        raise self.unexpected("an expression")

    def prefix_function(self) -> Expression:
        """`@ceil(x)` and `@ceil x` of version 4, whose logarithm has the base 2."""
        offset = self.offset
        self.at += 1
        name = str(self.values[self.at])
        if name not in PREFIX_FUNCTIONS:
            if self.kinds[self.at + 1] == "(":
                return self.call(True)
            raise self.unexpected(f"one of the functions {', '.join(PREFIX_FUNCTIONS)}")
        self.at += 1
        self.enter("parentheses and indices", self.limits.parentheses)
        operand = self.primary()
        self.depth -= 1
        return Call(offset, PREFIX_FUNCTIONS[name], (operand,), True)

    def parenthesis(self) -> Expression:
        offset = self.offset
        self.at += 1
        if self.kind in TYPES:
            cast = self.kind
            self.at += 1
            self.expect(")")
            self.enter("parentheses and indices", self.limits.parentheses)
            operand = self.primary()
            self.depth -= 1
            return Cast(offset, cast, operand)
        inside = self.expression()
        self.expect(")")
        return inside

    def arguments(self, closing: str) -> tuple[Expression, ...]:
        found = [self.expression()]
        while self.accept(","):
            found.append(self.expression())
        self.expect(closing, f"',' or {closing!r}")
        return tuple(found)

    def name(self) -> Name:
        offset = self.offset
        name = self.identifier()
        return Name(offset, name, self.arguments("}") if self.accept("{") else ())

    def call(self, system: bool) -> Call:
        offset = self.offset
        name = self.identifier("the name of a module")
        self.expect("(")
        if self.accept(")"):
            return Call(offset, name, (), system)
        return Call(offset, name, self.arguments(")"), system)
