"""Choosing the applications of one step, in every derivation mode."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from echoc.compiler.ir.algebra import Bound, Mode, Priority, System

from . import dcba, gillespie
from .aim import aim
from .binding import Binding, Bindings
from .configuration import LARGEST, Application, Configuration, StepError, describe
from .draft import Draft

FREE = (Bound.ARBITRARY, Bound.MINIMAL)


def generator(seed: int, step: int) -> Generator:
    """The random numbers of one step: Philox (Salmon et al., SC 2011), counted from the key (seed, step)."""
    return Generator(Philox(key=np.array([seed % 2**64, step % 2**64], dtype=np.uint64)))


def choose(system: System, configuration: Configuration, random: Generator) -> list[Application]:
    """The applications of the next step, drawn as the mode says. An empty list: the system halts, or waits for a delay,
    or (bound ARBITRARY) none was drawn.

    Mode PARALLEL. A binding is a rule with its holder and inner membranes. First, for bounds that ask for no more
    (ARBITRARY, and MINIMAL above what it needs), a binding or a stop is drawn, all equally likely, until the stop.
    Then bindings are drawn one at a time, each with a chance proportional to its rule's probability (None: 1) whatever
    the counts and multiplicities, among all for which there is room, until no group asks for more. Bindings that share
    no object, limit or claim are drawn apart, which does not change what comes out.
    Mode ORDERED: the same, one group after another. Mode SEQUENTIAL: one draw.
    The targets of `in` sends are drawn for every application, those of `linked`, `link`, `unlink` once for each rule
    and holder, all uniformly.

    Raises StepError for a rule that could be applied without end, and for draws over counts past 2^63 - 1.
    """
    if system.mode is Mode.GILLESPIE:
        return gillespie.choose(system, configuration, random)
    bindings = Bindings(system, configuration)
    draft = Draft(system, configuration, bindings)
    applicable = bindings.all()
    if system.mode is Mode.DCBA:
        dcba.distribute(draft, applicable, random)
    elif system.mode is Mode.SEQUENTIAL:
        live = draft.unbarred(b for b in applicable if draft.room(b) > 0)
        if live:
            draft.add(_draw(draft, live, random), 1)
    elif system.mode is Mode.ORDERED:
        for g in range(len(system.groups)):
            here = [b for b in applicable if draft.group_of[b[0]] == g and not draft.closed_to(g, b[1][0])]
            _fill(draft, here, random)
    else:
        _fill(draft, applicable, random)
    once: dict[tuple[int, int, int], int] = {}
    return [a for b, n in draft.times.items() for a in aim(system, bindings, b, n, random, once)]


def _fill(draft: Draft, bindings: Sequence[Binding], random: Generator) -> None:
    """Draws from every set of bindings that depend on each other until it asks for no more."""
    for together in components(draft, bindings):
        if any(draft.system.groups[draft.group_of[b[0]]].bound in FREE for b in together):
            _draw_freely(draft, together, random)
        while live := draft.unbarred(b for b in together if draft.must(b) and draft.room(b) > 0):
            if len(live) == 1:
                draft.add(live[0], _all(draft, live[0]))
            elif batch := _batch(draft, live):
                weights = _weights(draft, live)
                for binding, times in zip(live, random.multinomial(batch, weights), strict=True):
                    draft.add(binding, int(times))
            else:
                draft.add(_draw(draft, live, random), 1)
        if draft.system.priority is Priority.WEAK:  # those that had to wait for what is now exhausted
            _draw_freely(draft, together, random)


def _all(draft: Draft, binding: Binding) -> int:
    """How often the only binding left is applied."""
    bound = draft.system.groups[draft.group_of[binding[0]]].bound
    room = 1 if bound is Bound.MINIMAL else draft.room(binding)
    if room == math.inf:
        raise StepError(
            f"{describe(draft.system, binding[0])} takes nothing that runs out, so a maximal step would apply it "
            "without end; give its group a limit or let it consume something"
        )
    return int(room)


def _draw_freely(draft: Draft, bindings: Sequence[Binding], random: Generator) -> None:
    while True:
        live = draft.unbarred(b for b in bindings if draft.room(b) > 0)
        live = [b for b in live if draft.system.groups[draft.group_of[b[0]]].bound in FREE]
        if not live or random.integers(len(live) + 1) == len(live):
            return
        draft.add(_draw(draft, live, random), 1)


def _weights(draft: Draft, bindings: Sequence[Binding]) -> NDArray[np.float64]:
    given = [draft.rule(b).probability for b in bindings]
    weights = np.array([1.0 if w is None else w for w in given])
    result: NDArray[np.float64] = weights / weights.sum()
    return result


def _draw(draft: Draft, bindings: Sequence[Binding], random: Generator) -> Binding:
    return bindings[int(random.choice(len(bindings), p=_weights(draft, bindings)))]


def _batch(draft: Draft, live: Sequence[Binding]) -> int:
    """How many single draws can be made at once because none of them, whatever comes, takes the room of another.

    With at least B * (largest multiplicity) of every object, and B applications below every limit, every binding still
    has room after B - 1 draws. 0: draw singly, as claims are still open or a bound counts otherwise.
    """
    most: float = math.inf
    largest: dict[tuple[int, str], int] = {}
    for binding in live:
        g = draft.group_of[binding[0]]
        bound = draft.system.groups[g].bound
        if bound not in (Bound.MAXIMAL, Bound.AT_MOST) or any(
            key not in draft.claimed for key in draft.claims(binding)
        ):
            return 0
        if draft.room(binding) == math.inf:
            _all(draft, binding)  # says so
        most = min(most, draft.limit(binding))
        for key, count in draft.takes(binding).items():
            largest[key] = max(count, largest.get(key, 0))
    for (cell, name), count in largest.items():
        there = draft.left[cell].get(name, 0)
        if there != math.inf:
            most = min(most, int(there) // count)
    if most > LARGEST:
        raise StepError(f"rules compete for {most} objects; a draw holds at most 2^63 - 1")
    return int(most)


def components(draft: Draft, bindings: Iterable[Binding]) -> list[list[Binding]]:
    """The bindings in sets that share no key (see `Draft.keys`), in order of first appearance."""
    parent: dict[Hashable, Hashable] = {}

    def root(node: Hashable) -> Hashable:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    listed = list(bindings)
    for binding in listed:
        for key in draft.keys(binding):
            parent[root(("key", key))] = root(binding)
    sets: dict[Hashable, list[Binding]] = defaultdict(list)
    for binding in listed:
        sets[root(binding)].append(binding)
    return list(sets.values())
