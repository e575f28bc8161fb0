"""Systems whose membranes come and go: from rules to the tables of kernels/cpu/population_step.h, as C++.

    generated = generate(system)
    library = build(generated)           # bytes of a shared library
    PopulationBatch(library, generated.layout)  # echoc.runtime.population runs it

The layout is JSON-able: `entry` (the function, called as kernels/cpu/population.h says), `schedules` (what became of
the rules of each label and charge), `objects`, `labels`, `groups` (their number), `rules` (as text), `cells` [[label,
parent, charge, name, [[object, count], ...]], ...] with numbers for labels and objects, `links`, `environment`,
`unbounded` [objects of the skin without limit], `delays`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from echoc.compiler.ir.algebra import Bag, Bound, Group, Guard, Inner, Mode, Priority, Rule, System, Target
from echoc.compiler.targets.cpu.build import Progress, build_library
from echoc.compiler.targets.cpu.kernels import ENVIRONMENT
from echoc.compiler.targets.cpu.rewriting.competition import Actions, Analysis, actions, consumed, plain_rules
from echoc.compiler.targets.cpu.rewriting.notation import show_rule
from echoc.errors import CompileError

MAX_COMMENT = 5000
ANY_CHARGE = 2
NONE = -1
NO_PRIORITY = "INT32_MIN"
COUNTS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "eq": "==", "ne": "!="}
BOUNDS = {
    Bound.MAXIMAL: "kMaximal", Bound.AT_MOST: "kAtMost", Bound.MINIMAL: "kMinimal", Bound.SEQUENCE: "kSequence",
    Bound.CHOICE: "kChoice", Bound.ARBITRARY: "kArbitrary",
}  # fmt: skip
TARGETS = {Target.OUT: "kOut", Target.IN: "kIn", Target.LINKED: "kLinked", Target.SYNAPSES: "kSynapses"}
MODES = (Mode.PARALLEL, Mode.ORDERED, Mode.SEQUENTIAL)


@dataclass(frozen=True)
class Schedule:
    """What the generator may choose without changing a meaning.

    unroll: where membranes of a label have nothing to choose, up to so many rules become straight-line code over dense
        counts; else they are tables that the kernel walks.
    """

    unroll: int = 16


@dataclass(frozen=True)
class Generated:
    """Sources by name (for `build_library`), the function to call, and what the tables mean (see the module)."""

    sources: Mapping[str, str]
    entry: str
    layout: Mapping[str, Any]


def generate(system: System, schedule: Schedule | None = None) -> Generated:
    """The kernel of a system in mode PARALLEL, ORDERED or SEQUENTIAL.

    Args:
        system: validated.
        schedule: default: `Schedule()`.
    Raises: CompileError naming the rule and its place, for what cannot be compiled.
    """
    if system.mode not in MODES:
        raise CompileError(f"mode {system.mode} is not for this kernel; it takes {', '.join(MODES)}")
    for rule in system.rules:
        _check(system, rule)
    tables = Tables(system, schedule or Schedule())
    holes = tables.holes()
    text = ENVIRONMENT.get_template("population.cpp.j2").render(name="@NAME@", **holes)
    name = f"population_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return Generated({name: text.replace("@NAME@", name)}, name, tables.layout(name))


def build(generated: Generated, level: str = "native", progress: Progress | None = None) -> bytes:
    """The shared library, through the build cache."""
    return build_library(generated.sources, level, progress, tiles=False)


def _check(system: System, rule: Rule) -> None:
    if rule.rate is not None:
        raise CompileError(f"{rule.where}: {show_rule(rule)} has a rate, which only the mode gillespie gives a meaning")


class Tables:
    """The numbers of everything, and the rows of the tables as C++ text."""

    def __init__(self, system: System, schedule: Schedule) -> None:
        self.system = system
        self.schedule = schedule
        self.analysis = Analysis(system)
        self.rules = self.analysis.rules
        self.objects = {o: i for i, o in enumerate(system.objects)}
        self.labels = {label: i for i, label in enumerate(_labels(system))}
        self.bags: list[str] = []
        self.inners: list[str] = []
        self.results: list[str] = []
        self.sends: list[str] = []
        self.divides: list[str] = []
        self.guards: list[str] = []
        self.kept: list[frozenset[str]] = []
        self.groups = self._groups()
        self.group_of = {r: g for g, group in enumerate(self.groups) for r in group.rules}

    @property
    def charges(self) -> list[int]:
        """Every charge that a membrane can have."""
        return sorted({c.charge for c in self.system.cells} | _charges(self.rules))

    @property
    def graph(self) -> bool:
        """Whether the cells are nodes of a graph: then none of them is a skin."""
        roots = sum(c.parent is None for c in self.system.cells)
        return roots == len(self.system.cells) and (
            self.system.mode is Mode.ORDERED or bool(self.system.links) or roots > 1
        )

    def _groups(self) -> list[Group]:
        """The groups; those that run in order, by the label of their rules."""
        groups = list(self.system.groups)
        in_order = self.system.mode is Mode.ORDERED
        for group in groups:
            homes = {self.rules[r].home for r in group.rules}
            if len(homes) > 1 and (in_order or group.bound is Bound.SEQUENCE):
                raise CompileError(f"a group in an order has rules of {', '.join(sorted(homes))}; wanted one label")
        if in_order or any(g.bound is Bound.SEQUENCE for g in groups):
            groups.sort(key=lambda g: self.labels.get(self.rules[g.rules[0]].home, NONE) if g.rules else NONE)
        return groups

    # ---- rows

    def span(self, rows: list[str], new: Sequence[str]) -> str:
        rows.extend(new)
        return f"{{{len(rows) - len(new)}, {len(rows)}}}"

    def bag(self, objects: Bag) -> str:
        return self.span(self.bags, [f"{{{self.objects[o]}u, {n}}}" for o, n in objects])

    def inner(self, inner: Inner) -> str:
        results = []
        for result in inner.results:
            keeps = NONE
            if result.keeps is not None:
                keeps = len(self.kept)
                self.kept.append(result.keeps)
            charge = ANY_CHARGE if result.charge is None else result.charge
            results.append(f"{{{self.labels[result.label]}, {charge}, {self.bag(result.produce)}, {keeps}}}")
        common = len({r.produce for r in inner.results}) == 1 and all(r.keeps is None for r in inner.results)
        charge = ANY_CHARGE if inner.charge is None else inner.charge
        consume = self.bag(inner.consume)
        rows = self.span(self.results, results)
        return f"{{{self.labels[inner.label]}, {charge}, {str(common).lower()}, {consume}, {rows}}}"

    def rule(self, index: int) -> str:
        r = self.rules[index]
        sends = [f"{{TargetKind::{TARGETS[s.target]}, {self.label(s.label)}, {self.bag(s.objects)}}}" for s in r.send]
        inner = self.span(self.inners, [self.inner(i) for i in r.inner])
        divide = self.span(self.divides, [f"{{{self.labels[label]}, {self.bag(b)}}}" for label, b in r.divide])
        fields = [
            self.label(r.label),
            ANY_CHARGE if r.charge is None else r.charge,
            ANY_CHARGE if r.new_charge is None else r.new_charge,
            str(r.dissolve).lower(),
            "RuleKind::" + ("kCell" if self.analysis.kinds[index] else "kShared"),
            self.bag(r.consume), self.bag(r.produce), self.bag(r.promoters), self.bag(r.inhibitors),
            inner, self.span(self.sends, sends), divide,
            self.guard(r.guard),
            NO_PRIORITY if r.priority is None else r.priority,
            self.group_of[index], self.analysis.components[index], r.delay,
            self.label(r.link), self.label(r.unlink),
            repr(float(1.0 if r.probability is None else r.probability)),
        ]  # fmt: skip
        return "{" + ", ".join(map(str, fields)) + "}"

    def label(self, label: str | None) -> int:
        return NONE if label is None or label == "" else self.labels.get(label, NONE)

    def guard(self, guard: Guard | None) -> int:
        if guard is None:
            return NONE
        text = self.condition(guard)
        if text not in self.guards:
            self.guards.append(text)
        return self.guards.index(text)

    def condition(self, guard: Guard) -> str:
        """A guard as C++ over dense counts `n`."""
        if guard.op in ("all", "any"):
            joined = (" && " if guard.op == "all" else " || ").join(self.condition(p) for p in guard.parts)
            return f"({joined})" if guard.parts else ("true" if guard.op == "all" else "false")
        if guard.op == "not":
            return f"!{self.condition(guard.parts[0])}"
        count = f"n[{self.objects[guard.object]}]"
        if guard.op in COUNTS:
            return f"({count} {COUNTS[guard.op]} {guard.count})"
        starts = [f"{count} == {s}" for s in guard.starts if s < guard.threshold]
        if guard.residues:
            rest = " || ".join(f"({count} - {guard.threshold}) % {guard.period} == {r}" for r in guard.residues)
            starts.append(f"({count} >= {guard.threshold} && ({rest}))")
        return f"({' || '.join(starts)})" if starts else "false"

    # ---- triggers

    def cell_triggers(self) -> tuple[list[list[int]], list[int]]:
        """Rules that decide alone, by the first object they take; and those that take nothing."""
        by_object: list[list[int]] = [[] for _ in self.objects]
        always = []
        for index, rule in enumerate(self.rules):
            if not self.analysis.kinds[index] or self.system.mode is Mode.ORDERED:
                continue
            bag = consumed(rule)
            if bag:
                by_object[self.objects[bag[0][0]]].append(index)
            else:
                always.append(index)
        return by_object, always

    def shared_triggers(self) -> tuple[list[list[tuple[int, int]]], list[tuple[int, int]], set[int]]:
        """The same for rules that bind several membranes, with the member; and the labels where bindings start."""
        by_object: list[list[tuple[int, int]]] = [[] for _ in self.objects]
        always = []
        starts: set[int] = set()
        for index, rule in enumerate(self.rules):
            if self.analysis.kinds[index]:
                continue
            bags = [rule.consume, *(i.consume for i in rule.inner)]
            member = next((m for m, bag in enumerate(bags) if bag), None)
            if member is None:
                member = 0 if rule.label is not None else 1
                always.append((index, member))
            else:
                by_object[self.objects[bags[member][0][0]]].append((index, member))
            labels = self.analysis.holders(rule) if member == 0 else {rule.inner[member - 1].label}
            starts |= {self.labels[x] for x in labels if x in self.labels}
        return by_object, always, starts

    # ---- the template's holes

    def states(self) -> list[tuple[int, int, Actions]]:
        """(label, charge, actions) of every kind of membrane that has any."""
        out = []
        for label, number in self.labels.items():
            for charge in self.charges:
                found = actions(self.analysis, label, charge)
                if found is not None:
                    out.append((number, charge, found))
        return out

    def plain(self) -> list[tuple[int, int, list[str]]]:
        """(label, charge, statements) of the membranes whose rules are unrolled."""
        out = []
        for label, number in self.labels.items():
            for charge in self.charges:
                rules = plain_rules(self.analysis, label, charge)
                if rules is not None and len(rules) <= self.schedule.unroll:
                    out.append((number, charge, [line for r in rules for line in self.unrolled(r)]))
        return out

    def unrolled(self, index: int) -> list[str]:
        """A rule as statements over dense counts `n`."""
        rule = self.rules[index]
        takes = [(self.objects[o], n) for o, n in rule.consume]
        room = [f"n[{o}]" if n == 1 else f"n[{o}] / {n}" for o, n in takes]
        lines = [f"// {show_rule(rule)}", f"k = {room[0]};", *(f"if ({r} < k) k = {r};" for r in room[1:])]
        lines += ["if (k > 0) {", *(f"  n[{o}] -= k{'' if n == 1 else f' * {n}'};" for o, n in takes)]
        lines += [f"  fits &= sink.give({self.objects[o]}, k, {n});" for o, n in rule.produce]
        lines += [f"  fits &= sink.out({self.objects[o]}, k, {n});" for send in rule.send for o, n in send.objects]
        return [*lines, f"  fits &= sink.applied({index}, k);", "}"]

    def schedules(self) -> list[dict[str, Any]]:
        """For every kind of membrane with rules: how its counts are held while it steps, and what its rules became."""
        names = list(self.labels)
        unrolled = {(label, charge) for label, charge, _ in self.plain()}
        return [
            {
                "label": names[label], "charge": charge, "counts": "dense" if found.decide else "sparse",
                "rules": "unrolled" if (label, charge) in unrolled else "tabled" if found.decide else "moves",
            }
            for label, charge, found in self.states()
        ]  # fmt: skip

    def action_row(self, found: Actions) -> list[str]:
        row = []
        for o, number in self.objects.items():
            target = found.target.get(o, o)
            if o in found.decide:
                row.append(f"D|{number}")
            elif target is None:
                row.append("E")
            else:
                kind = "M|" if target in found.merge else ""
                row.append(f"{kind}{self.objects[target]}")
        return row

    def holes(self) -> dict[str, Any]:
        rule_rows = [self.rule(i) for i in range(len(self.rules))]
        cell, always = self.cell_triggers()
        shared, shared_always, starts = self.shared_triggers()
        group_rules: list[str] = []
        group_rows = []
        for group in self.groups:
            home = self.rules[group.rules[0]].home if group.rules else ""
            span = self.span(group_rules, [str(r) for r in group.rules])
            group_rows.append(f"{{BoundKind::{BOUNDS[group.bound]}, {group.limit}, {self.label(home)}, {span}}}")
        weights = [1.0 if r.probability is None else float(r.probability) for r in self.rules]
        components = max(self.analysis.components, default=-1) + 1
        sharing = [False] * components
        for index, alone in enumerate(self.analysis.kinds):
            sharing[self.analysis.components[index]] |= not alone
        return {
            "comment": [show_rule(r) for r in self.system.rules[:MAX_COMMENT]],
            "flags": self.flags(always, shared_always, weights),
            "rules": rule_rows, "bags": self.bags, "inners": self.inners, "results": self.results,
            "sends": self.sends, "divides": self.divides, "groups": group_rows, "group_rules": group_rules,
            "groups_of": self.groups_of(), "guards": self.guards,
            "kept": [[str(o in kept).lower() for o in self.objects] for kept in self.kept],
            "components": [str(s).lower() for s in sharing],
            "cell_begin": _begins(cell), "cell_triggers": [str(r) for rules in cell for r in rules],
            "always": [str(r) for r in always],
            "always_labels": sorted({self.label(self.rules[r].home) for r in always}),
            "shared_begin": _begins(shared),
            "shared_triggers": [f"{{{r}, {m}}}" for triggers in shared for r, m in triggers],
            "shared_always": [f"{{{r}, {m}}}" for r, m in shared_always],
            "starts": [str(i in starts).lower() for i in range(len(self.labels))],
            "plain": self.plain(),
            "states": [(label, charge, self.action_row(found)) for label, charge, found in self.states()],
        }  # fmt: skip

    def groups_of(self) -> list[str]:
        """Per label: the groups of its rules, where groups run in order."""
        spans = []
        for number in self.labels.values():
            own = [g for g, group in enumerate(self.groups) if group.rules
                   and self.label(self.rules[group.rules[0]].home) == number]  # fmt: skip
            spans.append(f"{{{own[0]}, {own[-1] + 1}}}" if own else "{0, 0}")
        return spans

    def flags(self, always: list[int], shared_always: list[tuple[int, int]], weights: list[float]) -> dict[str, Any]:
        rules, system = self.rules, self.system
        shared = not all(self.analysis.kinds)
        splits = any(len(i.results) != 1 for r in rules for i in r.inner)
        dissolves = any(r.dissolve or any(not i.results for i in r.inner) for r in rules)
        links = bool(system.links) or any(r.link or r.unlink for r in rules)
        parents = {p for around in self.analysis.parents.values() for p in around}
        divided = {i.label for r in rules for i in r.inner if len(i.results) > 1}
        sent_in = any(s.target is Target.IN for r in rules for s in r.send)
        counts = [n for r in rules for bag in (r.consume, *(i.consume for i in r.inner)) for _, n in bag]
        return {
            "kObjects": len(self.objects), "kLabels": len(self.labels), "kRuleCount": len(rules),
            "kMostBound": max(2, 1 + max((len(r.inner) for r in rules), default=0)),
            "kMostSends": max((len(r.send) for r in rules), default=0),
            "kMostTargets": max(1, max((_num_targets(r) for r in rules), default=0)),
            "kGroupCount": len(self.groups), "kInnerCount": sum(len(r.inner) for r in rules),
            "kAlwaysCount": len(always), "kSharedAlwaysCount": len(shared_always),
            "kHasShared": shared, "kHasStructure": splits or dissolves or links or any(r.divide for r in rules),
            "kNested": bool(divided & parents), "kHasLinks": links, "kHasDelay": any(r.delay for r in rules),
            "kNeedsChildren": shared or sent_in or system.mode is Mode.SEQUENTIAL,
            "kGraph": self.graph, "kOrdered": system.mode is Mode.ORDERED,
            "kSequential": system.mode is Mode.SEQUENTIAL,
            "kHasPriority": any(r.priority is not None for r in rules), "kWeak": system.priority is Priority.WEAK,
            "kHasSequence": any(g.bound is Bound.SEQUENCE for g in self.groups),
            "kHasPlain": bool(self.plain()), "kHasSends": any(r.send for r in rules),
            "kHasFree": any(g.bound in (Bound.ARBITRARY, Bound.MINIMAL) for g in self.groups),
            "kConditionsOutside": any(r.inner and r.label is not None for r in rules) or sent_in or links
            or any(g.bound in (Bound.ARBITRARY, Bound.MINIMAL) for g in self.groups),
            "kUniform": len(set(weights)) <= 1, "kMaxWeight": max(weights, default=1.0),
            "kMaxCount": max(counts, default=1),
        }  # fmt: skip

    def layout(self, entry: str) -> dict[str, Any]:
        system = self.system
        return {
            "entry": entry, "mode": str(system.mode), "schedules": self.schedules(),
            "objects": list(self.objects), "labels": list(self.labels),
            "groups": len(self.groups), "rules": [show_rule(r) for r in system.rules],
            "cells": [
                [self.labels[c.label], NONE if c.parent is None else c.parent, c.charge, c.name, self._numbers(
                    c.objects, system.unbounded if i == 0 else frozenset())] for i, c in enumerate(system.cells)
            ],
            "links": [list(link) for link in system.links],
            "environment": self._numbers(system.environment, frozenset()),
            "unbounded": sorted(self.objects[o] for o in system.unbounded),
            "graph": self.graph,
            "delays": any(r.delay for r in self.rules),
        }  # fmt: skip

    def _numbers(self, bag: Bag, without: frozenset[str]) -> list[list[int]]:
        return [[self.objects[o], n] for o, n in bag if o not in without]


def _labels(system: System) -> list[str]:
    """All labels, those that only rules mention included."""
    seen = dict.fromkeys(system.labels)
    for rule in system.rules:
        seen.update(dict.fromkeys(i.label for i in rule.inner))
        seen.update({rule.label: None} if rule.label is not None else {})
    return list(seen)


def _num_targets(rule: Rule) -> int:
    """Membranes that an application chooses beside those that it binds."""
    return sum(s.target in (Target.IN, Target.LINKED) for s in rule.send) + (
        rule.link is not None or rule.unlink is not None
    )


def _charges(rules: Sequence[Rule]) -> set[int]:
    """Every charge that a rule can give."""
    given = {r.new_charge for r in rules} | {x.charge for r in rules for i in r.inner for x in i.results}
    return {c for c in given if c is not None}


def _begins(lists: Sequence[Sequence[object]]) -> list[int]:
    out = [0]
    for items in lists:
        out.append(out[-1] + len(items))
    return out
