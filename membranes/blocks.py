"""Blocks of population dynamics: the rules with one left side and one charge after, and their probabilities.

Source: Martinez-del-Amor et al., CMC 2012, LNCS 7762: the probabilities of a block add up to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from echoc.compiler.ir.algebra import Bag, Inner, Rule, System, Where

from .view.notation import block_text

TOLERANCE = 1e-4
"""By how much the sum of a block may miss 1. Published tables have their probabilities to four or five decimals, and a
sum of n of them misses 1 by up to n/2 units of the last one: sums of the zebra mussel model miss it by up to 5e-5, and
the smallest mistake that is known of a published model by 3e-2.
"""


@dataclass(frozen=True, slots=True)
class Blocks:
    """For every rule the number of its block; for every block its first rule, its size and the sum of probabilities."""

    numbers: Sequence[int]
    first: Sequence[int]
    sizes: Sequence[int]
    totals: Sequence[float]


def blocks_of(rules: Sequence[Rule]) -> Blocks:
    """The blocks, in order of their first rules.

    Of a rule between environments the block knows the one which gives the object, not the one which gets it.
    """
    known: dict[object, int] = {}
    numbers: list[int] = []
    first: list[int] = []
    sizes: list[int] = []
    totals: list[float] = []
    for i, rule in enumerate(rules):
        members = rule.inner
        key: object
        if rule.label is None and len(members) == 1:
            inner, results = members[0], members[0].results
            after = results[0].charge if len(results) == 1 else (len(results),)
            key = (rule.consume, inner.label, inner.charge, inner.consume, after)
        else:
            taken = tuple([(m.label, m.charge, m.consume) for m in members if m.consume])
            key = (rule.label, rule.charge, rule.new_charge, rule.consume, taken, 0)
        number = known.setdefault(key, len(first))
        p = 1.0 if rule.probability is None else rule.probability
        numbers.append(number)
        if number == len(first):
            first.append(i)
            sizes.append(1)
            totals.append(p)
        else:
            sizes[number] += 1
            totals[number] += p
    return Blocks(numbers, first, sizes, totals)


def wrong_sums(rules: Sequence[Rule], blocks: Blocks) -> Iterator[tuple[str, Where]]:
    """A message for every place with blocks whose probabilities do not add up to 1."""
    found: dict[Where | int, list[int]] = {}
    for number, total in enumerate(blocks.totals):
        if abs(total - 1) > TOLERANCE:
            where = rules[blocks.first[number]].where
            found.setdefault(where if where.line else number, []).append(number)
    for numbers in found.values():
        number = max(numbers, key=lambda n: abs(blocks.totals[n] - 1))
        total, rule = blocks.totals[number], rules[blocks.first[number]]
        size = blocks.sizes[number]
        what = "the probability of the only rule" if size == 1 else f"the probabilities of the {size} rules"
        message = f"{what} with the left side {block_text(rule)} {'is' if size == 1 else 'add up to'} {total:.9g}"
        message += f" (and {len(numbers) - 1} more such blocks of this statement)" if len(numbers) > 1 else ""
        if total > 1:
            message += f", {total - 1:.9g} more than 1; wanted 1, within {TOLERANCE:g}: write smaller ones"
        else:
            message += (
                f", {1 - total:.9g} short of 1; wanted 1, within {TOLERANCE:g}: add the rule for the rest, or say that "
                "nothing happens then, with --allow-substochastic (allow_substochastic=True in Python)"
            )
        yield message, rule.where


def completed(system: System, blocks: Blocks | None = None) -> tuple[System, Blocks]:
    """The system with one rule more for every block that falls short of 1, by which its objects stay what they are.

    A block that dissolves or divides a membrane stays as it is.
    """
    blocks = blocks or blocks_of(system.rules)
    made, numbers = list(system.rules), list(blocks.numbers)
    totals, sizes = list(blocks.totals), list(blocks.sizes)
    joined: dict[int, list[int]] = {}  # by the first rule of the block
    for number, first in enumerate(blocks.first):
        rule, short = system.rules[first], 1 - totals[number]
        if short > TOLERANCE and all(len(i.results) == 1 for i in rule.inner):
            joined.setdefault(first, []).append(len(made))
            made.append(_idle(rule, short))
            numbers.append(number)
            totals[number] = 1.0
            sizes[number] += 1
    groups = tuple(
        [replace(g, rules=(*g.rules, *[n for rule in g.rules for n in joined.get(rule, ())])) for g in system.groups]
    )
    changed = replace(system, rules=tuple(made), groups=groups) if joined else system
    return changed, replace(blocks, numbers=numbers, totals=totals, sizes=sizes)


def _idle(rule: Rule, probability: float) -> Rule:
    """Takes what the rule takes, and gives it back."""
    inner = tuple(_given_back(i) for i in rule.inner if i.consume or len(rule.inner) == 1)
    return replace(rule, produce=rule.consume, inner=inner, send=(), dissolve=False, probability=probability)


def _given_back(inner: Inner) -> Inner:
    back: Bag = inner.consume
    return replace(inner, results=(replace(inner.results[0], produce=back),))
