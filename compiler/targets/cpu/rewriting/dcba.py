"""Population dynamics (mode DCBA) as tables for `kernels/cpu/dcba.h`: blocks, their competition and their rules."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from echoc.compiler.targets.cpu.rewriting.ground import Condition, Ground, Place, refuse, render_condition

Conditions = tuple[Condition, ...]
"""What a block needs: one of these."""


@dataclass(slots=True)
class Block:
    """Instances that consume the same and leave the same charges: one of them is applied, by probability.

    rules: (probability, instance), the likeliest first. Where the instances need different things (guards),
    `conditions` has several and each application is drawn among the instances whose own condition holds.
    """

    consume: tuple[tuple[Place, int], ...]
    charges: tuple[tuple[int, int], ...]
    rules: list[tuple[float, int]] = field(default_factory=list)
    conditions: Conditions = ()


def find_blocks(ground: Ground) -> list[Block]:
    """The blocks of all instances, in order of their first rule; probabilities are relative to their sum.

    A block is known by what its rules take from where, the membranes they need in a charge, and the charges they
    leave. Of a rule with several inner membranes (between environments) those that give nothing do not count: where the
    objects go is the block's choice.
    Raises: CompileError for a rule that consumes nothing, has a rate, or a probability below 0 or not finite.
    """
    blocks: dict[object, Block] = {}
    for number, instance in enumerate(ground.instances):
        rule = ground.system.rules[instance.rule]
        probability = 1.0 if rule.probability is None else float(rule.probability)
        if not (math.isfinite(probability) and probability >= 0):
            raise refuse(rule, f"has the probability {probability!r}, wanted a finite number from 0 on", "dcba")
        if rule.rate is not None:
            raise refuse(rule, "has a rate instead of a probability", "dcba")
        if not instance.consume:
            raise refuse(rule, "consumes nothing and would be applied without end", "dcba")
        bound = list(zip(instance.cells[1:], rule.inner, strict=False))
        takes = tuple((c, i.charge) for c, i in bound if i.consume or len(rule.inner) == 1)
        leaves = tuple((c, i.results[0].charge) for c, i in bound if i.results[0].charge is not None)
        key = (instance.holder, rule.charge, rule.new_charge, takes, leaves, instance.consume)
        block = blocks.setdefault(key, Block(instance.consume, instance.charges))
        block.rules.append((probability * instance.share, number))
        if instance.condition not in block.conditions:
            block.conditions += (instance.condition,)
    for block in blocks.values():
        block.rules.sort(key=lambda entry: -entry[0])
    return list(blocks.values())


def exclusive(a: Conditions, b: Conditions) -> bool:
    """Whether they ask different charges of one cell, so that they never hold together."""
    return all(_differ(dict(x.charges), y) for x in a for y in b)


def _differ(wanted: dict[int, int], other: Condition) -> bool:
    return any(wanted.get(cell, value) != value for cell, value in other.charges)


def _together(groups: dict[Conditions, list[int]]) -> Iterable[tuple[int, int]]:
    """Pairs that connect all members whose conditions can hold together."""
    for members in groups.values():
        yield from itertools.pairwise(members)
    for (a, first), (b, second) in itertools.combinations(groups.items(), 2):
        if not exclusive(a, b):
            yield first[0], second[0]


def find_families(blocks: Sequence[Block]) -> list[list[int]]:
    """Blocks connected by objects for which they may compete, in order of their first block."""
    leader = list(range(len(blocks)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    by_place: dict[Place, dict[Conditions, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, block in enumerate(blocks):
        for place, _ in block.consume:
            by_place[place][block.conditions].append(number)
    for groups in by_place.values():
        for a, b in _together(groups):
            first, second = sorted((find(a), find(b)))
            leader[second] = first
    families: dict[int, list[int]] = defaultdict(list)
    for number in range(len(blocks)):
        families[find(number)].append(number)
    return [families[k] for k in sorted(families)]


def find_conflict(blocks: Sequence[Block]) -> bool:
    """Whether two blocks that can be applicable together ask for different charges of one cell."""
    asked: dict[int, dict[int, set[Conditions]]] = defaultdict(lambda: defaultdict(set))
    for block in blocks:
        for cell, charge in block.charges:
            asked[cell][charge].add(block.conditions)
    for charges in asked.values():
        for (_, first), (_, second) in itertools.combinations(charges.items(), 2):
            if any(not exclusive(a, b) for a in first for b in second):
                return True
    return False


def tables(ground: Ground) -> dict[str, object]:
    """What `dcba.cpp.j2` prints: rows of every table as C++ text, and sizes."""
    blocks = find_blocks(ground)
    families = find_families(blocks)
    # what a block needs, and, where that is one of several, what each of its rules needs
    wholes = dict.fromkeys(b.conditions for b in blocks)
    conditions = list(wholes | dict.fromkeys((one,) for several in wholes for one in several))
    number = {c: i for i, c in enumerate(conditions)}
    alone = sorted((f[0] for f in families if len(f) == 1), key=lambda b: number[blocks[b].conditions])
    competing = [f for f in families if len(f) > 1]
    order = alone + [b for f in competing for b in f]
    rows = _rows(ground, [blocks[b] for b in order], number)
    single = [0] * (len(conditions) + 1)
    for b in alone:
        single[number[blocks[b].conditions] + 1] += 1
    single = list(itertools.accumulate(single))
    ends = list(itertools.accumulate((len(f) for f in competing), initial=len(alone)))
    return {
        **rows,
        "single": [f"{{{a}, {b}}}" for a, b in itertools.pairwise(single)],
        "family": [f"{{{a}, {b}}}" for a, b in itertools.pairwise(ends)],
        "families": len(competing),
        **_conditions(conditions, ground.places),
        "conflicts": find_conflict(blocks),
        "scratch_bytes": _scratch_bytes(len(ground.places), len(blocks), len(ground.charges), len(conditions)),
    }


def _conditions(conditions: Sequence[Conditions], places: Mapping[Place, int]) -> dict[str, object]:
    """Charges that are asked for as a table, all else as code."""
    needs: list[str] = []
    ranges: list[str] = []
    special: list[tuple[int, str]] = []
    for number, several in enumerate(conditions):
        begin = len(needs)
        if len(several) == 1 and several[0] == Condition(several[0].charges):
            needs.extend(f"{{{cell}, {charge}}}" for cell, charge in several[0].charges)
        else:
            special.append((number, " || ".join(render_condition(c, places) for c in several)))
        ranges.append(f"{{{begin}, {len(needs)}}}")
    return {"needs": needs, "conditions": ranges, "special": special}


def _rows(ground: Ground, blocks: Sequence[Block], number: dict[Conditions, int]) -> dict[str, object]:
    amounts: list[str] = []
    block_rows: list[str] = []
    products: list[str] = []
    rules: list[str] = []
    chances: list[str] = []
    charges: list[str] = []
    known: dict[tuple[tuple[Place, int], ...], str] = {}

    def add(entries: tuple[tuple[Place, int], ...]) -> str:
        if entries not in known:
            begin = len(amounts)
            amounts.extend(f"{{{ground.places[p]}, 0, INT64_C({n})}}" for p, n in entries)
            known[entries] = f"{{{begin}, {len(amounts)}}}"
        return known[entries]

    for block in blocks:
        consume = add(block.consume)
        first, first_charge = len(products), len(charges)
        left = math.fsum(p for p, _ in block.rules)
        for probability, instance in block.rules:
            products.append(add(ground.instances[instance].produce))
            own = number[ground.instances[instance].condition,]
            rules.append(f"{{{probability!r}, {instance}, {own}}}")
            chances.append(_chance(min(1.0, probability / left)))
            left = max(left - probability, probability * 1e-300)
        charges.extend(f"{{{cell}, {charge}}}" for cell, charge in block.charges)
        mixed = "true" if len(block.conditions) > 1 else "false"
        ranges = f"{consume}, {{{first}, {len(products)}}}, {{{first_charge}, {len(charges)}}}"
        block_rows.append(f"{{{ranges}, {number[block.conditions]}, {mixed}}}")
    return {
        "blocks": block_rows, "amounts": amounts, "products": products, "rules": rules, "chances": chances,
        "charges": charges,
    }  # fmt: skip


def _chance(p: float) -> str:
    """The row of `random::Chance`: the smaller of p and 1 - p, its log and odds, and whether it is turned round."""
    small, flip = (1 - p, "true") if p > 0.5 else (p, "false")
    return f"{{{small!r}, {math.log1p(-small)!r}, {small / (1 - small)!r}, {flip}}}"


def _scratch_bytes(places: int, blocks: int, cells: int, conditions: int) -> int:
    """As `carve` of dcba.h lays the arrays out."""
    sizes = (8 * places, 8 * places, 8 * blocks, 4 * blocks, 4 * blocks, cells, conditions, blocks)
    return sum(-(-size // 64) * 64 for size in sizes)
