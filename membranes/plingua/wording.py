"""Systems in the words of P-Lingua, and the proof that what is printed is read as the same system."""

from __future__ import annotations

from dataclasses import replace

from echoc.compiler.ir.algebra import Bound, Group, Guard, Inner, Mode, Result, Rule, System, Target
from echoc.errors import CompileError
from echoc.membranes.blocks import blocks_of
from echoc.membranes.view.notation import rule_text

from .spiking import unary_language

OPPOSITE = {"ge": "lt", "lt": "ge", "gt": "le", "le": "gt", "eq": "ne", "ne": "eq", "all": "any", "any": "all"}
TRUE, FALSE = Guard("all"), Guard("any")


def is_spiking(system: System) -> bool:
    """Whether rules are those of neurons."""
    spikes = any(s.target is Target.SYNAPSES for rule in system.rules for s in rule.send)
    return spikes or bool(system.links) or system.features.get("spiking", "") == "1"


def worded(system: System) -> System:
    """An equal system.

    Promoters and inhibitors are parts of guards; guards have no `not`, and neurons have regular sets; maximal groups
    are one, and so are those of neurons; what a rule sends out it produces around its membrane; a rule of any charge is
    three where charges matter; equal rules of a block are one.
    """
    if is_spiking(system):
        rules = tuple([_neural(rule) for rule in system.rules])
        return replace(system, rules=rules, groups=_one_for_each_neuron(system))
    charged, population = is_charged(system), system.mode is Mode.DCBA
    made: list[Rule] = []
    numbers: list[int] = []
    for i, rule in enumerate(system.rules):
        forms = _charges(guarded(rule), charged)
        forms = [_outward(form) if form.send or population else _held(form) for form in forms]
        made += forms
        numbers += [i] * len(forms)
    if population:
        made, numbers = _added(made, numbers)
    group_of = {rule: place for place, g in enumerate(system.groups) for rule in g.rules}
    if system.mode is not Mode.ORDERED:
        maximal = {place: -1 for place, g in enumerate(system.groups) if g.bound is Bound.MAXIMAL}
        group_of = {rule: maximal.get(place, place) for rule, place in group_of.items()}
    members: dict[int, list[int]] = {}
    for new, old in enumerate(numbers):
        members.setdefault(group_of[old], []).append(new)
    groups = [
        Group(tuple(found)) if place < 0 else replace(system.groups[place], rules=tuple(found))
        for place, found in sorted(members.items())
    ]
    return replace(system, rules=tuple(made), groups=tuple(groups))


def is_charged(system: System) -> bool:
    """Whether a membrane can have another charge than 0."""
    results = (r.charge for rule in system.rules for i in rule.inner for r in i.results)
    return any(c.charge for c in system.cells) or any(r.new_charge for r in system.rules) or any(results)


def guarded(rule: Rule) -> Rule:
    """The rule with its promoters and inhibitors as parts of its guard."""
    if not (rule.promoters or rule.inhibitors or rule.guard):
        return rule
    parts = [Guard("ge", o, n) for o, n in rule.promoters] + [Guard("lt", o, n) for o, n in rule.inhibitors]
    guard = _flat("all", [*parts, *([simple(rule.guard)] if rule.guard is not None else [])])
    if guard == FALSE:
        guard = Guard("lt", (rule.consume or rule.produce or (("none", 1),))[0][0], 0)
    return replace(rule, promoters=(), inhibitors=(), guard=None if guard == TRUE else guard)


def _outward(rule: Rule) -> Rule:
    """`[u]'h --> w [v]'h` as a rule of the membrane around h."""
    out = len(rule.send) == 1 and rule.send[0].target is Target.OUT
    if not out or rule.label is None or rule.inner or rule.guard is not None or rule.dissolve:
        return rule
    after = rule.charge if rule.new_charge is None else rule.new_charge
    inner = Inner(rule.label, rule.charge, rule.consume, (Result(rule.label, after, rule.produce),))
    return replace(
        rule,
        label=None,
        consume=(),
        produce=rule.send[0].objects,
        inner=(inner,),
        charge=None,
        new_charge=None,
        send=(),
    )


def _held(rule: Rule) -> Rule:
    """`[u]'h --> [v]'h` as a rule that h holds."""
    inner = rule.inner[0] if len(rule.inner) == 1 and len(rule.inner[0].results) == 1 else None
    if inner is None or rule.label is not None or rule.consume or rule.produce or rule.guard is not None:
        return rule
    after = inner.results[0]
    if after.label != inner.label or after.keeps is not None or (after.charge == inner.charge is not None):
        return rule
    return replace(
        rule, label=inner.label, consume=inner.consume, produce=after.produce, inner=(), charge=inner.charge,
        new_charge=after.charge,
    )  # fmt: skip


def _charges(rule: Rule, charged: bool) -> list[Rule]:
    """The rule for every charge that it allows; without charges where none matters."""
    if charged:
        free = rule.label is not None and rule.charge is None and rule.new_charge is None and not rule.inner
        return [replace(rule, charge=charge) for charge in (0, 1, -1)] if free else [rule]
    if any(c for c in (rule.charge, *(i.charge for i in rule.inner))):
        return []  # never applicable
    inner = tuple(
        [replace(i, charge=None, results=tuple([replace(r, charge=None) for r in i.results])) for i in rule.inner]
    )
    return [replace(rule, charge=None, new_charge=None, inner=inner)]


def _added(rules: list[Rule], numbers: list[int]) -> tuple[list[Rule], list[int]]:
    """Equal rules of population dynamics as one, with the sum of their probabilities."""
    first: dict[Rule, int] = {}
    sums: dict[int, float] = {}
    for i, rule in enumerate(rules):
        at = first.setdefault(replace(rule, probability=None), i)
        sums[at] = sums.get(at, 0.0) + (1.0 if rule.probability is None else rule.probability)
    if len(first) == len(rules):
        return rules, numbers
    kept = sorted(first.values())
    merged = {i: rules[i] if sums[i] == rules[i].probability else replace(rules[i], probability=sums[i]) for i in kept}
    return list(merged.values()), [numbers[i] for i in kept]


def _neural(rule: Rule) -> Rule:
    guard = rule.guard
    if guard is None or len(rule.consume) != 1 or guard == Guard("eq", *rule.consume[0]):
        return rule
    return replace(rule, guard=unary_language(lengths(guard), guard.object)) if lengths(guard) else rule


def lengths(guard: Guard) -> str:
    """A regular expression with the numbers of spikes that a guard allows; "" for guards that are no such set."""
    letter, n = guard.object, guard.count
    if guard.op == "in":
        words = [f"{letter}{{{k}}}" for k in guard.starts]
        words += [f"{letter}{{{guard.threshold + k}}}({letter}{{{guard.period}}})*" for k in guard.residues]
        return "|".join(words)
    bounds = {"eq": (n, n), "ge": (n, None), "gt": (n + 1, None), "le": (0, n), "lt": (0, n - 1)}
    if guard.op == "ne":
        return "|".join(w for w in (lengths(replace(guard, op="lt")), lengths(replace(guard, op="gt"))) if w)
    low, high = bounds.get(guard.op, (1, 0))
    if high is None:
        return f"{letter}{{{low},}}"
    return f"{letter}{{{low},{high}}}" if low <= high else ""


def _one_for_each_neuron(system: System) -> tuple[Group, ...]:
    """Groups of at most one rule a step are one group where no two have rules of the same neuron."""
    labels = [label for g in system.groups for label in {system.rules[i].label for i in g.rules}]
    once = all(g.bound is Bound.CHOICE or (g.bound is Bound.AT_MOST and g.limit == 1) for g in system.groups)
    if len(set(labels)) < len(labels) or not once or not system.groups:
        return system.groups
    return (Group(tuple(sorted(i for g in system.groups for i in g.rules)), Bound.AT_MOST, 1),)


def simple(guard: Guard, holds: bool = True) -> Guard:
    """The guard, or what holds when it does not, of comparisons, `all` and `any`; sets of counts stay where they have
    no end.
    """
    if guard.op == "not":
        return simple(guard.parts[0], not holds)
    if guard.op in ("all", "any"):
        return _flat(guard.op if holds else OPPOSITE[guard.op], [simple(p, holds) for p in guard.parts])
    if guard.op == "in" and (guard.period == 1 or not guard.residues):
        parts = [Guard("eq", guard.object, n) for n in guard.starts]
        parts += [Guard("ge", guard.object, guard.threshold)] if guard.residues else []
        return simple(_flat("any", parts), holds)
    if guard.op not in OPPOSITE:
        return guard if holds else Guard("not", parts=(guard,))
    return guard if holds else replace(guard, op=OPPOSITE[guard.op])


def _flat(op: str, parts: list[Guard]) -> Guard:
    found = [p for part in parts for p in (part.parts if part.op == op else (part,))]
    if Guard(OPPOSITE[op]) in found:
        return Guard(OPPOSITE[op])
    return found[0] if len(found) == 1 else Guard(op, parts=tuple(found))


def named(rule: Rule) -> str:
    """A rule and where it stands, for a message."""
    text = f"the rule {rule_text(rule)[:300]}"
    return f"{rule.where}: {text}" if str(rule.where) else text


def check_read(system: System) -> None:
    """Raises Unprintable where what is printed would be read as another system.

    Proved with one rule of every kind: what is read of a rule depends on its labels, its charges and on which of its
    parts there are, not on the names of its objects.
    """
    from .print_system import Unprintable, _Printer
    from .reader import read

    seen: dict[Rule, int] = {}
    for i, rule in enumerate(system.rules):
        first = seen.setdefault(rule if rule.priority is None else replace(rule, priority=None), i)
        if first != i:
            raise Unprintable(f"{named(rule)}: P-Lingua cannot say it twice; wanted rules that differ")
    part = _sample(system)
    text = _Printer(part).text()
    try:
        again = read(part.name or "system", text=text)
    except CompileError as problem:
        raise Unprintable(f"P-Lingua cannot say this system; what is printed is not read: {problem}") from None
    for rule, other in zip(part.rules, again.rules, strict=False):
        if rule != other:
            raise Unprintable(f"{named(rule)}: P-Lingua cannot say it; it would be read as {rule_text(other)}")
    for name in ("model", "cells", "rules", "groups", "mode", "priority", "links", "unbounded"):
        if getattr(part, name) != getattr(again, name):
            raise Unprintable(f"P-Lingua cannot say the {name} of this system: they would be read as others")


def _sample(system: System) -> System:
    """The system with one rule of every kind, and all of its block where there are blocks."""
    groups_of = {i: number for number, g in enumerate(system.groups) for i in g.rules}
    first: dict[object, int] = {}
    for i, rule in enumerate(system.rules):
        first.setdefault((groups_of.get(i), _kind(rule)), i)
    chosen = set(first.values())
    if system.mode is Mode.DCBA:
        blocks = blocks_of(system.rules).numbers
        wanted = {blocks[i] for i in chosen}
        chosen = {i for i, number in enumerate(blocks) if number in wanted}
    place = {old: new for new, old in enumerate(sorted(chosen))}
    groups = [replace(g, rules=tuple(sorted(place[i] for i in g.rules if i in place))) for g in system.groups]
    rules = tuple([system.rules[i] for i in sorted(chosen)])
    features = {k: v for k, v in system.features.items() if not k.startswith("rules[")}
    return replace(system, rules=rules, groups=tuple(g for g in groups if g.rules), features=features)


def _kind(rule: Rule) -> object:
    """What decides how a rule is read."""
    members = tuple([
        (i.label, i.charge, bool(i.consume),
         tuple([(r.label, r.charge, bool(r.produce), r.produce == i.consume, r.keeps) for r in i.results]))
        for i in rule.inner
    ])  # fmt: skip
    sent = tuple([(s.target, s.label, bool(s.objects)) for s in rule.send])
    return (
        rule.label, rule.charge, rule.new_charge, rule.dissolve, bool(rule.consume), bool(rule.produce),
        rule.consume == rule.produce, members, sent, _form(rule.guard), rule.priority is None,
        rule.probability is None, rule.rate is None, rule.delay > 0, rule.divide, rule.link, rule.unlink,
    )  # fmt: skip


def _form(guard: Guard | None) -> object:
    return None if guard is None else (guard.op, tuple([_form(p) for p in guard.parts]))
