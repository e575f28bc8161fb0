"""Numerical P systems (Paun and Paun 2006), enzymatic ones included (Pavel, Arsene, Buiu 2010): the data.

A program `F(x) -> c1|v1 + ... + cn|vn` evaluates its production function on the values at the start of the step and
deals the result out: v_j gets c_j / (c1 + ... + cn) of it. Variables that occur in a production function that runs are
consumed (become 0) before the shares arrive. A program with an enzyme e runs only when e > min(|x| of its variables),
at the start of the step. Several programs of one membrane without enzymes: all run (the usual non-deterministic choice
of one is `one_program=True`, drawn uniformly by the seed). Values are float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from echoc.compiler.ir.algebra import Where
from echoc.compiler.ir.expression import Expression


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
