"""The moments at which a trigger turns by itself: its comparisons of time, solved for it."""

from __future__ import annotations

from typing import NamedTuple

from echoc.errors import CompileError

from .expression import TIME, Expression, call, evaluate, name, number

COMPARISONS = ("lt", "le", "eq")


class Turn(NamedTuple):
    """Where a comparison may change: at the time `moment` (over counts) itself, or right after it."""

    moment: Expression
    at: bool
    after: bool


def solve(trigger: Expression) -> tuple[Expression, tuple[Turn, ...]]:
    """The trigger with its comparisons of time turned into comparisons of TIME with a moment, and these moments.

    Counts staying as they are, the solved trigger is constant between its moments, in floating point too.
    Raises CompileError where time stands in anything but a comparison that is linear in it.
    """
    solver = _Solver()
    return solver.solved(trigger), tuple(solver.turns)


class _Solver:
    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.timed: dict[int, tuple[bool, Expression]] = {}

    def depends(self, expression: Expression) -> bool:
        """Whether time is anywhere in it."""
        known = self.timed.get(id(expression))
        if known is None:
            found = expression.symbol == TIME or any(self.depends(a) for a in expression.arguments)
            known = self.timed[id(expression)] = (found, expression)
        return known[0]

    def solved(self, expression: Expression) -> Expression:
        if not self.depends(expression):
            return expression
        if expression.op in COMPARISONS:
            left, right = (self.linear(a) for a in expression.arguments)
            if left is not None and right is not None:
                return self.comparison(expression.op, _fold("sub", left[0], right[0]), _fold("sub", left[1], right[1]))
        if expression.op == "name":
            raise CompileError("time is used in another way than in a comparison that is linear in it")
        return call(expression.op, *(self.solved(a) for a in expression.arguments))

    def comparison(self, op: str, slope: Expression, rest: Expression) -> Expression:
        """slope * time + rest < 0, or <=, =."""
        moment, time = _fold("div", _fold("neg", rest), slope), name(TIME)
        rising, falling, level = call(op, time, moment), call(op, moment, time), call(op, rest, number(0))
        if slope.op != "number":
            self.turns.append(Turn(moment, True, True))
            sinks = call("lt", slope, number(0))
            return call("where", call("lt", number(0), slope), rising, call("where", sinks, falling, level))
        if not slope.value:
            return level
        rises = slope.value > 0
        at, after = (op == "lt") == rises, (op == "le") == rises
        self.turns.append(Turn(moment, at or op == "eq", after or op == "eq"))
        return rising if rises else falling

    def linear(self, expression: Expression) -> tuple[Expression, Expression] | None:
        """(a, b), free of time, where the expression is a * time + b."""
        if not self.depends(expression):
            return number(0), expression
        if expression.op == "name":
            return number(1), number(0)
        parts = [self.linear(a) for a in expression.arguments]
        if any(p is None for p in parts):
            return None
        (a, b), *more = [p for p in parts if p is not None]
        match expression.op:
            case "neg":
                return _fold("neg", a), _fold("neg", b)
            case "add" | "sub":
                return _fold(expression.op, a, more[0][0]), _fold(expression.op, b, more[0][1])
            case "mul" if not self.depends(expression.arguments[1]):
                return _fold("mul", a, more[0][1]), _fold("mul", b, more[0][1])
            case "mul" if not self.depends(expression.arguments[0]):
                return _fold("mul", b, more[0][0]), _fold("mul", b, more[0][1])
            case "div" if not self.depends(expression.arguments[1]):
                return _fold("div", a, more[0][1]), _fold("div", b, more[0][1])
        return None


def _fold(op: str, *arguments: Expression) -> Expression:
    """A call, as a number where its arguments are numbers."""
    made = call(op, *arguments)
    return number(evaluate(made, {})) if all(a.op == "number" for a in arguments) else made
