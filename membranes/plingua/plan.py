"""From the membranes of a P-Lingua rule to a `Rule` of the algebra.

The bags of a rule stand in one list: outside before and after, then the left membrane, its children, and each right
membrane with its children. A plan says which of them go where; it is made once for every shape of a rule statement.
"""

from __future__ import annotations

from typing import NamedTuple

from echoc.compiler.ir.algebra import Bag, Guard, Inner, Result, Rule, Send, Target, Where, bag

Indices = tuple[int, ...]


class Member(NamedTuple):
    """A membrane of a rule: charge (None: not looked at), label, the index of its bag, `@d`, children."""

    charge: int | None
    label: str
    bag: int
    dissolve: bool = False
    inner: tuple[Member, ...] = ()


class ResultPlan(NamedTuple):
    label: str
    charge: int | None
    produce: Indices


class InnerPlan(NamedTuple):
    label: str
    charge: int | None
    consume: Indices
    results: tuple[ResultPlan, ...]


class Plan(NamedTuple):
    """The parts of a Rule with indices of bags for bags."""

    label: str | None
    charge: int | None = None
    new_charge: int | None = None
    consume: Indices = ()
    produce: Indices = ()
    inner: tuple[InnerPlan, ...] = ()
    dissolve: bool = False
    out: Indices = ()


class Unmapped(Exception):
    """A rule that the algebra has no form for; the message says why."""


def gather(bags: list[Bag], indices: Indices) -> Bag:
    if len(indices) == 1:
        return bags[indices[0]]
    return bag([pair for i in indices for pair in bags[i]]) if indices else ()


def build(
    plan: Plan,
    bags: list[Bag],
    priority: int | None,
    probability: float | None,
    rate: float | None,
    guard: Guard | None,
    where: Where,
) -> Rule:
    """The rule of a plan."""
    inner = tuple(
        [
            Inner(
                i.label,
                i.charge,
                gather(bags, i.consume),
                tuple([Result(r.label, r.charge, gather(bags, r.produce)) for r in i.results]),
            )
            for i in plan.inner
        ]
    )
    out = gather(bags, plan.out)
    return Rule(
        plan.label,
        gather(bags, plan.consume),
        gather(bags, plan.produce),
        inner,
        plan.charge,
        plan.new_charge,
        plan.dissolve,
        (Send(Target.OUT, out),) if out else (),
        guard,
        (),
        (),
        priority,
        probability,
        rate,
        where=where,
    )


def plan_rule(
    outside: int | None, after: int | None, left: Member, right: tuple[Member, ...], population: bool
) -> Plan:
    """The plan of `outside left --> after right`; an absent bag is None. `population`: a population dynamics system.

    Raises Unmapped.
    """
    single = right[0] if len(right) == 1 and right[0].label == left.label else None
    nested = bool(left.inner) or any(r.inner for r in right)
    if population and nested:
        if single is None or outside is not None or after is not None:
            raise Unmapped("a rule between environments reads [[u]'e1 []'e2]'p --> [[]'e1 [v]'e2]'p")
        return Plan(left.label, inner=_environments(left.inner, single.inner), consume=_one(left), produce=_one(single))
    if single is not None and outside is None and (nested or (after is None and not population)):
        return _evolution(left, single, after)
    if nested:
        raise Unmapped("it binds membranes three deep: objects outside, a membrane, and its children")
    return _outer(outside, after, left, right)


def _one(member: Member) -> Indices:
    return (member.bag,) if member.bag >= 0 else ()


def _evolution(left: Member, right: Member, after: int | None) -> Plan:
    """`[u ... --> v ...]'h`, and with another charge on the right."""
    inner, lost = _pair(left.inner, right.inner)
    changed = None if left.charge == right.charge else right.charge
    return Plan(
        left.label,
        left.charge,
        changed,
        _one(left),
        (*_one(right), *lost),
        inner,
        right.dissolve,
        () if after is None else (after,),
    )


def _outer(outside: int | None, after: int | None, left: Member, right: tuple[Member, ...]) -> Plan:
    """`u [v]'h --> w [x]'h [y]'h`: send-in, send-out, dissolution, division, all seen from the membrane around it."""
    results, lost = _results(right)
    inner = InnerPlan(left.label, left.charge, _one(left), results)
    consume = () if outside is None else (outside,)
    produce = () if after is None else (after,)
    return Plan(None, None, None, consume, (*produce, *lost), (inner,))


def _results(right: tuple[Member, ...]) -> tuple[tuple[ResultPlan, ...], Indices]:
    """What becomes of a membrane; one that gets objects and dissolves leaves them to the membrane around it."""
    if any(r.dissolve for r in right):
        if len(right) > 1:
            raise Unmapped("a membrane that divides and dissolves at once")
        return (), _one(right[0])
    return tuple(ResultPlan(r.label, r.charge, _one(r)) for r in right), ()


def _pair(left: tuple[Member, ...], right: tuple[Member, ...]) -> tuple[tuple[InnerPlan, ...], Indices]:
    """Children on both sides belong together by label; then by place, with another label."""
    results: list[list[Member]] = [[] for _ in left]
    rest: list[Member] = []
    for member in right:
        free = [i for i, m in enumerate(left) if m.label == member.label and not results[i]]
        again = [i for i, m in enumerate(left) if m.label == member.label]
        if free or again:
            results[(free or again)[0]].append(member)
        else:
            rest.append(member)
    for member in rest:
        free = [i for i in range(len(left)) if not results[i]]
        if not free:
            raise Unmapped("it creates a membrane; rules can divide, dissolve and relabel membranes that are there")
        results[free[0]].append(member)
    plans: list[InnerPlan] = []
    lost: Indices = ()
    for member, after in zip(left, results, strict=True):
        made, more = _results(tuple(after))
        lost += more
        plans.append(InnerPlan(member.label, member.charge, _one(member), made))
    return tuple(plans), lost


def _environments(left: tuple[Member, ...], right: tuple[Member, ...]) -> tuple[InnerPlan, ...]:
    """Environments stay what they are: objects move from those on the left to those on the right."""
    results = {m.label: m for m in right}
    if len(results) < len(right) or len({m.label for m in left}) < len(left):
        raise Unmapped("it names an environment twice")
    plans = []
    for member in left:
        after = results.pop(member.label, None)
        result = ResultPlan(member.label, member.charge, ()) if after is None else _result(after)
        plans.append(InnerPlan(member.label, member.charge, _one(member), (result,)))
    for member in results.values():
        plans.append(InnerPlan(member.label, member.charge, (), (_result(member),)))
    return tuple(plans)


def _result(member: Member) -> ResultPlan:
    return ResultPlan(member.label, member.charge, _one(member))


def plan_exchange(left: Member, right: Member, around: str | None) -> Plan:
    """`[u]'h1 <--> [v]'h2`: with `around`, the label of the membrane that stands around the other one, or between
    siblings (None).
    """
    if left.inner or right.inner:
        raise Unmapped("an exchange <--> is between two membranes without children")
    if around == right.label:
        left, right = right, left
    gives = InnerPlan(right.label, right.charge, _one(right), (ResultPlan(right.label, right.charge, _one(left)),))
    if around is not None:
        return Plan(left.label, left.charge, None, _one(left), _one(right), (gives,))
    takes = InnerPlan(left.label, left.charge, _one(left), (ResultPlan(left.label, left.charge, _one(right)),))
    return Plan(None, inner=(takes, gives))
