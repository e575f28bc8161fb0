"""Configurations for showing: equal membranes grouped, what is beyond a limit counted instead of shown; counts over
steps; frames thinned to what a viewer can hold. Everything here is iterative: nesting may be as deep as it likes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .trace import Frame, Membrane

T = TypeVar("T")


@dataclass(slots=True)
class Node:
    """`times` equal membranes. `hidden`: membranes inside each that are not shown."""

    label: str
    charge: int
    name: str
    closed: int
    objects: Mapping[str, int]
    times: int = 1
    children: list[Node] = field(default_factory=list)
    hidden: int = 0
    id: int = -1


def forest(frame: Frame, *, merge: bool = True, most: int = 1 << 62, deepest: int = 1 << 62) -> tuple[list[Node], int]:
    """The outermost membranes with what is inside, and how many outermost ones are not shown.

    merge: equal membranes (label, charge, name, objects, and equal inside) side by side become one node. At most
    `most` nodes, the outer ones first, to the depth `deepest`.
    """
    inside, roots = _children(frame.membranes)
    sizes = _sizes(frame.membranes, inside, roots)
    kinds = _kinds(inside, roots) if merge else {}
    shown: list[Node] = []
    queue: deque[tuple[list[Membrane], Node | None, int]] = deque([(roots, None, 0)])
    left, hidden = most, 0
    while queue:
        members, parent, depth = queue.popleft()
        groups: dict[int, list[Membrane]] = {}
        for m in members:
            groups.setdefault(kinds[m.id] if merge else m.id, []).append(m)
        room = max(0, left) if depth < deepest else 0
        for number, group in enumerate(groups.values()):
            first = group[0]
            if number >= room:
                if parent is None:
                    hidden += len(group) * sizes[first.id]
                else:
                    parent.hidden += len(group) * sizes[first.id]
                continue
            node = Node(first.label, first.charge, first.name, first.closed, first.objects, len(group), id=first.id)
            left -= 1
            (shown if parent is None else parent.children).append(node)
            if first.id in inside:
                queue.append((inside[first.id], node, depth + 1))
    return shown, hidden


def _children(membranes: Sequence[Membrane]) -> tuple[dict[int, list[Membrane]], list[Membrane]]:
    inside: dict[int, list[Membrane]] = {}
    roots: list[Membrane] = []
    for m in membranes:
        (roots if m.parent is None else inside.setdefault(m.parent, [])).append(m)
    return inside, roots


def _outer_first(inside: Mapping[int, list[Membrane]], roots: list[Membrane]) -> list[Membrane]:
    order = list(roots)
    for m in order:  # grows while it is walked: a breadth-first order
        order.extend(inside.get(m.id, ()))
    return order


def _sizes(
    membranes: Sequence[Membrane], inside: Mapping[int, list[Membrane]], roots: list[Membrane]
) -> dict[int, int]:
    sizes = {m.id: 1 for m in membranes}
    for m in reversed(_outer_first(inside, roots)):
        if m.parent is not None:
            sizes[m.parent] += sizes[m.id]
    return sizes


def _kinds(inside: Mapping[int, list[Membrane]], roots: list[Membrane]) -> dict[int, int]:
    """A number for every membrane, the same for equal ones."""
    known: dict[object, int] = {}
    kinds: dict[int, int] = {}
    for m in reversed(_outer_first(inside, roots)):
        within: dict[int, int] = {}
        for child in inside.get(m.id, ()):
            within[kinds[child.id]] = within.get(kinds[child.id], 0) + 1
        shape = (m.label, m.charge, m.name, m.closed, frozenset(m.objects.items()), frozenset(within.items()))
        kinds[m.id] = known.setdefault(shape, len(known))
    return kinds


class Thinned(Generic[T]):
    """Keeps at most `most` items of a stream (of at most `budget` weight), evenly, and always the newest."""

    def __init__(self, most: int, budget: int = 1 << 62) -> None:
        self.most, self.budget = most, budget
        self.stride, self.seen = 1, 0
        self._kept: list[tuple[int, T]] = []
        self._weight = 0
        self._newest: tuple[int, Callable[[], tuple[int, T]]] | None = None

    def offer(self, make: Callable[[], tuple[int, T]]) -> None:
        """The next item; `make` gives its weight and the item, and is called only if it is kept."""
        if self.seen % self.stride == 0:
            item = make()
            self._kept.append(item)
            self._weight += item[0]
            self._newest = None
            while len(self._kept) > 2 and (len(self._kept) > self.most or self._weight > self.budget):
                dropped = self._kept[-1] if len(self._kept) % 2 == 0 else None
                self._kept = self._kept[::2]
                self.stride *= 2
                self._weight = sum(w for w, _ in self._kept)
                if dropped is not None:
                    self._newest = (self.seen, lambda dropped=dropped: dropped)
        else:
            self._newest = (self.seen, make)
        self.seen += 1

    def items(self) -> list[T]:
        kept = [item for _, item in self._kept]
        return [*kept, self._newest[1]()[1]] if self._newest is not None else kept


@dataclass(frozen=True, slots=True)
class Series:
    """Quantities over steps: `lines` in order of information; `membranes` None for numerical values."""

    steps: tuple[int, ...]
    times: tuple[float, ...] | None
    lines: tuple[tuple[str, tuple[float, ...]], ...]
    other: tuple[float, ...] | None
    num_other: int
    membranes: tuple[int, ...] | None


@dataclass(slots=True)
class Sample:
    step: int
    time: float | None
    numbers: Mapping[str, float]
    membranes: int | None


def sample(frame: Frame) -> tuple[int, Sample]:
    if frame.values is not None:
        return len(frame.values) + 1, Sample(frame.step, frame.time, frame.values, None)
    totals = frame.totals()
    return len(totals) + 1, Sample(frame.step, frame.time, totals, frame.num_membranes)


def series(samples: Iterable[Sample], most: int = 7) -> Series:
    """The `most` quantities of largest variance; the rest summed as `other`.

    Counts are ranked by the variance of log(1 + count), so that a rare object that comes and goes is not drowned by one
    that is there in thousands; numerical values likewise, by sign(v) log(1 + |v|).
    """
    taken = list(samples)
    numeric = any(s.membranes is None for s in taken)
    names = list({name: None for s in taken for name in s.numbers})
    ranked = sorted(names, key=lambda name: (-_spread([s.numbers.get(name, 0) for s in taken]), name))
    chosen = ranked if len(ranked) <= most + 1 else ranked[:most]
    rest = set(ranked[len(chosen) :])
    lines = tuple((n, tuple(_float(s.numbers.get(n, 0)) for s in taken)) for n in chosen)
    other = None
    if rest and not numeric:
        other = tuple(_float(sum(v for n, v in s.numbers.items() if n in rest)) for s in taken)
    timed = bool(taken) and all(s.time is not None for s in taken)
    return Series(
        tuple(s.step for s in taken),
        tuple(s.time or 0.0 for s in taken) if timed else None,
        lines,
        other,
        len(rest),
        None if numeric else tuple(s.membranes or 0 for s in taken),
    )


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _spread(values: Sequence[float]) -> float:
    finite = (v for v in values if not isinstance(v, float) or math.isfinite(v))
    logs = [math.log(1 + abs(v)) * (-1 if v < 0 else 1) for v in finite]  # of integers too large for a float as well
    if not logs:
        return 0.0
    mean = math.fsum(logs) / len(logs)
    return math.fsum((x - mean) ** 2 for x in logs) / len(logs)
