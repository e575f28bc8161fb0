"""Direct distribution over consistent blocks: how a step of a population dynamics P system chooses.

Source: Martinez-del-Amor, Perez-Hurtado, Garcia-Quismondo, Macias-Ramos, Valencia-Cabrera, Romero-Jimenez, Graciani,
Riscos-Nunez, Colomer, Perez-Jimenez, "DCBA: Simulating Population Dynamics P Systems with Proportional Object
Distribution", CMC 2012, LNCS 7762.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction

from numpy.random import Generator

from .binding import Binding
from .configuration import LARGEST, StepError, describe
from .draft import Draft

ACCURACY = 2
"""How often phase 1 distributes what is left (A in the paper)."""

Block = tuple[Binding, ...]
"""Bindings of rules with the same left-hand side, in the same membranes, that lead to the same charges."""


def distribute(draft: Draft, applicable: Iterable[Binding], random: Generator, accuracy: int = ACCURACY) -> None:
    """Fills the draft: phases 1 (distribution), 2 (maximality) and 3 (probability) of the algorithm."""
    blocks = consistent(draft, blocks_of(draft, applicable), random)
    chosen: dict[Block, int] = dict.fromkeys(blocks, 0)
    left = {key: draft.left[key[0]].get(key[1], 0) for block in blocks for key in draft.takes(block[0])}
    for _ in range(accuracy):
        shares = proportional(draft, [b for b in blocks if _possible(draft, b, left)], left)
        for block, times in shares.items():
            _take(draft, block, times, left)
            chosen[block] += times
        if not any(shares.values()):
            break
    for place in random.permutation(len(blocks)):
        block = blocks[int(place)]
        most = _possible(draft, block, left)
        if most == math.inf:
            raise StepError(f"{describe(draft.system, block[0][0])} takes nothing that runs out; a step would not end")
        _take(draft, block, int(most), left)
        chosen[block] += int(most)
    for block, times in chosen.items():
        for binding, count in share_out(draft, block, times, random).items():
            if count:
                draft.add(binding, count)


def blocks_of(draft: Draft, applicable: Iterable[Binding]) -> list[Block]:
    """The blocks with at least one application, in order of their first rule.

    A block is known by what its rules take from where, the membranes they need in a charge, and the charges they leave.
    Of a rule with several inner membranes (one between environments) those that give nothing do not count: where the
    objects go is the block's choice.
    """
    blocks: dict[object, list[Binding]] = defaultdict(list)
    for binding in applicable:
        rule = draft.rule(binding)
        inner = [
            (cell, i.charge)
            for cell, i in zip(binding[1][1:], rule.inner, strict=True)
            if i.consume or len(rule.inner) == 1
        ]
        charges = frozenset((k, repr(v)) for k, v in draft.claims(binding).items())
        key = (binding[1][0], rule.charge, tuple(inner), frozenset(draft.takes(binding).items()), charges)
        blocks[key].append(binding)
    return [tuple(block) for block in blocks.values()]


def consistent(draft: Draft, blocks: list[Block], random: Generator) -> list[Block]:
    """A maximal set of blocks that agree on the charges of all membranes, drawn in random order where they do not."""
    claimed: dict[object, object] = {}
    kept: set[int] = set()
    for place in random.permutation(len(blocks)):
        wanted = draft.claims(blocks[int(place)][0])
        if all(claimed.get(key, value) == value for key, value in wanted.items()):
            claimed.update(wanted)
            kept.add(int(place))
    return [block for place, block in enumerate(blocks) if place in kept]


def proportional(draft: Draft, blocks: list[Block], left: Mapping[tuple[int, str], float]) -> dict[Block, int]:
    """One round of phase 1, in rational numbers: block applications by each block's share of each object it takes.

    The table has 1/k where a block takes k of an object; a row divided by its sum gives the shares, so a block gets
    floor(count * (1/k)^2 / sum of the row) of an object's applications, and the least of its objects decides.
    """
    row: dict[tuple[int, str], Fraction] = defaultdict(Fraction)
    for block in blocks:
        for key, count in draft.takes(block[0]).items():
            row[key] += Fraction(1, count)
    result: dict[Block, int] = {}
    for block in blocks:
        shares = [
            math.floor(int(left[key]) * Fraction(1, count * count) / row[key])
            for key, count in draft.takes(block[0]).items()
            if left[key] != math.inf
        ]
        result[block] = min(shares, default=0)
    return result


def _possible(draft: Draft, block: Block, left: Mapping[tuple[int, str], float]) -> float:
    """How many applications of a block the objects that are left suffice for."""
    room = draft.limit(block[0], bounded=False)
    for key, count in draft.takes(block[0]).items():
        if left[key] != math.inf:
            room = min(room, int(left[key]) // count)
    return room


def _take(draft: Draft, block: Block, times: int, left: dict[tuple[int, str], float]) -> None:
    for key, count in draft.takes(block[0]).items():
        left[key] -= count * times


def share_out(draft: Draft, block: Block, times: int, random: Generator) -> dict[Binding, int]:
    """Phase 3: the applications of a block among its rules, multinomial by binomial draws; probabilities are relative
    to their sum (None: 1)."""
    if times > LARGEST:
        raise StepError(
            f"a block of {describe(draft.system, block[0][0])} is applied {times} times; a draw holds 2^63 - 1"
        )
    given = [draft.rule(b).probability for b in block]
    weights = [1.0 if w is None else w for w in given]
    result: dict[Binding, int] = {}
    rest = math.fsum(weights)
    for binding, weight in zip(block[:-1], weights[:-1], strict=True):
        result[binding] = int(random.binomial(times, min(1.0, weight / rest)))
        times -= result[binding]
        rest -= weight
    result[block[-1]] = times
    return result
