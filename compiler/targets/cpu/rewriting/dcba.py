"""Population dynamics (mode DCBA) as tables for `kernels/cpu/dcba.h`: blocks, their competition and their rules."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from echoc.compiler.targets.cpu.rewriting.ground import Condition, Ground, Place, refuse, render_condition
from echoc.errors import CompileError

TOLERANCE = 1e-6


@dataclass(slots=True)
class Block:
    """The instances that consume the same under the same condition and ask for the same charges."""

    consume: tuple[tuple[Place, int], ...]
    condition: Condition
    charges: tuple[tuple[int, int], ...]
    rules: list[tuple[float, int]] = field(default_factory=list)  # (probability, instance)


def find_blocks(ground: Ground) -> list[Block]:
    """Blocks of all instances, their rules by falling probability; what is left to 1 means that nothing happens.

    A block belongs to the cells that its left side takes from (to the holder's child, where only the holder gives), so
    that `a []'h --> [b]'h` and `a []'g --> [b]'g` are two, and the rules that move x out of one environment are one.
    Raises: CompileError for a rule that consumes nothing and for probabilities outside 0 to 1, alone or summed.
    """
    blocks: dict[object, Block] = {}
    rules = ground.system.rules
    for number, instance in enumerate(ground.instances):
        rule = rules[instance.rule]
        probability = 1.0 if rule.probability is None else float(rule.probability)
        if not 0 <= probability <= 1 + TOLERANCE:
            raise refuse(rule, f"has the probability {probability!r}, wanted 0 to 1", "dcba")
        if rule.rate is not None:
            raise refuse(rule, "has a rate instead of a probability", "dcba")
        if not instance.consume:
            raise refuse(rule, "consumes nothing and would be applied without end", "dcba")
        inner = instance.cells[1 : 1 + len(rule.inner)]
        takes = tuple(c for c, i in zip(inner, rule.inner, strict=True) if i.consume)
        key = (takes or inner or instance.cells[:1], instance.consume, instance.condition, instance.charges)
        block = blocks.setdefault(key, Block(instance.consume, instance.condition, instance.charges))
        if probability > 0:
            block.rules.append((probability * instance.share, number))
    for block in blocks.values():
        total = math.fsum(p for p, _ in block.rules)
        if total > 1 + TOLERANCE:
            rule = rules[ground.instances[block.rules[0][1]].rule]
            raise refuse(rule, f"shares its left side with rules whose probabilities sum to {total:.9g}, not 1", "dcba")
        block.rules.sort(key=lambda entry: -entry[0])
        if total < 1 - TOLERANCE:
            block.rules.append((1 - total, -1))
    return [b for b in blocks.values() if any(n >= 0 for _, n in b.rules)]


def exclusive(a: Condition, b: Condition) -> bool:
    """Whether they ask different charges of one cell, so that they never hold together."""
    wanted = dict(a.charges)
    return any(wanted.get(cell, value) != value for cell, value in b.charges)


def _together(groups: dict[Condition, list[int]]) -> Iterable[tuple[int, int]]:
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

    by_place: dict[Place, dict[Condition, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, block in enumerate(blocks):
        for place, _ in block.consume:
            by_place[place][block.condition].append(number)
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
    asked: dict[int, dict[int, set[Condition]]] = defaultdict(lambda: defaultdict(set))
    for block in blocks:
        for cell, charge in block.charges:
            asked[cell][charge].add(block.condition)
    for charges in asked.values():
        for (_, first), (_, second) in itertools.combinations(charges.items(), 2):
            if any(not exclusive(a, b) for a in first for b in second):
                return True
    return False


def tables(ground: Ground) -> dict[str, object]:
    """What `dcba.cpp.j2` prints: rows of every table as C++ text, and sizes."""
    blocks = find_blocks(ground)
    if not blocks:
        raise CompileError("no rule can ever be applied: wanted at least one whose reactants some membrane can hold")
    families = find_families(blocks)
    conditions = list(dict.fromkeys(b.condition for b in blocks))
    number = {c: i for i, c in enumerate(conditions)}
    alone = sorted((f[0] for f in families if len(f) == 1), key=lambda b: number[blocks[b].condition])
    competing = [f for f in families if len(f) > 1]
    order = alone + [b for f in competing for b in f]
    rows = _rows(ground, [blocks[b] for b in order], number)
    single = [0] * (len(conditions) + 1)
    for b in alone:
        single[number[blocks[b].condition] + 1] += 1
    single = list(itertools.accumulate(single))
    ends = list(itertools.accumulate((len(f) for f in competing), initial=len(alone)))
    return {
        **rows,
        "single": [f"{{{a}, {b}}}" for a, b in itertools.pairwise(single)],
        "family": [f"{{{a}, {b}}}" for a, b in itertools.pairwise(ends)] or ["{0, 0}"],
        "families": len(competing),
        "conditions": [render_condition(c, ground.places) for c in conditions],
        "conflicts": find_conflict(blocks),
        "scratch_bytes": _scratch_bytes(len(ground.places), len(blocks), len(ground.charges), len(conditions)),
    }


def _rows(ground: Ground, blocks: Sequence[Block], number: dict[Condition, int]) -> dict[str, object]:
    amounts: list[str] = []
    block_rows, products, instances, chances, charges = [], [], [], [], []

    def add(entries: Iterable[tuple[Place, int]]) -> str:
        begin = len(amounts)
        amounts.extend(f"{{{ground.places[p]}, 0, INT64_C({n})}}" for p, n in entries)
        return f"{{{begin}, {len(amounts)}}}"

    for block in blocks:
        consume = add(block.consume)
        first, first_charge = len(products), len(charges)
        left = math.fsum(p for p, _ in block.rules)
        for probability, instance in block.rules:
            products.append(add(ground.instances[instance].produce if instance >= 0 else block.consume))
            instances.append(str(instance))
            chances.append(_chance(min(1.0, probability / left)))
            left = max(left - probability, probability * 1e-300)
        charges.extend(f"{{{cell}, {charge}}}" for cell, charge in block.charges)
        ranges = f"{consume}, {{{first}, {len(products)}}}, {{{first_charge}, {len(charges)}}}"
        block_rows.append(f"{{{ranges}, {number[block.condition]}, 0}}")
    return {
        "blocks": block_rows, "amounts": amounts, "products": products, "instances": instances, "chances": chances,
        "charges": charges or ["{0, 0}"],
    }  # fmt: skip


def _chance(p: float) -> str:
    """The row of `random::Chance`: the smaller of p and 1 - p, its log and odds, and whether it is turned round."""
    small, flip = (1 - p, "true") if p > 0.5 else (p, "false")
    return f"{{{small!r}, {math.log1p(-small)!r}, {small / (1 - small)!r}, {flip}}}"


def _scratch_bytes(places: int, blocks: int, cells: int, conditions: int) -> int:
    """As `carve` of dcba.h lays the arrays out."""
    sizes = (8 * places, 8 * places, 8 * blocks, 4 * blocks, 4 * blocks, cells, conditions, blocks)
    return sum(-(-size // 64) * 64 for size in sizes)
