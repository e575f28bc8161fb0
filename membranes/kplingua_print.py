"""Kernel P systems as kP-Lingua that is read as the same system."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from echoc.compiler.ir.algebra import Bag, Bound, Group, Guard, Mode, Rule, System, Target
from echoc.errors import CompileError

from .kplingua import COMPARISONS, read
from .plingua.wording import FALSE, TRUE, guarded, named

BLOCKS = {Bound.CHOICE: "choice", Bound.MAXIMAL: "max", Bound.ARBITRARY: "arbitrary"}
SIGNS = {op: sign for sign, op in COMPARISONS.items()}
FIELDS = ("cells", "rules", "groups", "mode", "links")


class Unprintable(CompileError):
    """A system, or a part of one, that kP-Lingua has no words for."""


def show(system: System) -> str:
    """The system as kP-Lingua; what is read of it is `worded(system)`, but for the name and the model.

    Raises Unprintable, with the rule, for what cannot be said, such as charges, membranes within membranes, priorities.
    """
    if system.mode is not Mode.ORDERED:
        raise Unprintable(f"kP-Lingua cannot say the mode {system.mode}; wanted {Mode.ORDERED}: a kernel P system")
    system = worded(system)
    text = "\n".join([*_types(system), *_instances(system)]) + "\n"
    try:
        again = read(system.name or "system", text=text)
    except CompileError as problem:
        raise Unprintable(f"kP-Lingua cannot say this system; what is printed is not read: {problem}") from None
    for rule, other in zip(system.rules, again.rules, strict=False):
        if rule != other:
            raise Unprintable(f"{named(rule)}: kP-Lingua cannot say it")
    for field in FIELDS:
        if getattr(system, field) != getattr(again, field):
            raise Unprintable(f"kP-Lingua cannot say the {field} of this system: they would be read as others")
    return text


def worded(system: System) -> System:
    """An equal system: groups are of one type each and stand type by type, promoters and inhibitors are guards, and
    instances that are linked have names.
    """
    blocks: dict[str, list[tuple[Group, list[Rule]]]] = {}
    for group in system.groups:
        dealt: dict[str, list[Rule]] = {}
        for i in group.rules:
            rule = guarded(system.rules[i])
            if rule.label is None:
                raise Unprintable(f"{named(rule)}: kP-Lingua cannot say a rule that no cell holds")
            dealt.setdefault(rule.label, []).append(rule)
        for label, rules in dealt.items():
            blocks.setdefault(label, []).append((group, rules))
    made: list[Rule] = []
    groups: list[Group] = []
    for parts in blocks.values():
        for group, rules in parts:
            groups.append(replace(group, rules=tuple(range(len(made), len(made) + len(rules)))))
            made += rules
    linked = {i for pair in system.links for i in pair}
    taken = {c.name for c in system.cells}
    cells = tuple(
        [
            replace(c, name=_fresh(i, taken)) if i in linked and not c.name else c
            for i, c in enumerate(system.cells)
        ]
    )  # fmt: skip
    return replace(system, rules=tuple(made), groups=tuple(groups), cells=cells)


def _fresh(number: int, taken: set[str]) -> str:
    name = f"cell{number}"
    while name in taken:
        name += "_"
    return name


def _types(system: System) -> Iterator[str]:
    """Every type with its blocks."""
    label = None
    before: Bound | None = None
    for group in system.groups:
        rules = [system.rules[i] for i in group.rules]
        if rules[0].label != label:
            if label is not None:
                yield "}\n"
            label, before = rules[0].label, None
            yield f"type {label} {{"
        if group.bound is Bound.SEQUENCE:
            if before is Bound.SEQUENCE:
                yield "  max { }"  # what stands on both sides of a block are two sequences
            yield from (f"  {_rule(rule)}" for rule in rules)
        elif group.bound in BLOCKS:
            yield f"  {BLOCKS[group.bound]} {{"
            yield from (f"    {_rule(rule)}" for rule in rules)
            yield "  }"
        else:
            raise Unprintable(f"{named(rules[0])}: kP-Lingua cannot say a block that is applied by {group.bound.value}")
        before = group.bound
    if label is not None:
        yield "}\n"


def _instances(system: System) -> Iterator[str]:
    for cell in system.cells:
        yield f"{cell.name} {{{_bag(cell.objects)}}} ({cell.label}).".lstrip()
    seen: set[tuple[int, int]] = set()
    for a, b in system.links:
        if (b, a) not in seen:
            yield f"{system.cells[a].name} - {system.cells[b].name}."
        seen.add((a, b))


def _bag(objects: Bag) -> str:
    return ", ".join(name if count == 1 else f"{count}{name}" for name, count in objects)


def _rule(rule: Rule) -> str:
    guard = f"{_guard(rule.guard, rule)}: " if rule.guard is not None else ""
    return f"{guard}{_bag(rule.consume)} -> {_right(rule)}."


def _right(rule: Rule) -> str:
    if rule.dissolve:
        return "#"
    if rule.link is not None:
        return f"-({rule.link})"
    if rule.unlink is not None:
        return f"\\-({rule.unlink})"
    if rule.divide:
        return "".join(f"[{_bag(objects)}]({label})" for label, objects in rule.divide)
    sent = [f"{{{_bag(s.objects)}}} ({s.label})" for s in rule.send if s.target is Target.LINKED]
    here = [_bag(rule.produce)] if rule.produce else []
    return ", ".join([*here, *sent]) or "{}"


def _guard(guard: Guard, rule: Rule) -> str:
    if guard.op in ("all", "any") and guard not in (TRUE, FALSE):
        parts = [f"({_guard(p, rule)})" if p.parts else _guard(p, rule) for p in guard.parts]
        return (" & " if guard.op == "all" else " | ").join(parts)
    if guard.op not in SIGNS or guard.parts:
        raise Unprintable(f"{named(rule)}: kP-Lingua cannot say the guard {guard.op!r}")
    return f"{SIGNS[guard.op]} {guard.count}{guard.object}"
