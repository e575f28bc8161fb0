"""Rewriting of multisets in membranes. A step is choose, apply, fork, release; `cells` is linear as every state is.

The meanings are those of the interpreter (compiler/ir/oracle): a value of type cells is a configuration there, a choice
a list of applications. Random numbers are those of (seed, step) as the interpreter draws them; a compiled program draws
others, with the same distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from echoc.compiler.ir.node import Node
from echoc.compiler.ir.types import DType, StateType, TensorType, Type
from echoc.errors import IRError

from .row import Array, Env, Op

MANY = 1 << 24
CELLS = StateType("cells", (), DType.I64)
RULE = StateType("rule", (), DType.I64)
CHOICE = StateType("choice", (), DType.I64)
SCALAR = TensorType((), DType.I64)


def _wanted(inputs: tuple[Node, ...], types: tuple[Type, ...]) -> None:
    for place, (node, type_) in enumerate(zip(inputs, types, strict=False)):
        if node.type != type_:
            raise IRError(f"input {place} is {node.type}; wanted {type_}")


def _population(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Type:
    attrs["cells"]
    return CELLS


def _rewrite(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Type:
    attrs["index"]
    return RULE


def _choose(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Type:
    _wanted(inputs, (CELLS, SCALAR, SCALAR, *([RULE] * (len(inputs) - 3))))
    attrs["groups"]
    return CHOICE


def _change(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Type:
    _wanted(inputs, (CELLS, CHOICE))
    return CELLS


def _release(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Type:
    _wanted(inputs, (CELLS,))
    return CELLS


def _tally(inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> Type:
    _wanted(inputs, (CHOICE,))
    return SCALAR


@dataclass(frozen=True)
class Cells:
    """A value of type cells: the population node that it began with, and the configuration now."""

    start: Node
    configuration: Any


@dataclass(frozen=True)
class Choice:
    """A value of type choice: the system whose rules were chosen among, and the applications."""

    system: Any
    applications: tuple[Any, ...]


def _population_meaning(node: Node, args: tuple[Any, ...], env: Env) -> Cells:
    from echoc.compiler.ir import oracle
    from echoc.compiler.ir.systems import decoded

    return Cells(node, oracle.start(decoded(node, None)))


def _choose_meaning(node: Node, args: tuple[Any, ...], env: Env) -> Choice:
    from echoc.compiler.ir import oracle
    from echoc.compiler.ir.systems import decoded

    cells, seed, step = args[:3]
    system = decoded(cells.start, node)
    if oracle.halted(system, cells.configuration):
        return Choice(system, ())
    random = oracle.generator(int(seed), int(step))
    return Choice(system, tuple(oracle.choose(system, cells.configuration, random)))


def _apply_meaning(node: Node, args: tuple[Any, ...], env: Env) -> Cells:
    from echoc.compiler.ir import oracle

    cells, choice = args
    return Cells(cells.start, oracle.communicate(choice.system, cells.configuration, choice.applications))


def _fork_meaning(node: Node, args: tuple[Any, ...], env: Env) -> Cells:
    from echoc.compiler.ir import oracle

    cells, choice = args
    return Cells(cells.start, oracle.fork(choice.system, cells.configuration, choice.applications))


def _release_meaning(node: Node, args: tuple[Any, ...], env: Env) -> Cells:
    from echoc.compiler.ir import oracle
    from echoc.compiler.ir.systems import decoded

    (cells,) = args
    return Cells(cells.start, oracle.release(decoded(cells.start, None), cells.configuration))


def _tally_meaning(node: Node, args: tuple[Any, ...], env: Env) -> Array:
    return np.asarray(sum(a.times for a in args[0].applications), np.int64)


ROWS = [
    Op("population", (0, 0), _population, _population_meaning, "membranes as they are at the start"),
    Op("rewrite", (0, 0), _rewrite, lambda n, a, e: n, "a rewriting rule"),
    Op("choose", (3, MANY), _choose, _choose_meaning, "applications of rules over a configuration, by its mode"),
    Op("apply", (2, 2), _change, _apply_meaning, "objects taken, products in place, charges and links changed"),
    Op("fork", (2, 2), _change, _fork_meaning, "membranes that divide, divided"),
    Op("release", (1, 1), _release, _release_meaning, "membranes that dissolve, dissolved"),
    Op("tally", (1, 1), _tally, _tally_meaning, "how many applications there are"),
]
