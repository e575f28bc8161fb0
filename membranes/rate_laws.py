"""Rate laws as expressions of counts: which are mass action, and which are differences of two."""

from __future__ import annotations

from echoc.compiler.ir.algebra import Bag
from echoc.compiler.ir.expression import Expression

from .mathml import Formulas


def mass_action(law: Expression, consume: Bag) -> float | None:
    """c where the law is c times the count of every reactant, each consumed once; None for any other law."""
    constant, factors = 1.0, []
    pending = [(law, False)]
    while pending:
        part, below = pending.pop()
        if part.op == "number":
            constant = constant / part.value if below and part.value else constant * (0 if below else part.value)
            if below and not part.value:
                return None
        elif part.op == "name" and not below:
            factors.append(part.symbol)
        elif part.op in ("mul", "div"):
            a, b = part.arguments
            pending += [(a, below), (b, below != (part.op == "div"))]
        else:
            return None
    alike = sorted(factors) == [o for o, _ in consume] and all(n == 1 for _, n in consume)
    return constant if alike and constant >= 0 else None


def subtracts(expression: Expression) -> bool:
    """Whether a difference, a negative or a negative number is anywhere in it."""
    if expression.op in ("sub", "neg") or (expression.op == "number" and expression.value < 0):
        return True
    return any(subtracts(a) for a in expression.arguments)


def halves(law: Expression, formulas: Formulas) -> tuple[Expression, Expression] | None:
    """forward and backward, without differences, of a law `forward - backward`, scaled or not."""
    if law.op == "sub" and not any(subtracts(a) for a in law.arguments):
        return law.arguments[0], law.arguments[1]
    if law.op not in ("mul", "div"):
        return None
    a, b = law.arguments
    for part, other, first in ((a, b, True), (b, a, False)):
        if subtracts(other) or (law.op == "div" and not first):
            continue
        found = halves(part, formulas)
        if found is not None:
            scaled = [formulas.node(law.op, *((h, other) if first else (other, h))) for h in found]
            return scaled[0], scaled[1]
    return None
