"""Choosing the targets of applications."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from echoc.compiler.ir.algebra import System

from .binding import Binding, Bindings
from .configuration import LARGEST, Application, StepError, describe, target_slots


def aim(
    system: System,
    bindings: Bindings,
    binding: Binding,
    times: int,
    random: Generator,
    once: dict[tuple[int, int, int], int],
) -> list[Application]:
    """A chosen binding with its targets: several applications where `in` targets differ.

    `once` keeps the targets that are drawn once a step, by (rule, holder, place among the targets).
    """
    index, membranes = binding
    aimed: dict[tuple[int, ...], int] = {(): times}
    for slot, (kind, label) in enumerate(target_slots(system.rules[index])):
        cells = bindings.targets(membranes[0], kind, label)
        split: dict[tuple[int, ...], int] = {}
        for chosen, count in aimed.items():
            if kind != "in":
                drawn = cells[int(random.integers(len(cells)))]
                split[*chosen, once.setdefault((index, membranes[0], slot), drawn)] = count
            elif len(cells) == 1:
                split[*chosen, cells[0]] = count
            elif count > LARGEST:
                raise StepError(f"{describe(system, index)} chooses a target {count} times; a draw holds 2^63 - 1")
            else:
                parts = random.multinomial(count, np.full(len(cells), 1 / len(cells)))
                split.update(((*chosen, cell), int(n)) for cell, n in zip(cells, parts, strict=True) if n)
        aimed = split
    return [Application(index, (*membranes, *targets), count) for targets, count in aimed.items() if count]
