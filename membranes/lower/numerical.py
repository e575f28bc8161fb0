"""Numerical P systems as tensor programs: one step is plain float64 arithmetic.

The values of all variables are one float64 state of the skin; membranes only say where programs and variables belong,
so that the tree costs nothing at run time. A step works on one row of them, [1, n], which makes it one kernel. States
start as zeros, so a step counter lets the first step take the initial values instead. Where a membrane draws one of its
programs, the counter numbers the draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from echoc.compiler.ir import DType, Membrane, Node, Port, Program, Rule, StateType, TensorType, make
from echoc.compiler.ir.expression import Expression
from echoc.compiler.ir.membrane import State
from echoc.compiler.ir.verify import verify
from echoc.errors import CompileError
from echoc.membranes.numerical import NumericalSystem, Production, variables

MAX_EXACT_POWER = 16  # integer exponents up to it are products
MAX_HEIGHT = 400  # of a production function's tree


def lower(system: NumericalSystem) -> Program:
    """The program whose rule `step` does one step of the system.

    State `values` (f64[n], n the number of variables, in source order) and `steps` (i64, the steps done); out port
    `values` (f64[n]): the values after the step. A system that chooses has the in ports `seed` and `run` (i64), which
    every step of a run is given. The result is that of the interpreter, but for rounding (compilers fuse a product with
    a sum) and for functions where they have no value: infinite where it says NaN.

    Raises CompileError for a system without variables, for shares that add up to 0, for names that are no variables or
    membranes, and for functions nested more than 400 deep.
    """
    if not system.variables:
        raise CompileError("a numerical P system without variables has no step; it needs at least one variable")
    _check(system)
    shape = (len(system.variables),)
    steps = make("state", name="steps", kind="value", shape=(), dtype="i64")
    values = make("state", name="values", kind="value", shape=shape, dtype="f64")
    count = make("read", steps)
    before = _before(system, _row(count), make("reshape", make("read", values), shape=(1, *shape)))
    after = _step(system, before, _drawn(system, _row(count)))
    stacked = make("reshape", _together([after[v.name] for v in system.variables]), shape=shape)
    rule = Rule(
        "step",
        (("values", stacked),),
        (("values", make("write", values, stacked)), ("steps", make("write", steps, make("add", count, _integer(1))))),
    )
    states = (State("values", StateType("value", shape, DType.F64)), State("steps", StateType("value", (), DType.I64)))
    numbered = [Port(name, "in", TensorType((), DType.I64)) for name in ("seed", "run") if system.choices()]
    skin = Membrane("skin", states, (*numbered, Port("values", "out", TensorType(shape, DType.F64))), (rule,))
    return verify(Program(skin, {}))


def _check(system: NumericalSystem) -> None:
    known = {v.name for v in system.variables}
    labels = {label for label, _ in system.membranes}
    for i, program in enumerate(system.programs):
        at = f"{program.where}: " if str(program.where) else ""
        if program.membrane not in labels:
            raise CompileError(f"{at}program {i} is of membrane {program.membrane}, which the system does not have")
        if math.fsum(share for share, _ in program.shares) == 0:
            raise CompileError(f"{at}the shares of program {i} add up to 0; there is nothing to deal out by")
        if _height(program.function) > MAX_HEIGHT:
            raise CompileError(f"{at}the function of program {i} is nested more than {MAX_HEIGHT} deep; split it up")
        used = [*variables(program.function), *(v for _, v in program.shares), *filter(None, [program.enzyme])]
        for name in used:
            if name not in known:
                raise CompileError(f"{at}program {i} uses {name!r}, which is not a variable of the system")


def _height(expression: Expression) -> int:
    """The height of the tree, found without recursion."""
    height, level = 0, [expression]
    while level and height <= MAX_HEIGHT:
        level = list({id(a): a for e in level for a in e.arguments}.values())
        height += 1
    return height


def _const(value: float) -> Node:
    return make("const", value=float(value), dtype="f64")


def _integer(value: int) -> Node:
    return make("const", value=value, dtype="i64")


def _drawn(system: NumericalSystem, steps: Node) -> dict[int, Node]:
    """Of each program that stands for choice, whether it is the one that its membrane draws (`numerical.draw`)."""
    standing = [(m, i, p, len(ps)) for m, ps in system.choices().items() for i, p in enumerate(ps)]
    if not standing:
        return {}
    membranes, places, programs, counts = zip(*standing, strict=True)
    seed, run = (_row(make("port", name=name, shape=(), dtype="i64")) for name in ("seed", "run"))
    bits = make("random_bits", seed, steps, make("add", make("mul", run, _integer(1 << 32)), _integers(membranes)))
    drawn = make("floordiv", make("mul", bits, _integers(counts)), _integer(1 << 32))
    chosen = make("eq", drawn, _integers(places))
    return {p: make("slice", chosen, starts=(0, i), stops=(1, i + 1), steps=(1, 1)) for i, p in enumerate(programs)}


def _integers(values: Sequence[int]) -> Node:
    return _together([_row(_integer(value)) for value in values])


def _row(x: Node) -> Node:
    """A scalar as a row of one element."""
    return make("reshape", x, shape=(1, 1)) if x.shape == () else x


def _together(rows: list[Node]) -> Node:
    """Rows side by side: a balanced tree of pairs, which cuts a loop over them in the middle."""
    if len(rows) == 1:
        return rows[0]
    half = len(rows) // 2
    return make("concat", _together(rows[:half]), _together(rows[half:]), axis=1)


def _before(system: NumericalSystem, steps: Node, values: Node) -> dict[str, Node]:
    """Each variable at the start of the step, f64[1, 1]."""
    first = make("eq", steps, _integer(0))
    before = {}
    for i, variable in enumerate(system.variables):
        held = make("slice", values, starts=(0, i), stops=(1, i + 1), steps=(1, 1))
        before[variable.name] = make("where", first, _const(variable.value), held)
    return before


def _step(system: NumericalSystem, before: Mapping[str, Node], drawn: Mapping[int, Node]) -> dict[str, Node]:
    """Each variable after the step: consumed ones are 0, then the shares are added in program order."""
    runs = [drawn.get(i, _runs(program, before, system.signed)) for i, program in enumerate(system.programs)]
    after = dict(before)
    for program, running in zip(system.programs, runs, strict=True):
        for name in variables(program.function):
            after[name] = _zero() if running is None else make("where", running, _zero(), after[name])
    done: dict[int, Node] = {}
    for program, running in zip(system.programs, runs, strict=True):
        amount = _value(program.function, before, done)
        total = _const(math.fsum(share for share, _ in program.shares))
        for share, name in program.shares:
            part = _row(make("div", make("mul", amount, _const(share)), total))
            sum_ = make("add", after[name], part)
            after[name] = sum_ if running is None else make("where", running, sum_, after[name])
    return {name: _row(node) for name, node in after.items()}


def _zero() -> Node:
    return _const(0.0)


def _runs(program: Production, before: Mapping[str, Node], signed: bool) -> Node | None:
    """Whether the program's enzyme lets it run; None: always."""
    read = [before[name] for name in variables(program.function)]
    if program.enzyme is None or (signed and not read):
        return None
    sizes = read if signed else [make("abs", x) for x in read]
    least = sizes[0] if sizes else _zero()
    for size in sizes[1:]:
        least = make("minimum", least, size)
    return make("lt", least, before[program.enzyme])


# expressions

_SAME = {
    "add": "add", "sub": "sub", "mul": "mul", "div": "div", "pow": "pow", "neg": "neg", "exp": "exp", "log": "log",
    "sqrt": "sqrt", "sin": "sin", "cos": "cos", "tanh": "tanh", "atan": "atan", "abs": "abs", "floor": "floor",
    "ceil": "ceil", "min": "minimum", "max": "maximum",
}  # fmt: skip


def _truth(x: Node) -> Node:
    return make("ne", x, _zero())


def _number(condition: Node) -> Node:
    return make("cast", condition, dtype="f64")


_OTHER: dict[str, Callable[..., Node]] = {
    "tan": lambda x: make("div", make("sin", x), make("cos", x)),
    "lt": lambda a, b: _number(make("lt", a, b)),
    "le": lambda a, b: _number(make("le", a, b)),
    "eq": lambda a, b: _number(make("eq", a, b)),
    "and": lambda a, b: _number(make("and", _truth(a), _truth(b))),
    "or": lambda a, b: _number(make("or", _truth(a), _truth(b))),
    "not": lambda a: _number(make("eq", a, _zero())),
    "where": lambda c, a, b: make("where", _truth(c), a, b),
}


def _value(expression: Expression, values: Mapping[str, Node], done: dict[int, Node]) -> Node:
    """The expression over the nodes of its names; `done` has the parts that were met before, by identity."""
    stack = [expression]
    while stack:
        part = stack[-1]
        waiting = [a for a in part.arguments if id(a) not in done]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        done[id(part)] = _applied(part, [done[id(a)] for a in part.arguments], values)
    return done[id(expression)]


def _applied(expression: Expression, arguments: list[Node], values: Mapping[str, Node]) -> Node:
    if expression.op == "number":
        return _const(expression.value)
    if expression.op == "name":
        return values[expression.symbol]
    if expression.op == "pow" and (exponent := _small_integer(expression.arguments[1])) is not None:
        return _product(arguments[0], exponent)
    made = make(_SAME[expression.op], *arguments) if expression.op in _SAME else _OTHER[expression.op](*arguments)
    return _row(made)


def _small_integer(expression: Expression) -> int | None:
    value = expression.value
    small = expression.op == "number" and 0 <= value <= MAX_EXACT_POWER and value == int(value)
    return int(value) if small else None


def _product(base: Node, exponent: int) -> Node:
    """base^exponent as a chain of products."""
    if exponent == 0:
        return _const(1.0)
    result = base
    for _ in range(exponent - 1):
        result = make("mul", result, base)
    return result
