"""Configurations of a P system, and the applications that lead from one to the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from echoc.compiler.ir.algebra import Mode, Rule, System
from echoc.errors import EchoError

ENVIRONMENT = -1
"""The id by which an application binds the environment outside the skin."""

LARGEST = 2**63 - 1
"""The largest count of one object that compiled programs hold."""


class StepError(EchoError):
    """A step that cannot be made, or a claimed choice of applications that is none."""


@dataclass(frozen=True, slots=True)
class Application:
    """A rule and the membranes it binds, `times` times in one step.

    rule: index into `System.rules`; WAIT (`events.py`), 0 times: no rule, time passes to where a trigger may turn.
    membranes: ids of the cells: the holder first (for a rule without label the membrane around the inner ones,
        ENVIRONMENT outside the skin), then one for each of `Rule.inner` in order, then one for each `Send` whose target
        is `in` or `linked`, in order, then the cells of `link` and of `unlink` where the rule has them.
    after: mode GILLESPIE: the time from the configuration to this event.
    """

    rule: int
    membranes: tuple[int, ...]
    times: int = 1
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Membrane:
    """A cell of a configuration.

    id: stable for as long as the cell lives; of the parts of a divided cell the first keeps it.
    parent: id of the membrane around it; None for a skin and for every cell of a graph.
    objects: counts, at least 1 (an object that is not there has count 0).
    closed: steps for which the cell still neither fires nor receives; in the last of them `pending` leaves.
    pending: applications with a delay whose products are still to come.
    leaving: within a step, whether it is to dissolve at the end.
    """

    id: int
    label: str
    charge: int
    parent: int | None
    objects: Mapping[str, int]
    closed: int = 0
    pending: tuple[Application, ...] = ()
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Configuration:
    """A P system between two steps. Nothing changes one: `apply` makes a new one.

    cells: by id, in order of birth. `next_id` is the id that the next new cell gets.
    links: (from, to) pairs of ids.
    environment: counts outside the skin.
    step: steps done. time: of mode GILLESPIE, in the unit of the rate constants.
    triggered: (event, cell) pairs whose trigger holds; None: not looked at yet.
    pending: (time, (event, cell), values or nothing) of delayed events, in the order in which triggers turned.
    """

    cells: Mapping[int, Membrane]
    links: frozenset[tuple[int, int]] = frozenset()
    environment: Mapping[str, int] = field(default_factory=dict)
    step: int = 0
    time: float = 0.0
    next_id: int = 0
    triggered: frozenset[tuple[int, int]] | None = None
    pending: tuple[tuple[float, tuple[int, int], tuple[float, ...]], ...] = ()

    def objects(self, cell: int) -> Mapping[str, int]:
        """The counts in a cell, or in ENVIRONMENT."""
        return self.environment if cell == ENVIRONMENT else self.cells[cell].objects

    def children(self, cell: int) -> list[int]:
        """Ids of the cells directly inside `cell`, in order of birth; of ENVIRONMENT, those that nothing is around."""
        parent = None if cell == ENVIRONMENT else cell
        return [c.id for c in self.cells.values() if c.parent == parent]

    def around(self, cell: int) -> int:
        """The id of the membrane around a cell, ENVIRONMENT outside a skin or a cell of a graph."""
        parent = self.cells[cell].parent
        return ENVIRONMENT if parent is None else parent

    def linked(self, cell: int) -> list[int]:
        """Ids of the cells that a link leads to from `cell`, ascending."""
        return sorted(to for source, to in self.links if source == cell)

    def of(self, label: str) -> list[int]:
        """Ids of the cells with a label, in order of birth."""
        return [c.id for c in self.cells.values() if c.label == label]

    def canonical(self) -> tuple[object, ...]:
        """What two configurations of a tree have in common exactly if they differ in ids and order of cells only.

        The environment, then sorted (depth, label, charge, closed, objects, digest of the cell with all inside it).
        Links and the delayed products of closed cells are left out: compare these by ids.
        """
        depths = {cell: depth(self, cell) for cell in self.cells}
        inside: dict[int | None, list[str]] = {}
        entries = []
        for cell in sorted(self.cells.values(), key=lambda c: -depths[c.id]):
            content = (cell.label, cell.charge, cell.closed, tuple(sorted(cell.objects.items())))
            shape = repr((content, sorted(inside.pop(cell.id, []))))
            digest = sha256(shape.encode()).hexdigest()
            inside.setdefault(cell.parent, []).append(digest)
            entries.append((depths[cell.id], *content, digest))
        return (tuple(sorted(self.environment.items())), *sorted(entries))

    def __str__(self) -> str:
        lines = [f"step {self.step}" + (f", time {self.time:g}" if self.time else "")]
        if self.environment:
            lines.append(f"environment {_render(self.environment)}")
        for cell in self.cells.values():
            place = "" if cell.parent is None else f" in #{cell.parent}"
            charge = f" charge {cell.charge:+d}" if cell.charge else ""
            closed = f" closed for {cell.closed}" if cell.closed else ""
            lines.append(f"#{cell.id} '{cell.label}'{place}{charge}{closed}: {_render(cell.objects)}")
        return "\n".join(lines)


def _render(objects: Mapping[str, int]) -> str:
    return ", ".join(name if n == 1 else f"{name}*{n}" for name, n in sorted(objects.items())) or "nothing"


def depth(configuration: Configuration, cell: int) -> int:
    """How many membranes are around a cell: 0 for a skin."""
    result = 0
    parent = configuration.cells[cell].parent
    while parent is not None:
        parent = configuration.cells[parent].parent
        result += 1
    return result


def start(system: System) -> Configuration:
    """The start configuration, with what triggers bring about there; cell i of `System.cells` has the id i."""
    cells = {
        i: Membrane(i, cell.label, cell.charge, cell.parent, dict(cell.objects)) for i, cell in enumerate(system.cells)
    }
    configuration = Configuration(cells, frozenset(system.links), dict(system.environment), next_id=len(system.cells))
    for cell in cells.values():
        if holds_unbounded(system, cell):
            plain = {o: n for o, n in cell.objects.items() if o not in system.unbounded}
            cells[cell.id] = Membrane(cell.id, cell.label, cell.charge, cell.parent, plain)
    if system.events:
        from .events import settle

        configuration = settle(system, configuration)
    return configuration


def is_graph(system: System) -> bool:
    """Whether the cells are the nodes of a graph (kernel, spiking): then none of them is a skin."""
    flat = all(cell.parent is None for cell in system.cells)
    return flat and (system.mode is Mode.ORDERED or bool(system.links) or len(system.cells) > 1)


def is_skin(system: System, cell: Membrane) -> bool:
    """Whether a cell is a skin, which neither divides nor dissolves."""
    return cell.parent is None and not is_graph(system)


def holds_unbounded(system: System, cell: Membrane) -> bool:
    """Whether the objects of `System.unbounded` are there without limit (and so not counted) in a cell: in the skin."""
    return bool(system.unbounded) and is_skin(system, cell)


def describe(system: System, index: int) -> str:
    """A rule for a message: its place in the source if known, and its index."""
    where = str(system.rules[index].where)
    return f"rule {index}" + (f" ({where})" if where else "")


def num_targets(rule: Rule) -> int:
    """How many chosen targets an application of the rule carries."""
    return len(target_slots(rule))


def target_slots(rule: Rule) -> list[tuple[str, str]]:
    """(kind, label) of every target that an application chooses: sends `in` and `linked`, then `link`, `unlink`."""
    slots = [(str(s.target), s.label) for s in rule.send if s.target in ("in", "linked")]
    if rule.link is not None:
        slots.append(("link", rule.link))
    if rule.unlink is not None:
        slots.append(("unlink", rule.unlink))
    return slots


def consumed(rule: Rule, membranes: tuple[int, ...]) -> Counter[tuple[int, str]]:
    """What one application takes: counts by (cell, object)."""
    taken: Counter[tuple[int, str]] = Counter()
    bags = [rule.consume, *(inner.consume for inner in rule.inner)]
    for cell, objects in zip(membranes, bags, strict=False):
        for name, count in objects:
            taken[cell, name] += count
    return taken
