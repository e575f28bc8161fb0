"""What a rule set says before it runs: where membranes can be, which rules want the same, what needs no decision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from echoc.compiler.ir.algebra import Bag, Bound, Mode, Rule, System, Target

ENVIRONMENT = ""
Key = tuple[str, ...]


def consumed(rule: Rule) -> Bag:
    """What the membrane that decides loses: the inner one where there is one."""
    return rule.inner[0].consume if rule.inner else rule.consume


def decides_alone(rule: Rule) -> bool:
    """Whether the content of one membrane decides about a rule: its holder, or a single inner membrane."""
    if not rule.inner:
        return True
    if len(rule.inner) > 1 or rule.consume or rule.new_charge is not None or rule.dissolve or rule.send:
        return False
    if rule.promoters or rule.inhibitors or rule.guard is not None:
        return False
    return rule.priority is None or rule.label is None


@dataclass(frozen=True)
class Analysis:
    """Answers about one system. Objects that the skin has without limit are taken out of its rules first."""

    system: System
    rules: tuple[Rule, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self._limited(r) for r in self.system.rules))

    def _limited(self, rule: Rule) -> Rule:
        """The rule without what the skin gives and takes in unlimited supply."""
        from dataclasses import replace

        free = self.system.unbounded
        if not free or rule.label is None or rule.label != self.system.cells[0].label:
            return rule

        def cut(bag: Bag) -> Bag:
            return tuple((o, n) for o, n in bag if o not in free)

        return replace(rule, consume=cut(rule.consume), produce=cut(rule.produce))

    @cached_property
    def parents(self) -> dict[str, set[str]]:
        """Labels that may stand around a label; ENVIRONMENT for what has nothing around it."""
        around: dict[str, set[str]] = defaultdict(set)
        for cell in self.system.cells:
            around[cell.label].add(ENVIRONMENT if cell.parent is None else self.system.cells[cell.parent].label)
        vanishing = {r.label for r in self.rules if r.dissolve and r.label}
        vanishing |= {i.label for r in self.rules for i in r.inner if not i.results}
        renamed = {(i.label, x.label) for r in self.rules for i in r.inner for x in i.results if x.label != i.label}
        renamed |= {(r.label, label) for r in self.rules for label, _ in r.divide if r.label and label != r.label}
        while True:
            before = sum(map(len, around.values()))
            for old, new in renamed:
                around[new] |= around[old]
                for label in list(around):
                    if old in around[label]:
                        around[label].add(new)
            for label in list(around):
                for gone in around[label] & vanishing:
                    around[label] |= around[gone]
            if sum(map(len, around.values())) == before:
                return dict(around)

    def holders(self, rule: Rule) -> set[str]:
        """The labels that may hold a rule."""
        if rule.label is not None:
            return {rule.label}
        sets = [self.parents.get(i.label, set()) for i in rule.inner]
        return set.intersection(*sets) if sets else set()

    @cached_property
    def kinds(self) -> tuple[bool, ...]:
        """Per rule: whether it decides alone."""
        return tuple(decides_alone(r) for r in self.rules)

    @cached_property
    def bounds(self) -> dict[int, tuple[int, Bound]]:
        """Per rule: the index and the bound of its group."""
        return {r: (g, group.bound) for g, group in enumerate(self.system.groups) for r in group.rules}

    @cached_property
    def contradictory(self) -> set[str]:
        """Labels whose charge different rules set differently, or that some rule divides or dissolves from outside."""
        given: dict[str, set[object]] = defaultdict(set)
        for rule in self.rules:
            for holder in self.holders(rule) if rule.new_charge is not None else ():
                given[holder].add(rule.new_charge)
            for inner in rule.inner:
                if len(inner.results) != 1 or inner.results[0].label != inner.label:
                    given[inner.label] |= {"structure", f"structure {len(given[inner.label])}"}
                elif inner.results[0].charge is not None:
                    given[inner.label].add(inner.results[0].charge)
        return {label for label, charges in given.items() if len(charges) > 1}

    def keys(self, index: int) -> Iterator[Key]:
        """What a rule wants that others may want: objects of labels, turns in a bound, charges, priorities."""
        rule = self.rules[index]
        group, bound = self.bounds[index]
        for holder in self.holders(rule):
            yield from (("object", holder, o) for o, _ in rule.consume)
            if rule.new_charge is not None and holder in self.contradictory:
                yield ("charge", holder)
        for inner in rule.inner:
            yield from (("object", inner.label, o) for o, _ in inner.consume)
            (result,) = inner.results if len(inner.results) == 1 else (None,)
            touches = result is None or result.charge is not None or result.label != inner.label
            if touches and inner.label in self.contradictory:
                yield ("charge", inner.label)
        if bound is not Bound.MAXIMAL:
            subjects = [i.label for i in rule.inner] or list(self.holders(rule))
            yield from (("turn", label, str(group)) for label in subjects)
        if rule.priority is not None:
            yield ("priority", rule.home)
        if rule.delay:
            yield ("delay", rule.home)

    @cached_property
    def components(self) -> tuple[int, ...]:
        """Per rule: a number that rules share which want the same thing, directly or through others."""
        parent = list(range(len(self.rules)))

        def find(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        first: dict[Key, int] = {}
        for index in range(len(self.rules)):
            for key in self.keys(index):
                other = first.setdefault(key, index)
                parent[find(index)] = find(other)
        numbers: dict[int, int] = {}
        return tuple(numbers.setdefault(find(i), len(numbers)) for i in range(len(self.rules)))

    @cached_property
    def can_hold(self) -> dict[str, set[str]]:
        """Per label: the objects its membranes can ever hold."""
        held: dict[str, set[str]] = defaultdict(set)
        for cell in self.system.cells:
            held[cell.label] |= {o for o, _ in cell.objects}
        held[ENVIRONMENT] |= {o for o, _ in self.system.environment}
        flows: set[tuple[str, str]] = set()  # everything in the first comes to the second
        for rule in self.rules:
            self._spread(rule, held, flows)
        changed = True
        while changed:
            changed = False
            for source, sink in flows:
                if not held[source] <= held[sink]:
                    held[sink] |= held[source]
                    changed = True
        return dict(held)

    def _spread(self, rule: Rule, held: dict[str, set[str]], flows: set[tuple[str, str]]) -> None:
        """What a rule can bring where, as if it could always be applied."""

        def put(labels: Iterable[str], bag: Bag) -> None:
            for label in labels:
                held[label] |= {o for o, _ in bag}

        holders = self.holders(rule)
        put(holders, rule.produce)
        if rule.dissolve:
            flows.update((h, p) for h in holders for p in self.parents.get(h, ()))
        for inner in rule.inner:
            for result in inner.results:
                put([result.label], result.produce)
                flows.add((inner.label, result.label))
            if not inner.results:
                flows.update((inner.label, h) for h in holders)
        for label, bag in rule.divide:
            put([label], bag)
            flows.update((h, label) for h in holders)
        for send in rule.send:
            if send.target is Target.OUT:
                put([p for h in holders for p in self.parents.get(h, ())], send.objects)
            elif send.target is Target.SYNAPSES:
                put(self.system.labels, send.objects)
            else:
                put([send.label], send.objects)


def moves(rule: Rule, bound: Bound) -> bool:
    """Whether a rule only turns each copy of one object into at most one copy of another, without conditions."""
    simple = not rule.inner and rule.label is not None and bound is Bound.MAXIMAL and rule.priority is None
    plain = not (rule.send or rule.dissolve or rule.delay or rule.divide or rule.link or rule.unlink)
    free = rule.guard is None and not rule.promoters and not rule.inhibitors and rule.new_charge is None
    one = len(rule.consume) == 1 and rule.consume[0][1] == 1 and rule.produce != rule.consume
    return simple and plain and free and one and sum(n for _, n in rule.produce) <= 1


@dataclass(frozen=True)
class Actions:
    """For one label and charge: what becomes of each object where nothing is to be decided.

    `target`: object -> object, or None when it vanishes; `decide`: objects that rules have to be looked at for;
    `merge`: targets that several objects reach.
    """

    target: dict[str, str | None]
    decide: frozenset[str]
    merge: frozenset[str]


def plain_rules(analysis: Analysis, label: str, charge: int) -> list[int] | None:
    """The rules of a label under a charge that objects have to be decided for, where there is nothing to choose.

    Then no two of them want the same object, none has conditions, and what they make stays or goes out: each is applied
    as often as its objects allow. None where that is not so, or where no rule is of that kind.
    """
    if analysis.system.mode is not Mode.PARALLEL:
        return None
    wanted: set[str] = set()
    found = []
    for index, objects in _wanted(analysis, label, charge):
        rule = analysis.rules[index]
        if objects & wanted or not _unconditional(rule, analysis.bounds[index][1]):
            return None
        wanted |= objects
        if not moves(rule, analysis.bounds[index][1]):
            found.append(index)
    return found or None


def _unconditional(rule: Rule, bound: Bound) -> bool:
    simple = not rule.inner and bound is Bound.MAXIMAL and rule.priority is None and rule.new_charge is None
    plain = not (rule.dissolve or rule.delay or rule.divide or rule.link or rule.unlink)
    free = rule.guard is None and not rule.promoters and not rule.inhibitors
    return simple and plain and free and all(s.target is Target.OUT for s in rule.send) and rule.probability != 0


def actions(analysis: Analysis, label: str, charge: int) -> Actions | None:
    """The actions of a label under a charge; None when no rule looks at such a membrane's objects."""
    if analysis.system.mode is Mode.ORDERED:
        return None
    takers: dict[str, list[int]] = defaultdict(list)
    for index, objects in _wanted(analysis, label, charge):
        for o in objects:
            takers[o].append(index)
    if not takers:
        return None
    target: dict[str, str | None] = {}
    decide = set()
    for o, rules in takers.items():
        rule = analysis.rules[rules[0]]
        alone = len(rules) == 1 and moves(rule, analysis.bounds[rules[0]][1])
        if alone and analysis.system.mode is not Mode.SEQUENTIAL:
            target[o] = rule.produce[0][0] if rule.produce else None
        else:
            decide.add(o)
    reached: dict[str, int] = defaultdict(int)
    for o in analysis.can_hold.get(label, set()) | set(target):
        end = target.get(o, o)
        if end is not None:
            reached[end] += 1
    return Actions(target, frozenset(decide), frozenset(o for o, n in reached.items() if n > 1))


def _wanted(analysis: Analysis, label: str, charge: int) -> Iterator[tuple[int, set[str]]]:
    """Rules that can bind a membrane of a label and charge, with the objects they take from it."""

    def fits(wanted: int | None) -> bool:
        return wanted is None or wanted == charge

    for index, rule in enumerate(analysis.rules):
        objects: set[str] = set()
        if fits(rule.charge) and label in analysis.holders(rule):
            objects |= {o for o, _ in rule.consume}
        for inner in rule.inner:
            if inner.label == label and fits(inner.charge):
                objects |= {o for o, _ in inner.consume}
        if objects:
            yield index, objects
