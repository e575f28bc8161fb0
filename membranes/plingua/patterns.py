"""Models of P-Lingua 5: a model is the set of rule shapes that it allows, in groups with bounds.

In a pattern, an object whose name begins with a to d stands for one object, one with u to w for any multiset; names of
more than one letter stand for the same multiset wherever they occur. Labels stand for labels, the same name for the
same label. `?` is any charge, `?1` the same charge wherever it occurs. Everything else stands for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from echoc.compiler.ir.algebra import Bag

MAX_TRIES = 20_000  # ways to lay the membranes of a rule over those of a pattern


class TooManyWays(Exception):
    """A rule and a pattern with so many membranes that comparing them takes too long."""


class Shape(NamedTuple):
    """A membrane of a rule or pattern. `charge` None is `?`; `variable` numbers it."""

    charge: int | None
    label: tuple[str, ...]
    bag: Bag
    dissolve: bool = False
    inner: tuple[Shape, ...] = ()
    variable: int = -1


class RuleShape(NamedTuple):
    """A rule: outside left -> after right."""

    outside: Bag
    left: Shape
    double: bool
    after: Bag
    right: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class PatternRule:
    """One rule of a pattern and its text, for messages."""

    shape: RuleShape
    text: str
    probability: bool = False


@dataclass(frozen=True, slots=True)
class PatternGroup:
    """The patterns under one bound (None: maximal), by the order in the model; `name` is the pattern's."""

    name: str
    bound: int | None
    group: int
    rules: tuple[PatternRule, ...]


Binding = dict[tuple[str, str | int], object]


class Matcher:
    """Finds the pattern of a rule. `exact` tells whether more than the shape of the multisets matters.

    `short_labels`: a rule may name the environment as its second label where the pattern names one label only.
    """

    def __init__(self, groups: Sequence[PatternGroup], short_labels: bool) -> None:
        self.groups = tuple(groups)
        self.short_labels = short_labels
        self.tries = 0
        self.exact = any(_needs_objects(rule.shape) for group in groups for rule in group.rules)

    def find(self, rule: RuleShape) -> PatternGroup | None:
        """The first group with a pattern that the rule matches."""
        self.tries = 0
        for group in self.groups:
            for pattern in group.rules:
                if pattern.shape.double == rule.double and any(True for _ in self._rule(rule, pattern.shape)):
                    return group
        return None

    def _rule(self, rule: RuleShape, pattern: RuleShape) -> Iterator[Binding]:
        start: Binding = {}
        if _counts(rule) != _counts(pattern) or not _bag(rule.outside, pattern.outside, start):
            return
        for left in self._membrane(rule.left, pattern.left, start):
            after = dict(left)
            if _bag(rule.after, pattern.after, after):
                yield from self._all(rule.right, pattern.right, after)

    def _all(self, rules: Sequence[Shape], patterns: Sequence[Shape], binding: Binding) -> Iterator[Binding]:
        """Every way to lay `rules` over `patterns` in some order."""
        if len(rules) != len(patterns):
            return
        if not patterns:
            yield binding
            return
        for i, rule in enumerate(rules):
            for found in self._membrane(rule, patterns[0], binding):
                yield from self._all((*rules[:i], *rules[i + 1 :]), patterns[1:], found)

    def _membrane(self, rule: Shape, pattern: Shape, binding: Binding) -> Iterator[Binding]:
        self.tries += 1
        if self.tries > MAX_TRIES:
            raise TooManyWays
        found = dict(binding)
        if (
            rule.dissolve == pattern.dissolve
            and _charge(rule, pattern, found)
            and self._label(rule.label, pattern.label, found)
            and _bag(rule.bag, pattern.bag, found)
        ):
            yield from self._all(rule.inner, pattern.inner, found)

    def _label(self, rule: tuple[str, ...], pattern: tuple[str, ...], binding: Binding) -> bool:
        if len(rule) != len(pattern) and not (self.short_labels and len(rule) == 2 and len(pattern) == 1):
            return False
        return all(
            binding.setdefault(("label", p), r) == r for p, r in zip(pattern, rule, strict=len(rule) == len(pattern))
        )


def _counts(shape: RuleShape) -> tuple[int, list[int]]:
    """How many membranes there are: a quick reason not to match."""
    return len(shape.left.inner), sorted(len(m.inner) for m in shape.right)


def _charge(rule: Shape, pattern: Shape, binding: Binding) -> bool:
    if pattern.charge is not None:
        return rule.charge == pattern.charge
    return pattern.variable < 0 or binding.setdefault(("charge", pattern.variable), rule.charge) == rule.charge


def _bag(rule: Bag, pattern: Bag, binding: Binding) -> bool:
    if len(pattern) != 1 or pattern[0][1] != 1 or pattern[0][0][0] not in "abcduvw":
        return rule == pattern
    name = pattern[0][0]
    if name[0] in "abcd" and (len(rule) != 1 or rule[0][1] != 1):
        return False
    return len(name) == 1 or binding.setdefault(("bag", name), rule) == rule


def _bags(shape: RuleShape) -> Iterator[Bag]:
    yield shape.outside
    yield shape.after
    for membrane in (shape.left, *shape.right):
        yield membrane.bag
        for inner in membrane.inner:
            yield inner.bag


def _needs_objects(shape: RuleShape) -> bool:
    """Whether the pattern names objects themselves, or one multiset in two places."""
    seen: set[str] = set()
    for pattern in _bags(shape):
        if not pattern:
            continue
        name = pattern[0][0]
        if len(pattern) != 1 or pattern[0][1] != 1 or name[0] not in "abcduvw" or name in seen:
            return True
        if len(name) > 1:
            seen.add(name)
    return False
