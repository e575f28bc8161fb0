"""Which rules can be applied where: bindings of rules to membranes, on the configuration at the start of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product

from echoc.compiler.ir.algebra import Bag, Guard, Mode, Priority, Rule, System

from .configuration import (
    ENVIRONMENT,
    Configuration,
    StepError,
    consumed,
    holds_unbounded,
    is_skin,
    target_slots,
)

Binding = tuple[int, tuple[int, ...]]
"""A rule with its holder and inner membranes; targets are chosen afterwards."""


def holds(guard: Guard, counts: Mapping[str, float]) -> bool:
    """Whether a guard is true of counts (absent: 0; math.inf for unlimited supply)."""
    n = counts.get(guard.object, 0)
    match guard.op:
        case "ge":
            return n >= guard.count
        case "gt":
            return n > guard.count
        case "le":
            return n <= guard.count
        case "lt":
            return n < guard.count
        case "eq":
            return n == guard.count
        case "ne":
            return n != guard.count
        case "all":
            return all(holds(part, counts) for part in guard.parts)
        case "any":
            return any(holds(part, counts) for part in guard.parts)
        case "not":
            return not any(holds(part, counts) for part in guard.parts)
        case "in":
            if n == math.inf:
                return False
            if n < guard.threshold:
                return n in guard.starts
            return (n - guard.threshold) % guard.period in guard.residues
    raise StepError(f"unknown guard {guard.op!r}; known: ge, gt, le, lt, eq, ne, all, any, not, in")


def counts_of(system: System, configuration: Configuration, cell: int) -> Mapping[str, float]:
    """The counts in a cell, math.inf for what is there in unlimited supply."""
    if cell != ENVIRONMENT and holds_unbounded(system, configuration.cells[cell]):
        return {**configuration.objects(cell), **dict.fromkeys(system.unbounded, math.inf)}
    return configuration.objects(cell)


class Bindings:
    """The bindings of all rules that can be applied at least once on a configuration, each taken alone."""

    def __init__(self, system: System, configuration: Configuration) -> None:
        self.system = system
        self.configuration = configuration
        self.counts = {cell: counts_of(system, configuration, cell) for cell in (ENVIRONMENT, *configuration.cells)}
        self.inside: dict[int, list[int]] = {cell: [] for cell in self.counts}
        self.by_label: dict[str, list[int]] = {}
        self.by_object: dict[tuple[str, str], list[int]] = {}
        self.links: dict[int, list[int]] = {cell: [] for cell in self.counts}
        for cell in configuration.cells.values():
            self.inside[configuration.around(cell.id)].append(cell.id)
            self.by_label.setdefault(cell.label, []).append(cell.id)
            for name in self.counts[cell.id]:
                self.by_object.setdefault((cell.label, name), []).append(cell.id)
        for source, to in sorted(configuration.links):
            self.links[source].append(to)

    def all(self) -> list[Binding]:
        """Every applicable binding, rules in order; those that strong priority bars are left out."""
        found = [
            (index, membranes)
            for index, rule in enumerate(self.system.rules)
            for membranes in self._membranes(rule)
            if self.applicable(rule, membranes)
        ]
        if self.system.priority is Priority.STRONG:
            first: dict[int, int] = {}
            for index, membranes in found:
                level = self.system.rules[index].priority
                if level is not None:
                    home = home_of(self.system.rules[index], membranes)
                    first[home] = min(level, first.get(home, level))
            found = [b for b in found if not self._barred(b, first)]
        return found

    def _barred(self, binding: Binding, first: Mapping[int, int]) -> bool:
        rule = self.system.rules[binding[0]]
        return rule.priority is not None and first[home_of(rule, binding[1])] < rule.priority

    def _holding(self, label: str, objects: Bag, charge: int | None) -> list[int]:
        """Cells of a label and charge (None: any) that hold the objects, in order of birth."""
        cells = self.by_object.get((label, objects[0][0]), []) if objects else self.by_label.get(label, [])
        return [
            cell
            for cell in cells
            if charge in (None, self.configuration.cells[cell].charge)
            and all(self.counts[cell].get(name, 0) >= count for name, count in objects)
        ]

    def _membranes(self, rule: Rule) -> Iterator[tuple[int, ...]]:
        """Every binding of holder and inner membranes by label, nesting, charge and objects."""
        slots: list[dict[int, list[int]]] = []
        for inner in rule.inner:
            slots.append({})
            for cell in self._holding(inner.label, inner.consume, inner.charge):
                slots[-1].setdefault(self.configuration.around(cell), []).append(cell)
        labelled = rule.label is not None
        for holder in self._holding(rule.home, rule.consume, rule.charge) if labelled else sorted(slots[0]):
            for chosen in product(*(slot.get(holder, []) for slot in slots)):
                if len(set(chosen)) == len(chosen):
                    yield (holder, *chosen)

    def fits(self, rule: Rule, membranes: tuple[int, ...]) -> str:
        """Why a rule cannot bind these membranes, whatever is in them (labels, nesting, charges, structure), or ""."""
        cells = self.configuration.cells
        if len(membranes) != 1 + len(rule.inner):
            return f"binds {1 + len(rule.inner)} membranes before its targets; found {len(membranes)}"
        if len(set(membranes)) != len(membranes):
            return "binds a membrane twice"
        holder, *chosen = membranes
        for cell in membranes:
            if cell not in cells and not (cell == ENVIRONMENT and cell == holder and rule.label is None):
                return f"there is no membrane #{cell}"
        if rule.label is not None and cells[holder].label != rule.label:
            return f"needs the label {rule.label}; membrane #{holder} has {cells[holder].label}"
        if rule.charge is not None and rule.charge != (0 if holder == ENVIRONMENT else cells[holder].charge):
            return f"needs the charge {rule.charge} of membrane #{holder}"
        for cell, inner in zip(chosen, rule.inner, strict=True):
            if self.configuration.around(cell) != holder:
                return f"membrane #{cell} is not directly inside #{holder}"
            if cells[cell].label != inner.label:
                return f"needs the label {inner.label}; membrane #{cell} has {cells[cell].label}"
            if inner.charge not in (None, cells[cell].charge):
                return f"needs the charge {inner.charge}; membrane #{cell} has {cells[cell].charge}"
            if len(inner.results) != 1 and is_skin(self.system, cells[cell]):
                return f"membrane #{cell} is a skin, which neither divides nor dissolves"
        if rule.divide and is_skin(self.system, cells[holder]):
            return f"membrane #{holder} is a skin, which does not divide"
        closed = [cell for cell in membranes if cell != ENVIRONMENT and cells[cell].closed]
        return f"membrane #{closed[0]} is closed" if closed else ""

    def permits(self, rule: Rule, membranes: tuple[int, ...]) -> str:
        """Why the objects of the configuration do not permit one application by itself; or ""."""
        here = self.counts[membranes[0]]
        if rule.probability == 0:
            return "has the probability 0"
        if rule.guard is not None and not holds(rule.guard, here):
            return f"has a guard that is false in membrane #{membranes[0]}"
        for name, count in rule.promoters:
            if here.get(name, 0) < count:
                return f"lacks its promoter {name} in membrane #{membranes[0]}"
        for name, count in rule.inhibitors:
            if here.get(name, 0) >= count:
                return f"is inhibited by {name} in membrane #{membranes[0]}"
        for (cell, name), count in consumed(rule, membranes).items():
            if self.counts[cell].get(name, 0) < count:
                return f"needs {count} of {name} in membrane #{cell}; there are {self.counts[cell].get(name, 0)}"
        for kind, label in target_slots(rule):
            if not self.targets(membranes[0], kind, label):
                return f"has no membrane {label} to choose for '{kind}'"
        return ""

    def applicable(self, rule: Rule, membranes: tuple[int, ...]) -> bool:
        """Whether one application by itself is possible on the configuration."""
        return not self.fits(rule, membranes) and not self.permits(rule, membranes)

    def targets(self, holder: int, kind: str, label: str) -> list[int]:
        """The cells among which a target is chosen, by kind as in `target_slots`."""
        cells = self.configuration.cells
        if kind == "in":
            return [cell for cell in self.inside[holder] if cells[cell].label == label]
        linked = [cell for cell in self.links[holder] if cells[cell].label == label]
        if kind == "link":
            return [cell for cell in self.by_label.get(label, []) if cell != holder and cell not in linked]
        return linked


def home_of(rule: Rule, membranes: tuple[int, ...]) -> int:
    """The cell whose rules a rule has priority relations with: its holder, or its first inner membrane."""
    return membranes[0] if rule.label is not None else membranes[1]


def subjects(rule: Rule, membranes: tuple[int, ...]) -> tuple[int, ...]:
    """The cells in which the bound of the rule's group counts."""
    return membranes[1 : 1 + len(rule.inner)] if rule.inner else membranes[:1]


def replaces(system: System, rule: Rule) -> bool:
    """Whether the rule replaces its holder so that no later group runs there (mode ORDERED)."""
    return bool(rule.divide) or (rule.dissolve and system.mode is Mode.ORDERED)
