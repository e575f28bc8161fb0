"""Which sequence lengths a traced graph is right for, read from torch's complaint about its own guards."""

from __future__ import annotations

import ast
import re
from typing import Any

import numpy as np

_LENGTH = re.compile(r"L\['\w+'\]\.size\(\)\[1\]")
_GUARD = re.compile(r"generated guard (.*?)\.?(?:\n|$)")
_BINARY: dict[type[ast.AST], Any] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod,
}
_COMPARE: dict[type[ast.AST], Any] = {
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
}
_CALLS: dict[str, Any] = {"min": np.minimum, "max": np.maximum, "Mod": np.mod, "FloorDiv": np.floor_divide}


def admissible_length(message: str, longest: int) -> int | None:
    """The largest n <= longest such that every length in 2..n satisfies all guards that torch could not prove.

    Torch compares a guard with the range of the length by rewriting and gives up early; here each guard is evaluated
    for every single length. None when the message is about something else, or no such n of at least 2 exists.
    """
    guards = _GUARD.findall(message)
    if not guards or "specialized it to be a constant" in message:
        return None
    lengths = np.arange(2, longest + 1, dtype=np.int64)
    holds = np.ones(lengths.shape, dtype=np.bool_)
    for guard in guards:
        try:
            tree = ast.parse(_LENGTH.sub("S", guard), mode="eval")
            holds &= np.asarray(_evaluate(tree.body, lengths), dtype=np.bool_)
        except (SyntaxError, KeyError, TypeError, ValueError):
            return None
    first_failure = int(np.argmin(holds)) if not holds.all() else len(lengths)
    return first_failure + 1 if first_failure > 0 else None


def _evaluate(node: ast.AST, lengths: Any) -> Any:
    """The value of an integer or boolean expression in S for every length at once; KeyError for anything else."""
    match node:
        case ast.Name(id="S"):
            return lengths
        case ast.Constant(value=int(value)):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return np.negative(_evaluate(operand, lengths))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_evaluate(operand, lengths))
        case ast.BinOp(left=left, op=operation, right=right):
            return _BINARY[type(operation)](_evaluate(left, lengths), _evaluate(right, lengths))
        case ast.BoolOp(op=operation, values=values):
            join = np.logical_and if isinstance(operation, ast.And) else np.logical_or
            return join.reduce([np.broadcast_to(_evaluate(value, lengths), lengths.shape) for value in values])
        case ast.Compare(left=left, ops=[operation], comparators=[right]):
            return _COMPARE[type(operation)](_evaluate(left, lengths), _evaluate(right, lengths))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _CALLS[name](*(_evaluate(argument, lengths) for argument in arguments))
    raise KeyError(type(node).__name__)
