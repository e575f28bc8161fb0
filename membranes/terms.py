"""Terms of rules written in Python: multisets, products with targets, membranes, conditions, arrows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from echoc.compiler.ir.algebra import Bag, Guard, Inner, Result, Rule, Send, Target, bag
from echoc.errors import CompileError


@dataclass(frozen=True)
class Multiset:
    """Objects with their multiplicities: `a * 2 + b`."""

    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str) -> Multiset:
        """One object."""
        if not name or any(c.isspace() for c in name):
            raise CompileError(f"{name!r} cannot be the name of an object; wanted a word without spaces")
        return cls({name: 1})

    @property
    def bag(self) -> Bag:
        return bag(self.counts)

    def __add__(self, other: Multiset) -> Multiset:
        return _sum([self, other]) if isinstance(other, Multiset) else NotImplemented

    def __mul__(self, times: int) -> Multiset:
        if not isinstance(times, int) or times < 0:
            raise CompileError(f"{self} times {times!r}; a multiplicity is an integer, 0 or more")
        return Multiset({name: n * times for name, n in self.counts.items() if n * times})

    __rmul__ = __mul__

    def __rshift__(self, right: Multiset | Products) -> Arrow:
        return Products(self) >> right

    def __str__(self) -> str:
        return " + ".join(name if n == 1 else f"{name}*{n}" for name, n in self.bag) or "nothing"


def _sum(multisets: Iterable[Multiset]) -> Multiset:
    return Multiset(dict(bag(item for m in multisets for item in m.counts.items())))


nothing = Multiset()
"""The empty multiset."""


@dataclass(frozen=True)
class Indexed:
    """A family of objects: `x[1, 2]` is `x{1,2}`."""

    name: str

    def __getitem__(self, index: object) -> Multiset:
        items = index if isinstance(index, tuple) else (index,)
        return Multiset.of(f"{self.name}{{{','.join(str(i) for i in items)}}}")


@dataclass(frozen=True)
class Inside:
    """A membrane within the one that holds the rule."""

    label: str
    objects: Multiset
    charge: int | None
    keeps: frozenset[str] | None


@dataclass(frozen=True)
class Products:
    """A side of a rule: objects here, objects sent elsewhere, membranes within, and what becomes of the membrane."""

    here: Multiset = nothing
    sends: tuple[Send, ...] = ()
    membranes: tuple[Inside, ...] = ()
    parts: tuple[tuple[str, Bag], ...] = ()
    dissolves: bool = False
    links: str | None = None
    unlinks: str | None = None

    def __add__(self, other: Products | Multiset) -> Products:
        if not isinstance(other, Products | Multiset):
            return NotImplemented
        other = _products(other)
        if (self.links and other.links) or (self.unlinks and other.unlinks):
            raise CompileError("a rule makes one link and cuts one link at most")
        return Products(
            self.here + other.here, _merged((*self.sends, *other.sends)), self.membranes + other.membranes,
            self.parts + other.parts, self.dissolves or other.dissolves, self.links or other.links,
            self.unlinks or other.unlinks,
        )  # fmt: skip

    def __radd__(self, other: Multiset) -> Products:
        return _products(other) + self if isinstance(other, Multiset) else NotImplemented

    def __rshift__(self, right: Products | Multiset) -> Arrow:
        return Arrow(self, _products(right))


def _products(side: Products | Multiset) -> Products:
    if isinstance(side, Products):
        return side
    if not isinstance(side, Multiset):
        raise CompileError(f"{side!r} is not a side of a rule; wanted objects and products, or `nothing`")
    return Products(side)


def _merged(sends: tuple[Send, ...]) -> tuple[Send, ...]:
    """One send for each target."""
    objects: dict[tuple[Target, str], Multiset] = {}
    for send in sends:
        key = (send.target, send.label)
        objects[key] = objects.get(key, nothing) + Multiset(dict(send.objects))
    return tuple(Send(target, m.bag, label) for (target, label), m in objects.items())


def out(objects: Multiset) -> Products:
    """Objects for the membrane around."""
    return Products(sends=(Send(Target.OUT, objects.bag),))


def into(label: str, objects: Multiset) -> Products:
    """Objects for a child with a label: what one rule sends to one label goes to the same child."""
    return Products(sends=(Send(Target.IN, objects.bag, label),))


def linked(label: str, objects: Multiset) -> Products:
    """Objects for one linked cell with a label (kernel P systems)."""
    return Products(sends=(Send(Target.LINKED, objects.bag, label),))


def spread(objects: Multiset) -> Products:
    """Objects for every cell that a link leads to (spiking)."""
    return Products(sends=(Send(Target.SYNAPSES, objects.bag),))


def inside(label: str, objects: Multiset = nothing, charge: int | None = None, *,
           keeps: Iterable[Multiset] | None = None) -> Products:  # fmt: skip
    """A membrane within the one that holds the rule: on the left what it needs, on the right what becomes of it.

    charge: on the left None means any, on the right as it was. Two or more on the right divide it; `keeps`, objects,
    makes it a separation that leaves those of the old content in this part. None on the right dissolves it.
    """
    kept = None if keeps is None else frozenset(name for m in keeps for name in m.counts)
    return Products(membranes=(Inside(label, objects, charge, kept),))


def part(label: str, objects: Multiset = nothing) -> Products:
    """One of the cells that replace the cell of the rule (kernel P systems)."""
    return Products(parts=((label, objects.bag),))


def link(label: str) -> Products:
    """A new link to a cell with a label (kernel P systems)."""
    return Products(links=label)


def unlink(label: str) -> Products:
    """The link to a cell with a label is cut (kernel P systems)."""
    return Products(unlinks=label)


dissolve = Products(dissolves=True)
"""The membrane of the rule dissolves at the end of the step."""


@dataclass(frozen=True)
class Arrow:
    """`left >> right`"""

    left: Products
    right: Products

    def rule(self, label: str | None) -> Rule:
        """The rule of membranes with a label, or of whatever is around its membranes. Raises CompileError."""
        left, right = self.left, self.right
        if left != Products(left.here, membranes=left.membranes):
            raise CompileError("the left side of a rule has targets; wanted objects and `inside` only")
        if label is None and not left.membranes:
            raise CompileError("a rule without a label and without `inside` on its left: no membrane holds it")
        return Rule(
            label, left.here.bag, right.here.bag, self._inner(), dissolve=right.dissolves, send=right.sends,
            divide=right.parts, link=right.links, unlink=right.unlinks,
        )  # fmt: skip

    def _inner(self) -> tuple[Inner, ...]:
        """The membranes on the left, each with those on the right that come out of it.

        All of them if it is alone; of several, each stays, in the order in which they are written.
        """
        before, after = self.left.membranes, self.right.membranes
        results = [Result(m.label, m.charge, m.objects.bag, m.keeps) for m in after]
        if not before and after:
            raise CompileError(f"the membrane {after[0].label} on the right comes out of none on the left")
        if len(before) > 1 and len(before) != len(after):
            raise CompileError(
                f"{len(before)} membranes on the left and {len(after)} on the right; wanted as many: several each stay"
            )
        dealt = [results] if len(before) == 1 else [[r] for r in results]
        return tuple(
            Inner(m.label, m.charge, m.objects.bag, tuple(r)) for m, r in zip(before, dealt, strict=bool(before))
        )


# conditions


@dataclass(frozen=True)
class Condition:
    """A condition on the objects of a membrane: combine with `&`, `|`, `~`."""

    guard: Guard

    def __and__(self, other: Condition) -> Condition:
        return Condition(Guard("all", parts=(self.guard, other.guard)))

    def __or__(self, other: Condition) -> Condition:
        return Condition(Guard("any", parts=(self.guard, other.guard)))

    def __invert__(self) -> Condition:
        return Condition(Guard("not", parts=(self.guard,)))


class Count:
    """How many of an object there are, to be compared: `count(a) >= 2`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _compare(self, op: str, number: object) -> Condition:
        if not isinstance(number, int) or number < 0:
            raise CompileError(f"the count of {self.name} is compared with {number!r}; wanted an integer, 0 or more")
        return Condition(Guard(op, self.name, number))

    def __ge__(self, number: int) -> Condition:
        return self._compare("ge", number)

    def __gt__(self, number: int) -> Condition:
        return self._compare("gt", number)

    def __le__(self, number: int) -> Condition:
        return self._compare("le", number)

    def __lt__(self, number: int) -> Condition:
        return self._compare("lt", number)

    def __eq__(self, number: object) -> Condition:  # type: ignore[override]
        return self._compare("eq", number)

    def __ne__(self, number: object) -> Condition:  # type: ignore[override]
        return self._compare("ne", number)

    __hash__ = None  # type: ignore[assignment]


def count(object_: Multiset) -> Count:
    """The count of one object, for conditions. Raises CompileError for anything but a single object."""
    if sum(object_.counts.values()) != 1:
        raise CompileError(f"count({object_}): wanted a single object")
    return Count(next(iter(object_.counts)))
