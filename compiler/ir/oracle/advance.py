"""Applying a chosen multiset of rules: the second half of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from echoc.compiler.ir.algebra import Bag, Rule, System, Target

from .configuration import (
    ENVIRONMENT,
    LARGEST,
    Application,
    Configuration,
    Membrane,
    StepError,
    describe,
    holds_unbounded,
    is_skin,
)
from .events import WAIT, next_moment, settle


@dataclass
class _Cell:
    """A membrane while a step is applied: `arrived` is kept apart until no more objects are taken."""

    now: Membrane
    objects: Counter[str]
    arrived: Counter[str]


@dataclass(frozen=True)
class _Part:
    """One of the membranes that a dividing one becomes."""

    label: str
    charge: int | None
    produce: Bag
    keeps: frozenset[str] | None


class _Step:
    def __init__(self, system: System, configuration: Configuration) -> None:
        self.system = system
        self.old = configuration
        self.cells = {c.id: _Cell(c, Counter(c.objects), Counter()) for c in configuration.cells.values()}
        self.links = set(configuration.links)
        self.environment = Counter(configuration.environment)
        self.environment_arrived: Counter[str] = Counter()
        self.divisions: dict[int, list[_Part]] = {}
        self.dissolutions = {c.id for c in configuration.cells.values() if c.leaving}
        self.link: list[tuple[int, int]] = []
        self.unlink: list[tuple[int, int]] = []
        self.next_id = configuration.next_id

    def take(self, cell: int, objects: Bag, times: int, index: int) -> None:
        source = self.environment if cell == ENVIRONMENT else self.cells[cell].objects
        free = cell != ENVIRONMENT and holds_unbounded(self.system, self.old.cells[cell])
        for name, count in objects:
            if free and name in self.system.unbounded:
                continue
            source[name] -= count * times
            if source[name] < 0:
                what = f"{-source[name]} more of {name} than there are in membrane #{cell}"
                raise StepError(f"{describe(self.system, index)} takes {what}")

    def place(self, cell: int, objects: Bag, times: int) -> None:
        """Products arrive. What is sent to a closed cell is lost, as is what comes after its target has gone."""
        if cell == ENVIRONMENT:
            arrived = self.environment_arrived
        elif cell not in self.cells or self.cells[cell].now.closed:
            return
        else:
            arrived = self.cells[cell].arrived
        for name, count in objects:
            arrived[name] += count * times

    def change(self, cell: int, **changes: object) -> None:
        self.cells[cell].now = replace(self.cells[cell].now, **changes)  # type: ignore[arg-type]

    def consume(self, application: Application) -> None:
        rule = self.system.rules[application.rule]
        self.take(application.membranes[0], rule.consume, application.times, application.rule)
        for cell, inner in zip(application.membranes[1:], rule.inner, strict=False):
            self.take(cell, inner.consume, application.times, application.rule)

    def open_and_close(self, applications: Iterable[Application]) -> list[Application]:
        """Closed cells come a step nearer to opening; rules with a delay close theirs. Returns what arrives now."""
        arriving: list[Application] = []
        for cell in self.cells.values():
            if cell.now.closed:
                opening = cell.now.closed == 1
                arriving.extend(cell.now.pending if opening else ())
                pending = () if opening else cell.now.pending
                cell.now = replace(cell.now, closed=cell.now.closed - 1, pending=pending)
        for application in applications:
            delay = self.system.rules[application.rule].delay
            if delay:
                cell = self.cells[application.membranes[0]]
                cell.now = replace(cell.now, closed=delay, pending=(*cell.now.pending, application))
            else:
                arriving.append(application)
        return arriving

    def produce(self, application: Application) -> None:
        """Products of the holder, the inner membranes that stay, and the sends. An inner membrane that dissolves or
        divides is left to `restructure`."""
        rule = self.system.rules[application.rule]
        holder = application.membranes[0]
        self.place(holder, rule.produce, application.times)
        for cell, inner in zip(application.membranes[1:], rule.inner, strict=False):
            if len(inner.results) == 1:
                self.place(cell, inner.results[0].produce, application.times)
        targets = list(application.membranes[1 + len(rule.inner) :])
        for send in rule.send:
            if send.target is Target.OUT:
                self.place(
                    self.old.around(holder) if holder != ENVIRONMENT else holder, send.objects, application.times
                )
            elif send.target is Target.SYNAPSES:
                for cell in self.old.linked(holder):
                    self.place(cell, send.objects, application.times)
            else:
                self.place(targets.pop(0), send.objects, application.times)

    def note(self, application: Application) -> None:
        """Charges, labels, and what is to be divided, dissolved, linked."""
        rule = self.system.rules[application.rule]
        holder = application.membranes[0]
        if rule.new_charge is not None and holder != ENVIRONMENT:
            self.change(holder, charge=rule.new_charge)
        for cell, inner in zip(application.membranes[1:], rule.inner, strict=False):
            if not inner.results:
                self.dissolutions.add(cell)
            elif len(inner.results) == 1:
                (result,) = inner.results
                charge = self.cells[cell].now.charge if result.charge is None else result.charge
                label = result.label if result.label != inner.label else self.cells[cell].now.label
                self.change(cell, label=label, charge=charge)
        if rule.dissolve and holder != ENVIRONMENT and not is_skin(self.system, self.old.cells[holder]):
            self.dissolutions.add(holder)
        self._note_links(rule, application)

    def note_divisions(self, application: Application) -> None:
        """What is to be divided."""
        rule = self.system.rules[application.rule]
        for cell, inner in zip(application.membranes[1:], rule.inner, strict=False):
            if len(inner.results) > 1:
                self.divisions[cell] = [_Part(r.label, r.charge, r.produce, r.keeps) for r in inner.results]
        if rule.divide:
            self.divisions[application.membranes[0]] = [_Part(label, None, bag, None) for label, bag in rule.divide]

    def _note_links(self, rule: Rule, application: Application) -> None:
        rest = list(application.membranes)
        if rule.unlink is not None:
            other = rest.pop()
            self.unlink += [(rest[0], other), (other, rest[0])]
        if rule.link is not None:
            other = rest.pop()
            self.link += [(rest[0], other), (other, rest[0])]

    def settle(self) -> None:
        """Products join what is there."""
        self.environment += self.environment_arrived
        for cell in self.cells.values():
            cell.objects += cell.arrived
            if holds_unbounded(self.system, cell.now):
                for name in self.system.unbounded:
                    cell.objects.pop(name, None)
        self.links.difference_update(self.unlink)
        self.links.update(self.link)

    def depth(self, cell: int) -> int:
        result = 0
        parent = self.cells[cell].now.parent
        while parent is not None:
            parent = self.cells[parent].now.parent
            result += 1
        return result

    def fork(self) -> None:
        for cell in sorted(self.divisions, key=lambda c: (-self.depth(c), c)):
            self.divide(cell, self.divisions[cell])

    def release(self) -> None:
        for cell in sorted(self.dissolutions, key=lambda c: (-self.depth(c), c)):
            self.dissolve(cell)

    def divide(self, cell: int, parts: Sequence[_Part]) -> None:
        """The first part keeps the id, and with it its children; each other one is a copy with copies of them."""
        content = Counter(self.cells[cell].objects)
        ids = [cell] + [self.copy(cell, self.cells[cell].now.parent) for _ in parts[1:]]
        for part_id, part in zip(ids, parts, strict=True):
            here = self.cells[part_id]
            if part.keeps is not None:
                here.objects = Counter({o: n for o, n in content.items() if o in part.keeps})
            for name, count in part.produce:
                here.objects[name] += count
            charge = here.now.charge if part.charge is None else part.charge
            here.now = replace(here.now, label=part.label, charge=charge)

    def copy(self, cell: int, parent: int | None) -> int:
        """A copy of a membrane with all inside it, links, and what the step still does to them; returns its id."""
        new: dict[int, int] = {}
        queue = [cell]
        for old in queue:
            new[old] = self.next_id
            self.next_id += 1
            source = self.cells[old]
            around = parent if old == cell else new[source.now.parent]  # type: ignore[index]
            fresh = replace(source.now, id=new[old], parent=around)
            self.cells[new[old]] = _Cell(fresh, Counter(source.objects), Counter())
            queue += [c.now.id for c in self.cells.values() if c.now.parent == old]
            if old in self.dissolutions:
                self.dissolutions.add(new[old])
        inside = {(new[a], new[b]) for a, b in self.links if a in new and b in new}
        outside = {(new.get(a, a), new.get(b, b)) for a, b in self.links if (a in new) != (b in new)}
        self.links |= inside | outside
        return new[cell]

    def dissolve(self, cell: int) -> None:
        """Content and children go to the membrane around; in a graph there is none, and the content is lost."""
        gone = self.cells.pop(cell)
        parent = gone.now.parent
        if parent is not None:
            self.cells[parent].objects += gone.objects
            if holds_unbounded(self.system, self.cells[parent].now):
                for name in self.system.unbounded:
                    self.cells[parent].objects.pop(name, None)
        for child in self.cells.values():
            if child.now.parent == cell:
                child.now = replace(child.now, parent=parent)
        self.links = {link for link in self.links if cell not in link}

    def finish(self, exact: bool, steps: int = 0, time: float = 0.0) -> Configuration:
        cells = {}
        for i in sorted(self.cells):
            objects = _plain(self.cells[i].objects, f"membrane #{i}", exact)
            cells[i] = replace(self.cells[i].now, objects=objects, leaving=i in self.dissolutions)
        environment = _plain(self.environment, "the environment", exact)
        old = self.old
        return Configuration(
            cells, frozenset(self.links), environment, old.step + steps, old.time + time, self.next_id, old.triggered,
            old.pending,
        )  # fmt: skip


def _plain(objects: Mapping[str, int], where: str, exact: bool) -> dict[str, int]:
    for name, count in objects.items():
        if count > LARGEST and not exact:
            raise StepError(f"{where} would hold {count} of {name}; counts end at 2^63 - 1 unless exact=True is given")
    return {name: count for name, count in sorted(objects.items()) if count}


def communicate(
    system: System, configuration: Configuration, applications: Sequence[Application], *, exact: bool = False
) -> Configuration:
    """The first part of `apply`: objects are consumed, then products arrive, then charges and links change. Membranes
    that are to dissolve are marked as leaving, those that are to divide are still whole. Then events happen.

    Raises StepError as `apply` does.
    """
    configuration = settle(system, configuration)
    if any(a.rule == WAIT for a in applications):
        moment = next_moment(system, configuration)
        return settle(system, replace(configuration, time=moment, step=configuration.step + 1))
    step = _Step(system, configuration)
    for application in applications:
        step.consume(application)
    for application in step.open_and_close(applications):
        step.produce(application)
    for application in applications:
        step.note(application)
    step.settle()
    return settle(system, step.finish(exact, 1, sum(a.after for a in applications)))


def fork(
    system: System, configuration: Configuration, applications: Sequence[Application], *, exact: bool = False
) -> Configuration:
    """The second part of `apply`: membranes divide, innermost first; what is leaving does so in every copy."""
    step = _Step(system, configuration)
    for application in applications:
        if application.rule != WAIT:
            step.note_divisions(application)
    step.fork()
    return step.finish(exact)


def release(system: System, configuration: Configuration, *, exact: bool = False) -> Configuration:
    """The last part of `apply`: membranes that are leaving dissolve, innermost first."""
    step = _Step(system, configuration)
    step.release()
    step.dissolutions.clear()
    return step.finish(exact)


def apply(
    system: System, configuration: Configuration, applications: Sequence[Application], *, exact: bool = False
) -> Configuration:
    """The configuration after the applications: objects are consumed, then products arrive, then charges change, then
    membranes divide (innermost first) and dissolve (innermost first).

    It does not ask whether the choice is a legal one (`check` does), but for its objects.
    Raises StepError when more is consumed than is there, and for a count past 2^63 - 1 unless `exact`.
    """
    after = communicate(system, configuration, applications, exact=exact)
    if any(_divides(system.rules[a.rule]) for a in applications if a.rule != WAIT):
        after = fork(system, after, applications, exact=exact)
    if any(cell.leaving for cell in after.cells.values()):
        after = release(system, after, exact=exact)
    return after


def _divides(rule: Rule) -> bool:
    return bool(rule.divide) or any(len(inner.results) > 1 for inner in rule.inner)
