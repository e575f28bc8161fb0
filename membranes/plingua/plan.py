"""From the membranes of a P-Lingua rule to a `Rule` of the algebra.

The bags of a rule stand in one list: outside before and after, then the left membrane, its children, and each right
membrane with its children. A plan says which of them go where; it is made once for every shape of a rule statement.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from echoc.compiler.ir.algebra import Bag, Guard, Inner, Result, Rule, Send, Target, Where, bag

from .values import HIGH

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


Maker = Callable[[tuple[Any, ...], int | None, float | None, float | None, Guard | None, Where], Rule]
"""The rule of a plan from (anything, its bags ...), priority, probability, rate, guard and place."""


def gather(bags: tuple[Any, ...], indices: Indices) -> Bag:
    """The sum of some of the bags. Raises Unmapped."""
    found = bag([pair for i in indices for pair in bags[i + 1]])
    if any(count > HIGH for _, count in found):
        raise Unmapped("the multiplicity of an object does not fit in 64 bits")
    return found


def maker(plan: Plan) -> Maker:
    """A function that makes the rules of a plan. Plans that differ in labels and charges only share its code."""
    constants: list[object] = []

    def known(value: object) -> str:
        constants.append(value)
        return f"c{len(constants) - 1}"

    def objects(indices: Indices) -> str:
        return "()" if not indices else f"b[{indices[0] + 1}]" if len(indices) == 1 else f"gather(b, {indices})"

    def result(r: ResultPlan) -> str:
        if not r.produce:
            return known(Result(r.label, r.charge))
        return f"Result({known(r.label)}, {known(r.charge)}, {objects(r.produce)})"

    def inner(i: InnerPlan) -> str:
        if not i.consume and not any(r.produce for r in i.results):
            return known(Inner(i.label, i.charge, (), tuple([Result(r.label, r.charge) for r in i.results])))
        results = "".join(f"{result(r)}, " for r in i.results)
        return f"Inner({known(i.label)}, {known(i.charge)}, {objects(i.consume)}, ({results}))"

    out = f"(Send(OUT, out),) if (out := {objects(plan.out)}) else ()" if plan.out else "()"
    members = "".join(f"{inner(i)}, " for i in plan.inner)
    fixed = f"{known(plan.charge)}, {known(plan.new_charge)}, {known(plan.dissolve)}"
    text = (
        f"lambda b, priority, probability, rate, guard, where: Rule({known(plan.label)}, {objects(plan.consume)}, "
        f"{objects(plan.produce)}, ({members}), {fixed}, {out}, guard, (), (), priority, probability, rate, 0, (), "
        "None, None, where)"
    )
    made: Maker = _with_constants(text, len(constants))(*constants)
    return made


_SCOPE = {"gather": gather, "Rule": Rule, "Inner": Inner, "Result": Result, "Send": Send, "OUT": Target.OUT}


@lru_cache(maxsize=10_000)
def _with_constants(text: str, count: int) -> Callable[..., Maker]:
    names = ", ".join(f"c{i}" for i in range(count))
    made: Callable[..., Maker] = eval(compile(f"lambda {names}: {text}", "<rules of a plan>", "eval"), _SCOPE)
    return made


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
