"""Numerical P systems (Paun and Paun 2006), enzymatic ones included (Pavel, Arsene, Buiu 2010): the data.

A program `F(x) -> c1|v1 + ... + cn|vn` evaluates its production function on the values at the start of the step and
deals the result out: v_j gets c_j / (c1 + ... + cn) of it. Variables that occur in a production function that runs are
consumed (become 0) before the shares arrive. A program with an enzyme e runs only when e > min(|x| of its variables) at
the start of the step; in a `signed` system when e > min(x of its variables), or when it has no variables. Several
programs of one membrane without enzymes: all run (the usual non-deterministic choice of one is `one_program=True`,
drawn uniformly, see `draw`). Values are float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from echoc.compiler.ir.algebra import Where
from echoc.compiler.ir.expression import Expression
from echoc.compiler.ir.ops.philox import random_bits


@dataclass(frozen=True, slots=True)
class Production:
    """One program of one membrane: its function, the shares of the repartition protocol, and its enzyme if it has."""

    membrane: str
    function: Expression
    shares: tuple[tuple[float, str], ...]
    enzyme: str | None = None
    where: Where = field(default_factory=Where)


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a membrane with its initial value. Names are unique in the whole system."""

    name: str
    membrane: str
    value: float


@dataclass(frozen=True, slots=True)
class NumericalSystem:
    """Membranes as (label, parent label or None), parents first; variables in source order; programs."""

    membranes: tuple[tuple[str, str | None], ...]
    variables: tuple[Variable, ...]
    programs: tuple[Production, ...]
    one_program: bool = False
    name: str = ""
    signed: bool = False

    def choices(self) -> dict[int, list[int]]:
        """Where one of several programs is drawn in each step: the membrane's number, and those programs' indices."""
        if not self.one_program:
            return {}
        free: dict[str, list[int]] = {}
        for i, program in enumerate(self.programs):
            if program.enzyme is None:
                free.setdefault(program.membrane, []).append(i)
        found = ((number, free.get(label, [])) for number, (label, _) in enumerate(self.membranes))
        return {number: programs for number, programs in found if len(programs) > 1}


def variables(expression: Expression) -> list[str]:
    """The names in a production function, each once. Parts that it has several times are looked at once."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    stack = [expression]
    while stack:
        part = stack.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if part.op == "name":
            found[part.symbol] = None
        stack += reversed(part.arguments)
    return list(found)


def draw(count: int, membrane: int, step: int, seed: int = 0, run: int = 0) -> int:
    """The place in 0 .. count - 1 that a membrane (by number) draws in a step: a function of these numbers alone.

    It is floor(count * bits / 2^32) of 32 random bits, so that no place is likelier than another by more than 2^-32.
    Seeds are taken modulo 2^64, runs modulo 2^32.
    """
    bits = random_bits(seed % (1 << 64), step, (run << 32 | membrane) % (1 << 64))
    return count * int(bits) >> 32
