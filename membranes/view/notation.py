"""Rules and configurations as text: P-Lingua where it has a notation, kP-Lingua for graphs and structure rules."""

from __future__ import annotations

from collections.abc import Mapping

from echoc.compiler.ir.algebra import Bag, Bound, Guard, Inner, Mode, Result, Rule, Send, System, Target
from echoc.compiler.ir.expression import Expression

DEEPEST = 40
"""Nested guards and expressions are printed to this depth."""
_COMPARE = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "eq": "=", "ne": "!="}
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "^", "lt": "<", "le": "<=", "eq": "=="}


def clean(text: str) -> str:
    """Text that a terminal only shows: what is not printable is escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def bag_text(objects: Bag | Mapping[str, int]) -> str:
    """`a, b*2`"""
    items = sorted(objects.items()) if isinstance(objects, Mapping) else objects
    return ", ".join(clean(name) if count == 1 else f"{clean(name)}*{count}" for name, count in items)


def charge_text(charge: int | None) -> str:
    """`+`, `-`, nothing; `+2` beyond the three charges of the literature."""
    if not charge:
        return ""
    return {1: "+", -1: "-"}.get(charge, f"{charge:+d}")


def rule_texts(system: System) -> tuple[str, ...]:
    """Every rule, printed: `Header.rules`."""
    return tuple(rule_text(rule) for rule in system.rules)


def system_text(system: System) -> str:
    """A whole system, whatever it is: its mode, the configuration at the start, and its groups of rules.

    For people: `plingua.show` writes what can be read again.
    """
    from echoc.compiler.ir.oracle import start

    from .frames import frame_of
    from .text import configuration_text

    lines = [f"{clean(system.name) or 'P system'} ({clean(system.model)}): {system.mode}, {system.priority} priorities"]
    lines.append(configuration_text(frame_of(system, start(system)), width=100))
    if system.unbounded:
        lines.append(f"without end outside: {', '.join(map(clean, sorted(system.unbounded)))}")
    for number, group in enumerate(system.groups):
        bound = f"{group.bound} {group.limit}" if group.bound is Bound.AT_MOST else str(group.bound)
        order = f"{number + 1}. " if system.mode is Mode.ORDERED else ""
        lines.append(f"{order}{bound.replace('_', ' ')}:")
        lines += [f"  {rule_text(system.rules[i])}" for i in group.rules]
    for event in system.events:
        sets = ", ".join(f"{clean(name)} = {expression_text(value)}" for name, value in event.assignments)
        lines.append(f"when {expression_text(event.trigger)} in {clean(event.label)}: {sets}")
    return "\n".join(lines)


def rule_text(rule: Rule) -> str:
    """A rule on one line.

    Around the P-Lingua rule stand, where there are any: `(priority)` and `guard :` in front; behind it
    `| promoters, !inhibitors`, `:: probability`, `rate` and `delay`.
    """
    front = (f"({rule.priority}) " if rule.priority is not None else "") + (
        f"{guard_text(rule.guard)} : " if rule.guard is not None else ""
    )
    context = [bag_text(rule.promoters)] if rule.promoters else []
    context += ["!" + bag_text(((name, count),)) for name, count in rule.inhibitors]
    back = f" | {', '.join(context)}" if context else ""
    if rule.probability is not None:
        back += f" :: {rule.probability:g}"
    if rule.rate is not None:
        law = rule.rate if isinstance(rule.rate, Expression) else Expression("number", value=float(rule.rate))
        back += f" rate {expression_text(law)}"
    if rule.delay:
        back += f" delay {rule.delay}"
    return front + _arrow(rule) + back


def block_text(rule: Rule) -> str:
    """The left side of a rule, and the charge after where it is another."""
    left = _join(bag_text(rule.consume), *map(_inner_left, rule.inner))
    changes = [(i.charge, i.results[0].charge) for i in rule.inner if len(i.results) == 1]
    if rule.label is not None:
        left = f"{charge_text(rule.charge)}[{left}]'{clean(rule.label)}"
        changes.append((rule.charge, rule.new_charge))
    after = next((c for b, c in changes if c is not None and c != (b or 0)), None)
    return left if after is None else f"{left} to the charge {charge_text(after) or '0'}"


def _arrow(rule: Rule) -> str:
    """The two sides, with the arrow inside the membrane that holds the rule where that membrane only rewrites."""
    left = _join(bag_text(rule.consume), *map(_inner_left, rule.inner))
    right = _join(
        ", ".join(p for p in (bag_text(rule.produce), *map(_sent, rule.send), "@d" if rule.dissolve else "") if p),
        *(_result(inner, result) for inner in rule.inner for result in inner.results),
        f"-({clean(rule.link)})" if rule.link is not None else "",
        f"\\-({clean(rule.unlink)})" if rule.unlink is not None else "",
    )
    outside = [bag_text(s.objects) for s in rule.send if s.target is Target.OUT]
    touched = rule.charge is not None or rule.new_charge is not None or rule.dissolve or bool(outside)
    if rule.label is None and not touched and not rule.divide:
        return f"{left or '#'} --> {right or '#'}"
    label = "*" if rule.label is None else clean(rule.label)
    sign = charge_text(rule.charge)
    if rule.divide:
        parts = " ".join(f"[{bag_text(products)}]'{clean(part)}" for part, products in rule.divide)
        return f"{sign}[{left}]'{label} --> {parts}"
    changes = rule.new_charge is not None and rule.new_charge != (rule.charge or 0)
    if not changes and not outside:
        return f"{sign}[{_join(left, '-->', right or '#')}]'{label}"
    after = charge_text(rule.charge if rule.new_charge is None else rule.new_charge)
    return f"{sign}[{left}]'{label} --> {_join(', '.join(outside), f'{after}[{right}]' + chr(39) + label)}"


def _join(*parts: str) -> str:
    return " ".join(p for p in parts if p)


def _inner_left(inner: Inner) -> str:
    return f"{charge_text(inner.charge)}[{bag_text(inner.consume)}]'{clean(inner.label)}"


def _result(inner: Inner, result: Result) -> str:
    charge = inner.charge if result.charge is None else result.charge
    keeps = "" if result.keeps is None else f"keeps {{{', '.join(map(clean, sorted(result.keeps)))}}}"
    return f"{charge_text(charge)}[{_join(bag_text(result.produce), keeps)}]'{clean(result.label)}"


def _sent(send: Send) -> str:
    if send.target is Target.OUT:
        return ""
    if send.target is Target.IN:
        return f"({bag_text(send.objects)}; in {clean(send.label)})"
    if send.target is Target.LINKED:
        return f"{{{bag_text(send.objects)}}} ({clean(send.label)})"
    return f"({bag_text(send.objects)}; synapses)"


def guard_text(guard: Guard, depth: int = 0) -> str:
    """`>= 2a & !(= b)`, as kP-Lingua writes it; regular sets as `a in {0, 2} or >= 4 with (n - 4) mod 2 in {0}`."""
    if depth > DEEPEST:
        return "..."
    name = clean(guard.object)
    if guard.op in _COMPARE:
        return f"{_COMPARE[guard.op]} {guard.count if guard.count != 1 else ''}{name}"
    if guard.op == "in":
        starts = ", ".join(map(str, guard.starts))
        residues = ", ".join(map(str, guard.residues))
        below = f"{{{starts}}}" if guard.starts else ""
        above = f">= {guard.threshold} with (n - {guard.threshold}) mod {guard.period} in {{{residues}}}"
        above = f">= {guard.threshold}" if guard.period == 1 and guard.residues else above if guard.residues else ""
        return f"{name} in " + (" or ".join(p for p in (below, above) if p) or "{}")
    parts = [guard_text(p, depth + 1) for p in guard.parts]
    if guard.op == "not":
        return f"!({' & '.join(parts)})"
    if not parts:
        return "true" if guard.op == "all" else "false"
    text = (" & " if guard.op == "all" else " | ").join(parts)
    return f"({text})" if depth and len(parts) > 1 else text


def expression_text(expression: Expression, depth: int = 0) -> str:
    """A rate law or production function as it is written by hand."""
    if depth > DEEPEST:
        return "..."
    if expression.op == "number":
        return f"{expression.value:g}"
    if expression.op == "name":
        return clean(expression.symbol)
    arguments = [expression_text(a, depth + 1) for a in expression.arguments]
    if expression.op in _INFIX and len(arguments) == 2:
        text = f" {_INFIX[expression.op]} ".join(arguments)
        return f"({text})" if depth else text
    if expression.op == "neg" and arguments:
        return f"-{arguments[0]}"
    return f"{expression.op}({', '.join(arguments)})"
