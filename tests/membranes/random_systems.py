"""Seeded random P systems of every family, small and of bounded growth, for comparing programs with the interpreter.

Objects have ranks, in alphabetical order. A rule that makes more objects than it takes makes only higher ones, and any
other makes none lower than what it takes: so counts stay bounded, and divisions end.
With `confluent`, no two applications compete (for objects, bounds, charges or structure) and no target is chosen: every
seed of a run chooses the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from echoc.compiler.ir.algebra import (
    Bag,
    Bound,
    Cell,
    Group,
    Guard,
    Inner,
    Mode,
    Priority,
    Result,
    Rule,
    Send,
    System,
    Target,
    bag,
)
from echoc.compiler.ir.expression import Expression, call, name, number
from echoc.membranes.numerical import NumericalSystem, Production, Variable

FAMILIES = ("transition", "active", "tissue", "pdp", "spiking", "kernel", "chemical")
OBJECTS = "abcdefgh"


def random_system(seed: int, family: str, *, confluent: bool = False) -> System:
    """A P system of one of FAMILIES; the same for the same arguments.

    `confluent` is there for transition, active, tissue, spiking and kernel. Raises ValueError for anything else.
    """
    made = {
        "transition": transition,
        "active": active,
        "tissue": tissue,
        "pdp": pdp,
        "spiking": spiking,
        "kernel": kernel,
        "chemical": chemical,
    }
    if family not in made or (confluent and family in ("pdp", "chemical")):
        raise ValueError(f"there are no {'confluent ' * confluent}random systems of {family!r}; known: {FAMILIES}")
    return made[family](Random(f"{family}/{seed}/{confluent}"), confluent)


class Palette:
    """Left and right sides that keep growth bounded; with `confluent`, no object of a label is used by two rules."""

    def __init__(self, random: Random, confluent: bool, objects: str = OBJECTS) -> None:
        self.random = random
        self.confluent = confluent
        self.objects = objects
        self.free: dict[str, list[str]] = {}

    def left(self, label: str, most: int = 3) -> Bag | None:
        """Up to `most` objects to take in a membrane of a label; None when no free ones are left."""
        free = self.free.setdefault(label, list(self.objects))
        if not free:
            return None
        chosen = [self.random.choice(free) for _ in range(self.random.randint(1, most))]
        if self.confluent:
            self.free[label] = [o for o in free if o not in chosen]
        return bag(chosen)

    def right(self, left: Bag, most: int = 3) -> Bag:
        """Objects to make of `left`."""
        size = sum(n for _, n in left)
        count = self.random.randint(0, most)
        top = max(self.objects.index(o) for o, _ in left)
        lowest = top + 1 if count > size or self.random.random() < 0.4 else top
        pool = self.objects[lowest : lowest + 2]
        return bag([self.random.choice(pool) for _ in range(count)] if pool else [])

    def start(self, most: int = 6) -> Bag:
        return bag({o: self.random.randint(0, most) for o in self.objects if self.random.random() < 0.7})


def transition(random: Random, confluent: bool) -> System:
    """A tree of cells with rules that send out and in, dissolve, have promoters, inhibitors and priorities."""
    palette = Palette(random, confluent)
    cells = [Cell("1", None, palette.start())]
    for i in range(2, random.randint(3, 6)):
        label = str(i) if confluent else str(random.randint(2, i))
        cells.append(Cell(label, random.randrange(len(cells)), palette.start()))
    rules: list[Rule] = []
    for _ in range(random.randint(6, 14)):
        cell = random.choice(cells)
        left = palette.left(cell.label)
        if left is None:
            continue
        children = [c.label for c in cells if c.parent is not None and cells[c.parent].label == cell.label]
        rules.append(
            Rule(
                cell.label,
                left,
                palette.right(left, 2),
                dissolve=cell.label != "1" and random.random() < 0.15,
                send=tuple(_transition_sends(random, palette, left, children)),
                promoters=bag({random.choice(OBJECTS): 1} if random.random() < 0.15 else {}),
                inhibitors=bag({random.choice(OBJECTS): random.randint(1, 3)} if random.random() < 0.15 else {}),
                priority=random.randint(1, 3) if random.random() < 0.4 else None,
                probability=None if random.random() < 0.7 else random.choice((0.25, 0.5, 0.75)),
            )
        )
    priority = random.choice((Priority.STRONG, Priority.WEAK))
    return System("transition", tuple(cells), tuple(rules), _one_group(rules), priority=priority)


def _transition_sends(random: Random, palette: Palette, left: Bag, children: list[str]) -> Iterator[Send]:
    if random.random() < 0.3:
        yield Send(Target.OUT, palette.right(left, 1))
    if children and random.random() < 0.3:
        yield Send(Target.IN, palette.right(left, 1), random.choice(children))


def _one_group(rules: list[Rule]) -> tuple[Group, ...]:
    return (Group(tuple(range(len(rules)))),) if rules else ()


def active(random: Random, confluent: bool) -> System:
    """Charges, evolution, and per membrane at most one of send-in, send-out, dissolution and division a step."""
    palette = Palette(random, confluent, OBJECTS[:6])
    cells = [Cell("1", None, palette.start(3))]
    for i in range(2, random.randint(3, 5)):
        label = str(i) if confluent else str(random.randint(2, i))
        cells.append(Cell(label, random.randrange(min(2, len(cells))), palette.start(2), random.choice((0, 0, 1, -1))))
    evolution: list[Rule] = []
    others: list[Rule] = []
    for cell in cells:
        for _ in range(random.randint(2, 4)):
            left = palette.left(cell.label, 2)
            if left is not None:
                charge = random.choice((None, 0, 0, 1))
                evolution.append(Rule(cell.label, left, palette.right(left), charge=charge))
        for _ in range(1 if confluent else random.randint(1, 4)):
            rule = _active_rule(random, palette, cell, cells, confluent)
            if rule is not None:
                others.append(rule)
    rules = evolution + others
    groups = [Group(tuple(range(len(evolution))))] if evolution else []
    if others:
        groups.append(Group(tuple(range(len(evolution), len(rules))), Bound.AT_MOST, 1))
    return System("active", tuple(cells), tuple(rules), tuple(groups))


def _active_rule(random: Random, palette: Palette, cell: Cell, cells: list[Cell], confluent: bool) -> Rule | None:
    skin = cell.parent is None
    kind = random.choice(("out", "in", "dissolve", "divide"))
    before, after = random.choice((0, 0, 1, -1)), random.choice((0, 1, -1))
    if kind == "in" and confluent:
        kind = "out"  # a membrane that divides would compete with its copies for what is around it
    if kind == "in":
        around = "1" if skin else cells[cell.parent or 0].label
        left = palette.left(around, 1)
        if left is None or skin:
            return None
        inner = Inner(cell.label, before, (), (Result(cell.label, after, palette.right(left, 1)),))
        return Rule(None, left, inner=(inner,))
    left = palette.left(cell.label, 1)
    if left is None:
        return None
    if kind == "out" or skin:
        inner = Inner(cell.label, before, left, (Result(cell.label, after),))
        return Rule(None, produce=palette.right(left, 1), inner=(inner,))
    if kind == "dissolve":
        return Rule(None, produce=palette.right(left, 1), inner=(Inner(cell.label, before, left),))
    higher = bag(palette.objects[palette.objects.index(left[0][0]) + 1 :][:1])
    parts = (Result(cell.label, after, higher), Result(cell.label, random.choice((0, 1)), higher))
    return Rule(None, inner=(Inner(cell.label, before, left, parts),))


def tissue(random: Random, confluent: bool) -> System:
    """Symport and antiport between cells and with an environment of unlimited supply, division and separation."""
    palette = Palette(random, confluent)
    labels = [str(i) for i in range(1, random.randint(3, 5))]
    cells = [Cell("0", None, palette.start(2))]
    for label in labels:
        cells += [Cell(label, 0, palette.start(4))] * (1 if confluent else random.randint(1, 2))
    unbounded = frozenset(random.sample(OBJECTS, 2))
    moving: list[Rule] = []
    for _ in range(random.randint(4, 9)):
        rule = _exchange(random, palette, labels, unbounded, confluent)
        if rule is not None:
            moving.append(rule)
    splitting: list[Rule] = []
    for label in random.sample(labels, random.randint(0, 1)):
        left = palette.left(label, 1)
        if left is not None:
            splitting.append(_split(random, palette, label, left))
    rules = moving + splitting
    groups = [Group(tuple(range(len(moving))))] if moving else []
    if splitting:
        groups.append(Group(tuple(range(len(moving), len(rules))), Bound.AT_MOST, 1))
    return System("tissue", tuple(cells), tuple(rules), tuple(groups), unbounded=unbounded)


def _exchange(
    random: Random, palette: Palette, labels: list[str], unbounded: frozenset[str], confluent: bool
) -> Rule | None:
    """Objects of one cell for those of another or of the environment."""
    one = random.choice(labels)
    left = palette.left(one, 2)
    if left is None:
        return None
    top = max(o for o, _ in left)
    if confluent or random.random() < 0.5:
        free = sorted(o for o in unbounded if o > top)
        back = bag(random.sample(free, min(len(free), random.randint(0, 2))))
        return Rule("0", back, left, inner=(Inner(one, None, left, (Result(one, produce=back),)),))
    other = random.choice(labels)
    back = bag({random.choice(OBJECTS): 1} if random.random() < 0.5 else {})
    inner = (
        Inner(one, None, left, (Result(one, produce=back),)),
        Inner(other, None, back, (Result(other, produce=left),)),
    )
    return Rule(None, inner=inner)


def _split(random: Random, palette: Palette, label: str, left: Bag) -> Rule:
    higher = bag(palette.objects[palette.objects.index(left[0][0]) + 1 :][:1])
    if random.random() < 0.5:
        return Rule(None, inner=(Inner(label, None, left, (Result(label, produce=higher), Result(label))),))
    keeps = frozenset(random.sample(palette.objects, 3))
    parts = (Result(label, keeps=keeps), Result(label, keeps=frozenset(palette.objects) - keeps))
    return Rule(None, inner=(Inner(label, None, left, parts),))


def pdp(random: Random, confluent: bool) -> System:
    """Environments with the same skeleton of membranes, blocks of rules with probabilities, moves between them."""
    palette = Palette(random, confluent)
    places = [f"e{i}" for i in range(1, random.randint(2, 4))]
    cells = [Cell("0")]
    for place in places:
        cells.append(Cell(place, 0, palette.start(20)))
        cells.append(Cell("1", len(cells) - 1, palette.start(40), random.choice((0, 0, 1))))
        cells.append(Cell("2", len(cells) - 1, palette.start(40)))
    rules: list[Rule] = []
    for _ in range(random.randint(3, 7)):
        label = random.choice("12")
        u, v = (palette.left("u", 2) if random.random() < 0.5 else ()), palette.left("v", 2) or ()
        before, after = random.choice((0, 0, 1)), random.choice((0, 0, 0, 1))
        for probability in _shares(random):
            result = Result(label, after, palette.right(v, 2))
            rules.append(
                Rule(
                    None,
                    u or (),
                    palette.right(v, 1),
                    inner=(Inner(label, before, v, (result,)),),
                    probability=probability,
                )
            )
    if len(places) > 1:
        rules.extend(_moves(random, places))
    return System("pdp", tuple(cells), tuple(rules), _one_group(rules), mode=Mode.DCBA)


def _shares(random: Random) -> list[float]:
    """Probabilities that add up to 1, in sixteenths."""
    parts = random.randint(1, 3)
    cuts = sorted(random.sample(range(1, 16), parts - 1))
    return [(b - a) / 16 for a, b in zip([0, *cuts], [*cuts, 16], strict=True)]


def _moves(random: Random, places: list[str]) -> Iterator[Rule]:
    for moved in random.sample(OBJECTS, 2):
        source = random.choice(places)
        others = [p for p in places if p != source]
        for target, probability in zip(others, [1.0] if len(others) == 1 else [0.25, 0.75], strict=True):
            yield Rule(
                "0",
                inner=(
                    Inner(source, None, bag(moved), (Result(source),)),
                    Inner(target, None, (), (Result(target, produce=bag(moved)),)),
                ),
                probability=probability,
            )


def spiking(random: Random, confluent: bool) -> System:
    """Neurons with regular guards, delays and forgetting; a first neuron that spikes into the environment."""
    count = random.randint(2, 6)
    neurons = [str(i) for i in range(count)]
    cells = tuple(Cell(n, None, bag({"a": random.randint(0, 5)})) for n in neurons)
    links = tuple((i, j) for i in range(count) for j in range(count) if i != j and random.random() < 0.4)
    rules: list[Rule] = []
    groups: list[Group] = []
    for i, neuron in enumerate(neurons):
        first = len(rules)
        for _ in range(1 if confluent else random.randint(1, 3)):
            takes = random.randint(1, 3)
            makes = random.randint(0, takes)
            send = [Send(Target.SYNAPSES, bag({"a": makes}))] if makes else []
            if makes and i == 0:
                send.append(Send(Target.OUT, bag({"a": makes})))
            delay = random.choice((0, 0, 1, 2)) if makes else 0
            rules.append(Rule(neuron, bag({"a": takes}), send=tuple(send), guard=_regular(random, takes), delay=delay))
        bound = random.choice((Bound.AT_MOST, Bound.CHOICE))
        groups.append(Group(tuple(range(first, len(rules))), bound, 1))
    return System("spiking", cells, tuple(rules), tuple(groups), links=links)


def _regular(random: Random, takes: int) -> Guard:
    """A regular set of spike numbers."""
    kind = random.choice(("eq", "ge", "in"))
    if kind != "in":
        return Guard(kind, "a", takes)
    period = random.randint(1, 3)
    starts = tuple(n for n in range(takes) if random.random() < 0.2)
    residues = tuple(sorted(random.sample(range(period), random.randint(1, period))))
    return Guard("in", "a", starts=starts, threshold=takes, period=period, residues=residues)


def kernel(random: Random, confluent: bool) -> System:
    """A graph of typed instances with blocks of rules in order, guards, division, dissolution and changing links."""
    palette = Palette(random, confluent)
    types = ["P", "Q", "R"]
    cells = [Cell(t, None, palette.start(4)) for t in types for _ in range(1 if confluent else random.randint(1, 2))]
    links: list[tuple[int, int]] = []
    for i in range(1, len(cells)):
        j = random.randrange(i)
        links += [(i, j), (j, i)]
    rules: list[Rule] = []
    groups: list[Group] = []
    bounds = (Bound.MAXIMAL, Bound.SEQUENCE) if confluent else tuple(b for b in Bound if b is not Bound.AT_MOST)
    for label in types:
        for _ in range(random.randint(1, 2)):
            first = len(rules)
            for _ in range(random.randint(1, 3)):
                left = palette.left(label, 2)
                if left is not None:
                    rules.append(_kernel_rule(random, palette, label, left, types, confluent))
            if len(rules) > first:
                groups.append(Group(tuple(range(first, len(rules))), random.choice(bounds)))
    return System("kernel", tuple(cells), tuple(rules), tuple(groups), mode=Mode.ORDERED, links=tuple(links))


def _kernel_rule(random: Random, palette: Palette, label: str, left: Bag, types: list[str], confluent: bool) -> Rule:
    guard = _guard(random, 2) if random.random() < 0.4 else None
    structural = ("send", "send", "divide", "dissolve", "link", "unlink")
    kind = random.choice(("rewrite",) * 4 + (() if confluent else structural))
    right = palette.right(left, 2)
    other = random.choice(types)
    match kind:
        case "send":
            return Rule(label, left, right, send=(Send(Target.LINKED, palette.right(left, 1), other),), guard=guard)
        case "divide":
            higher = bag(palette.objects[palette.objects.index(max(o for o, _ in left)) + 1 :][:1])
            return Rule(label, left, guard=guard, divide=((label, higher), (other, ())))
        case "dissolve":
            return Rule(label, left, guard=guard, dissolve=True)
        case "link":
            return Rule(label, left, guard=guard, link=other)
        case "unlink":
            return Rule(label, left, guard=guard, unlink=other)
    return Rule(label, left, right, guard=guard)


def _guard(random: Random, depth: int) -> Guard:
    if depth and random.random() < 0.5:
        op = random.choice(("all", "any", "not"))
        return Guard(op, parts=tuple(_guard(random, depth - 1) for _ in range(1 if op == "not" else 2)))
    return Guard(random.choice(("ge", "gt", "le", "lt", "eq", "ne")), random.choice(OBJECTS), random.randint(0, 3))


def chemical(random: Random, confluent: bool) -> System:
    """Reactions with mass-action constants or rate laws in one or two compartments."""
    palette = Palette(random, confluent)
    cells = [Cell("c", None, palette.start(30))]
    if random.random() < 0.5:
        cells.append(Cell("d", 0, palette.start(30)))
    rules: list[Rule] = [Rule("c", (), bag(random.choice(OBJECTS)), rate=random.uniform(0.5, 3))]
    for _ in range(random.randint(2, 7)):
        label = random.choice(cells).label
        left = palette.left(label, 2) or ()
        send = (Send(Target.IN, palette.right(left, 1), "d"),) if label == "c" and len(cells) > 1 else ()
        rate: float | Expression = random.uniform(0.01, 2)
        if random.random() < 0.3:  # saturating: v x / (k + x)
            x = name(left[0][0])
            rate = call("div", call("mul", number(random.uniform(1, 5)), x), call("add", number(10), x))
        rules.append(Rule(label, left, palette.right(left, 2), send=send, rate=rate))
    return System("chemical", tuple(cells), tuple(rules), _one_group(rules), mode=Mode.GILLESPIE)


def random_numerical(seed: int) -> NumericalSystem:
    """A numerical P system with at most linear growth a step; some programs have enzymes."""
    random = Random(f"numerical/{seed}")
    membranes: list[tuple[str, str | None]] = [("m0", None)]
    for i in range(1, random.randint(2, 4)):
        membranes.append((f"m{i}", membranes[random.randrange(i)][0]))
    owners = [m for m, _ in membranes for _ in range(random.randint(1, 3))]
    variables = [Variable(f"x{k}", m, random.randint(-8, 8) / 4) for k, m in enumerate(owners)]
    programs: list[Production] = []
    for membrane, parent in membranes:
        own = [v.name for v in variables if v.membrane == membrane]
        near = [v.name for v in variables if v.membrane in (membrane, parent)]
        for _ in range(random.randint(1, 2)):
            chosen = random.sample(near, min(len(near), random.randint(1, 3)))
            shares = tuple((float(random.randint(1, 4)), v) for v in chosen)
            enzyme = random.choice(own) if random.random() < 0.3 else None
            programs.append(Production(membrane, _function(random, own, 2), shares, enzyme))
    one = random.random() < 0.3
    return NumericalSystem(tuple(membranes), tuple(variables), tuple(programs), one_program=one, name=f"random {seed}")


def _function(random: Random, variables: list[str], depth: int) -> Expression:
    if not depth or random.random() < 0.2:
        return name(random.choice(variables)) if random.random() < 0.8 else number(random.randint(-3, 3))
    op = random.choice(("add", "sub", "mul", "sin", "tanh", "abs", "neg", "max"))
    if op in ("add", "sub", "max"):
        return call(op, _function(random, variables, depth - 1), _function(random, variables, depth - 1))
    if op == "mul":
        return call(op, number(random.randint(-2, 2) / 2), _function(random, variables, depth - 1))
    return call(op, _function(random, variables, depth - 1))
