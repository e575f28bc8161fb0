"""P systems as programs: rules are nodes, one step is choose, apply, fork and release on the state "cells".

    rule @start { %0 = population() {cells=[...]}          next "cells" = %0 }
    rule @step  { %0 = state() {name="cells"}
                  %1 = port() {name="seed"}  %2 = port() {name="step"}
                  %3 = rewrite() {label="1", consume=[["a", 1]], produce=[["b", 2]]}
                  ...
                  %9 = choose(%0, %1, %2, %3, ...) {groups=[...], mode="parallel", priority="strong"}
                  %10 = apply(%0, %9)  %11 = fork(%10, %9)  %12 = release(%11)
                  %13 = tally(%9)      out "applied" = %13       next "cells" = %12 }

The membranes of the program are the kinds of membranes of the start configuration, nested as they are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from echoc.errors import IRError

from .algebra import Bag, Cell, Event, Group, Mode, Priority, Rule, System
from .encoding import attributes, decode, from_attributes
from .membrane import Membrane, Port, Program, State
from .membrane import Rule as ProgramRule
from .node import Node, make
from .types import DType, StateType, TensorType

CELLS = StateType("cells", (), DType.I64)
STATE, START, STEP = "cells", "start", "step"


@dataclass(frozen=True)
class Start:
    """What the op `population` carries: the start configuration and what the system says of itself."""

    cells: tuple[Cell, ...]
    links: tuple[tuple[int, int], ...] = ()
    environment: Bag = ()
    unbounded: frozenset[str] = frozenset()
    model: str = ""
    name: str = ""
    features: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Derivation:
    """What the op `choose` carries."""

    groups: tuple[Group, ...]
    mode: Mode = Mode.PARALLEL
    priority: Priority = Priority.STRONG
    events: tuple[Event, ...] = ()


def program_of(system: System) -> Program:
    """The program of a system."""
    start = Start(
        system.cells, system.links, system.environment, system.unbounded, system.model, system.name,
        dict(system.features),
    )  # fmt: skip
    population = make("population", **attributes(start))
    cells = _state()
    seed, step = _port("seed"), _port("step")
    rules = [make("rewrite", **{"index": i, **attributes(rule)}) for i, rule in enumerate(system.rules)]
    derivation = Derivation(system.groups, system.mode, system.priority, system.events)
    chosen = make("choose", cells, seed, step, *rules, **attributes(derivation))
    applied = make("apply", cells, chosen)
    after = make("release", make("fork", applied, chosen))
    integer = TensorType((), DType.I64)
    skin = Membrane(
        _identifier(system.name or system.model or "system"),
        states=(State(STATE, CELLS),),
        ports=(Port("seed", "in", integer), Port("step", "in", integer), Port("applied", "out", integer)),
        rules=(
            ProgramRule(START, (), ((STATE, population),)),
            ProgramRule(STEP, (("applied", make("tally", chosen)),), ((STATE, after),)),
        ),
        children=tuple(_kinds(system)),
    )
    return Program(skin)


def _state() -> Node:
    return make("state", name=STATE, kind=CELLS.kind, shape=CELLS.shape, dtype=CELLS.dtype)


def _port(name: str) -> Node:
    return make("port", name=name, shape=(), dtype=DType.I64)


def _kinds(system: System) -> list[Membrane]:
    """The labels of the start configuration, nested as its cells are, cells of one label in one place merged."""
    inside: list[dict[str, Membrane]] = [{} for _ in system.cells]
    roots: dict[str, Membrane] = {}
    for cell, children in zip(reversed(system.cells), reversed(inside), strict=True):  # children before parents
        membrane = Membrane(_identifier(cell.label), children=tuple(children[k] for k in sorted(children)))
        place = roots if cell.parent is None else inside[cell.parent]
        known = place.get(membrane.name)
        place[membrane.name] = membrane if known is None else _merged(known, membrane)
    return [roots[k] for k in sorted(roots)]


def _merged(a: Membrane, b: Membrane) -> Membrane:
    names = {m.name: m for m in a.children}
    for child in b.children:
        names[child.name] = _merged(names[child.name], child) if child.name in names else child
    return Membrane(a.name, children=tuple(names[k] for k in sorted(names)))


def _identifier(text: str) -> str:
    """Fit for a membrane's name in the text form: no blanks."""
    return "".join(c if c.isprintable() and not c.isspace() else "_" for c in text) or "_"


def is_system(program: Program) -> bool:
    """Whether a program is that of a P system."""
    return any(s.type.kind == CELLS.kind for s in program.skin.states)


def system_of(program: Program) -> System:
    """The inverse of `program_of`. Raises IRError where the program has another form."""
    start = _next(program, START)
    if start.op != "population":
        raise IRError(f"rule @{START} makes the state {STATE!r} by {start.op}; wanted population")
    node = _next(program, STEP)
    while node.op in ("release", "fork"):
        node = node.inputs[0]
    if node.op != "apply" or node.inputs[1].op != "choose":
        raise IRError(f"rule @{STEP} makes the state {STATE!r} by {node.op}; wanted release(fork(apply(choose)))")
    return decoded(start, node.inputs[1])


def decoded(start: Node, choose: Node | None) -> System:
    """The system of a population node and a choose node; without one, a system that has no rules."""
    begin = from_attributes(Start, dict(start.attrs))
    derivation = Derivation(()) if choose is None else from_attributes(Derivation, dict(choose.attrs))
    return System(
        begin.model, begin.cells, () if choose is None else rules_of(choose), derivation.groups, derivation.mode,
        derivation.priority, begin.links, begin.unbounded, begin.environment, begin.name, dict(begin.features),
        derivation.events,
    )  # fmt: skip


def rules_of(choose: Node) -> tuple[Rule, ...]:
    """The rules that a choose node takes, in the order of their numbers."""
    found = {}
    for node in choose.inputs[3:]:
        values = dict(node.attrs)
        index = decode(int, values.pop("index", None))
        found[index] = from_attributes(Rule, values)
    if sorted(found) != list(range(len(choose.inputs) - 3)):
        raise IRError("the rules of a choose are not numbered 0, 1, 2, ...")
    return tuple(found[i] for i in range(len(found)))


def _next(program: Program, rule: str) -> Node:
    for name, node in program.skin.rule(rule).next_states:
        if name == STATE:
            return node
    raise IRError(f"rule @{rule} does not make the state {STATE!r}")
