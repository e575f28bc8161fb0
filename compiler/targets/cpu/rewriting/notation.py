"""Rules as text, close to P-Lingua's way of writing them: for comments in generated code and for messages."""

from __future__ import annotations

from echoc.compiler.ir.algebra import Bag, Rule, Target
from echoc.compiler.ir.expression import Expression, render

CHARGES = {None: "", 0: "", 1: "+", -1: "-"}


def show_bag(objects: Bag) -> str:
    """`a*2, b`, and `#` for nothing."""
    return ", ".join(o if n == 1 else f"{o}*{n}" for o, n in objects) or "#"


def show_rule(rule: Rule) -> str:
    """A rule on one line: `+[a*2]'h --> b -[c]'h :: 0.5`."""
    left = [show_bag(rule.consume)] if rule.consume else []
    right = [show_bag(rule.produce)] if rule.produce else []
    for inner in rule.inner:
        left.append(f"{CHARGES[inner.charge]}[{show_bag(inner.consume)}]'{inner.label}")
        right.extend(f"{CHARGES[r.charge]}[{show_bag(r.produce)}]'{r.label}" for r in inner.results)
    right.extend(f"({show_bag(s.objects)}; in {s.label})" for s in rule.send if s.target == Target.IN)
    before, after = " ".join(left) or "#", " ".join(right) or "#"
    if rule.label is not None:
        charge = rule.charge if rule.new_charge is None else rule.new_charge
        before = f"{CHARGES[rule.charge]}[{before}]'{rule.label}"
        after = f"{CHARGES[charge]}[{after}]'{rule.label}"
    out = " ".join(show_bag(s.objects) for s in rule.send if s.target == Target.OUT)
    return _safe(f"{before} --> {out + ' ' if out else ''}{after}{_tail(rule)}")


def _tail(rule: Rule) -> str:
    parts = []
    if rule.promoters:
        parts.append(f"with {show_bag(rule.promoters)}")
    if rule.inhibitors:
        parts.append(f"unless {show_bag(rule.inhibitors)}")
    if rule.guard is not None:
        parts.append("under a guard")
    if rule.probability is not None:
        parts.append(f":: {rule.probability!r}")
    if isinstance(rule.rate, Expression):
        parts.append(f"at {render(rule.rate, str).replace('echoc::real::', '')}")
    elif rule.rate is not None:
        parts.append(f"at {rule.rate!r}")
    return "".join(f" {part}" for part in parts)


def _safe(text: str) -> str:
    """Fit for a line comment of C++: no line breaks, no backslash that would join the next line."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(c if c.isprintable() and c != "\\" else "?" for c in text)
