"""A choice in the making: what the applications chosen so far have taken, bounded and claimed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping

from echoc.compiler.ir.algebra import Bound, Priority, Rule, System

from .binding import Binding, Bindings, home_of, replaces, subjects
from .configuration import Configuration, consumed, describe

Key = tuple[int, Hashable]


def claims(system: System, index: int, membranes: tuple[int, ...]) -> dict[Key, object]:
    """What an application fixes for the step: (cell, property) -> value.

    Applications of a step agree on every claim. A value that is the application's own (`structure`) makes it the only
    one: dividing, dissolving as an inner membrane, changing links, closing a neuron.
    """
    rule = system.rules[index]
    holder = membranes[0]
    claimed: dict[Key, object] = {}
    if rule.new_charge is not None:
        claimed[holder, "charge"] = rule.new_charge
    if rule.divide or rule.link is not None or rule.unlink is not None or replaces(system, rule):
        claimed[holder, "structure"] = ("only", index, membranes)
    if rule.delay:
        claimed[holder, "delay"] = ("only", index, membranes)
    for cell, inner in zip(membranes[1:], rule.inner, strict=False):
        if len(inner.results) != 1:
            claimed[cell, "structure"] = ("only", index, membranes)
            continue
        result = inner.results[0]
        if result.charge is not None:
            claimed[cell, "charge"] = result.charge
        if result.label != inner.label:
            claimed[cell, "structure"] = ("label", result.label)
    return claimed


def _sole(value: object) -> bool:
    return isinstance(value, tuple) and value[0] == "only"


class Draft:
    """The applications chosen so far in a step, and what room they leave for others.

    Room never grows while a draft is filled: objects are only taken, limits only reached, claims only added.
    """

    def __init__(self, system: System, configuration: Configuration, bindings: Bindings) -> None:
        self.system = system
        self.configuration = configuration
        self.left: dict[int, dict[str, float]] = {c: dict(n) for c, n in bindings.counts.items()}
        self.times: Counter[Binding] = Counter()
        self.used: Counter[tuple[int, int]] = Counter()  # applications by (group, subject)
        self.done: dict[tuple[int, int], int] = {}  # rules of a SEQUENCE that have run, by (group, subject)
        self.replaced: dict[int, int] = {}  # group that replaced a cell (mode ORDERED)
        self.claimed: dict[Key, object] = {}
        self.group_of = {rule: g for g, group in enumerate(system.groups) for rule in group.rules}
        self._consumed: dict[Binding, Counter[tuple[int, str]]] = {}
        self._claims: dict[Binding, dict[Key, object]] = {}

    def takes(self, binding: Binding) -> Mapping[tuple[int, str], int]:
        """What one application takes, by (cell, object)."""
        if binding not in self._consumed:
            self._consumed[binding] = consumed(self.system.rules[binding[0]], binding[1])
        return self._consumed[binding]

    def claims(self, binding: Binding) -> Mapping[Key, object]:
        """What it claims, as `claims` says."""
        if binding not in self._claims:
            self._claims[binding] = claims(self.system, *binding)
        return self._claims[binding]

    def rule(self, binding: Binding) -> Rule:
        return self.system.rules[binding[0]]

    def supply(self, binding: Binding) -> float:
        """How many applications the objects left suffice for; math.inf where it takes nothing that runs out."""
        room = math.inf
        for (cell, name), count in self.takes(binding).items():
            there = self.left[cell].get(name, 0)
            if there != math.inf:
                room = min(room, int(there) // count)
        return room

    def clash(self, binding: Binding) -> Key | None:
        """The first claim of the binding that contradicts one already made, or None."""
        for key, value in self.claims(binding).items():
            if key in self.claimed and (self.claimed[key] != value or _sole(value)):
                return key
        return None

    def limit(self, binding: Binding, *, bounded: bool = True) -> float:
        """How many applications its group's bound and its own nature still allow. `bounded` False: only its nature."""
        only = any(_sole(value) for value in self.claims(binding).values())
        room = 1 if only else math.inf
        if not bounded:
            return room
        group = self.system.groups[self.group_of[binding[0]]]
        cells = subjects(self.rule(binding), binding[1])
        g = self.group_of[binding[0]]
        if group.bound in (Bound.AT_MOST, Bound.CHOICE):
            most = group.limit if group.bound is Bound.AT_MOST else 1
            room = min(room, *(most - self.used[g, cell] for cell in cells))
        elif group.bound is Bound.SEQUENCE:
            place = group.rules.index(binding[0])
            room = min(room, 1 if all(self.done.get((g, cell), 0) == place for cell in cells) else 0)
        return room

    def room(self, binding: Binding, *, bounded: bool = True) -> float:
        """How many more times a binding can be applied; math.inf without end."""
        if self.clash(binding) is not None:
            return 0
        return max(0, min(self.limit(binding, bounded=bounded), self.supply(binding)))

    def must(self, binding: Binding) -> bool:
        """Whether the step is not over while there is room for the binding."""
        g = self.group_of[binding[0]]
        bound = self.system.groups[g].bound
        if bound is Bound.MINIMAL:
            return any(not self.used[g, cell] for cell in subjects(self.rule(binding), binding[1]))
        return bound is not Bound.ARBITRARY

    def unbarred(self, live: Iterable[Binding]) -> list[Binding]:
        """Of bindings with room, those that weak priority does not make wait for others that have to be applied."""
        live = list(live)
        if self.system.priority is not Priority.WEAK:
            return live
        first: dict[int, int] = {}
        for binding in live:
            level = self.rule(binding).priority
            if level is not None and self.must(binding):
                home = home_of(self.rule(binding), binding[1])
                first[home] = min(level, first.get(home, level))
        return [b for b in live if not self._waits(b, first)]

    def _waits(self, binding: Binding, first: Mapping[int, int]) -> bool:
        level = self.rule(binding).priority
        return level is not None and first.get(home_of(self.rule(binding), binding[1]), level) < level

    def add(self, binding: Binding, times: int) -> None:
        """Chooses `times` applications; there is room for them."""
        index, membranes = binding
        for (cell, name), count in self.takes(binding).items():
            self.left[cell][name] = self.left[cell].get(name, 0) - count * times
        g = self.group_of[index]
        for cell in subjects(self.rule(binding), membranes):
            self.used[g, cell] += times
            if self.system.groups[g].bound is Bound.SEQUENCE:
                self.done[g, cell] = self.system.groups[g].rules.index(index) + 1
        self.claimed.update(self.claims(binding))
        if replaces(self.system, self.rule(binding)):
            self.replaced[membranes[0]] = g
        self.times[binding] += times

    def closed_to(self, group: int, cell: int) -> bool:
        """Mode ORDERED: whether the groups before `group` end the step of a cell.

        They do where one replaced the cell, and where a sequence stopped before its last rule.
        """
        if self.replaced.get(cell, group) < group:
            return True
        if cell not in self.configuration.cells:
            return False
        label = self.configuration.cells[cell].label
        return any(
            earlier.bound is Bound.SEQUENCE
            and self.system.rules[earlier.rules[0]].home == label
            and self.done.get((g, cell), 0) < len(earlier.rules)
            for g, earlier in enumerate(self.system.groups[:group])
        )

    def keys(self, binding: Binding) -> list[Hashable]:
        """What two bindings must share for one to matter to the other: objects, limits, claims, priorities."""
        shared: list[Hashable] = [key for key in self.takes(binding) if self.left[key[0]].get(key[1], 0) != math.inf]
        g = self.group_of[binding[0]]
        shared.extend(("claim", *key) for key in self.claims(binding))
        rule = self.rule(binding)
        if self.system.groups[g].bound is not Bound.MAXIMAL:
            shared.extend(("group", g, cell) for cell in subjects(rule, binding[1]))
        if rule.priority is not None and self.system.priority is Priority.WEAK:
            shared.append(("priority", home_of(rule, binding[1])))
        return shared

    def explain(self, binding: Binding) -> str:
        """Why there is no room for a binding."""
        clash = self.clash(binding)
        text = describe(self.system, binding[0])
        if clash is not None:
            return f"{text} contradicts another application over the {clash[1]} of membrane #{clash[0]}"
        if self.limit(binding) <= 0:
            group = self.system.groups[self.group_of[binding[0]]]
            return f"{text} in {binding[1]} exceeds the bound '{group.bound}' of its group"
        return f"{text} in {binding[1]} needs more objects than are left"
