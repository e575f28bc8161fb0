"""A whole system as P-Lingua 5 that `read` reads into an equal one.

Rules of a group share a pattern group; the patterns are the shapes of its rules. A rule whose shape occurs in more than
one group names its pattern by the feature `pattern`. What P-Lingua has no words for but can say otherwise is said so,
see `worded`: promoters and inhibitors are guards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from echoc.compiler.ir.algebra import Bound, Guard, Inner, Mode, Result, Rule, System, Target
from echoc.errors import CompileError

from .lexer import KEYWORDS
from .membrane_parser import COMPARISONS
from .patterns import Matcher, PatternGroup, PatternRule, RuleShape, Shape
from .show import show_bag, show_shape
from .wording import check_read, is_spiking, lengths, named, worded

_OBJECT = re.compile(r"([A-Za-z_][A-Za-z0-9_.]*|\.[A-Za-z_.][A-Za-z0-9_.]*)(\{-?[0-9]{1,18}(,-?[0-9]{1,18})*\})?")
_LABEL = re.compile(r"0|[1-9][0-9]{0,17}|[A-Za-z_][A-Za-z0-9_.]*")
_NOTE = re.compile(r"rules\[([0-9]{1,9})\]\.(.+)")
Said = TypeVar("Said")
PROBABILITY = " :: probability(double_t)"
_OBJECTS_LINE = 12  # objects of one @ms statement


class Unprintable(CompileError):
    """A system, or a part of one, that P-Lingua has no words for."""


def _unprintable(what: str) -> Unprintable:
    return Unprintable(
        f"P-Lingua cannot say {what}; wanted a cell-like, tissue-like, population dynamics or spiking system "
        "(system_text of echoc.membranes.view.notation prints any)"
    )


def show(system: System) -> str:
    """The system as P-Lingua 5 with its own model; what is read of it is `worded(system)`.

    Raises Unprintable, a CompileError, for what cannot be said, with the rule.
    """
    system = worded(system)
    check_read(system)
    return _Printer(system).text()


def _label(label: str) -> str:
    parts = label.split(",")
    return ",".join(p if _LABEL.fullmatch(p) and p not in KEYWORDS else '{"' + _escaped(p) + '"}' for p in parts)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


@dataclass(slots=True)
class _Printer:
    system: System
    lines: list[str] = field(default_factory=list)
    notes: dict[int, dict[str, str]] = field(default_factory=dict)
    shapes: list[RuleShape] = field(default_factory=list)

    def text(self) -> str:
        self.check()
        for name, value in self.system.features.items():
            found = _NOTE.fullmatch(name)
            if found:
                self.notes.setdefault(int(found.group(1)), {})[found.group(2)] = value
        if is_spiking(self.system):
            return self.spiking()
        shapes = self.shapes = [self.told(self.shape, rule) for rule in self.system.rules]
        groups, bounds = self.group_numbers()
        population = self.system.mode is Mode.DCBA
        patterns: dict[int, dict[RuleShape, str]] = {}
        kinds = [_pattern(shape) for shape in shapes]
        for kind, group in zip(kinds, groups, strict=True):
            patterns.setdefault(group, {})[kind] = show_shape(kind) + (PROBABILITY if population else "")
        first = self.first_groups(kinds, patterns, bounds)
        self.model(patterns, bounds)
        self.features()
        self.lines.append("def main()\n{")
        self.structure()
        alphabets = self.alphabets()
        self.contents(alphabets)
        for i, rule in enumerate(self.system.rules):
            notes = {"pattern": self.name(groups[i])} if self.system.model and first[kinds[i]] != groups[i] else {}
            self.told(self.rule, rule, shapes[i], notes | self.notes.get(i, {}))
        self.lines.append("}")
        return "\n".join(self.lines) + "\n"

    def check(self) -> None:
        system = self.system
        if system.unbounded and system.cells[0].objects:
            raise _unprintable("an environment with objects in unlimited supply and others")
        if system.environment:
            raise _unprintable("what is outside of the skin at the start")
        if system.events:
            raise _unprintable(f"events; this one: {system.events[0].name or system.events[0].label}")
        if system.mode is Mode.ORDERED:
            raise _unprintable(
                "groups of rules that run one after another (kP-Lingua can: membranes/kplingua_print.py)"
            )
        if system.events:
            raise _unprintable("events")
        for name in system.objects:
            found = _OBJECT.fullmatch(name)
            if not found or found.group(1) in KEYWORDS:
                raise _unprintable(f"the object {name!r}")

    def group_numbers(self) -> tuple[list[int], dict[int, int | None]]:
        """For every rule the number of its group, and the bounds of the groups; all maximal ones are one."""
        numbers, bounds = [-1] * len(self.system.rules), {}
        for number, group in enumerate(self.system.groups):
            if group.bound not in (Bound.MAXIMAL, Bound.AT_MOST):
                raise _unprintable(f"a group of rules that is applied by {group.bound.value}")
            at = -1 if group.bound is Bound.MAXIMAL else number
            bounds[at] = None if group.bound is Bound.MAXIMAL else group.limit
            for rule in group.rules:
                numbers[rule] = at
        return numbers, bounds

    def first_groups(
        self, kinds: list[RuleShape], patterns: dict[int, dict[RuleShape, str]], bounds: dict[int, int | None]
    ) -> dict[RuleShape, int]:
        """For every kind of rule the group whose patterns it matches first; it may be another than its own."""
        made = [
            PatternGroup(self.name(g), bounds[g], g, tuple(PatternRule(k, "") for k in patterns.get(g, {})))
            for g in sorted(bounds)
        ]
        matcher = Matcher(made, False)
        found = {}
        for kind in dict.fromkeys(kinds):
            owner = matcher.find(_instance(kind)) if len(made) > 1 else made[0]
            found[kind] = owner.group if owner is not None else -2
        return found

    def name(self, group: int) -> str:
        separates = any(r.keeps is not None for i in self.members(group) for n in i.inner for r in n.results)
        return ("maximal" if group < 0 else f"at_most_{group}") + ("_separation" if separates else "")

    def members(self, group: int) -> Iterable[Rule]:
        for number, g in enumerate(self.system.groups):
            if group == (-1 if g.bound is Bound.MAXIMAL else number):
                yield from (self.system.rules[i] for i in g.rules)

    def model(self, patterns: dict[int, dict[RuleShape, str]], bounds: dict[int, int | None]) -> None:
        model = self.system.model
        if not model:
            if any(b is not None for b in bounds.values()):
                raise _unprintable("bounded groups without a model")
            return
        parts = []
        for group in sorted(bounds):
            name, bound = self.name(group), bounds[group]
            self.lines.append(f"!{name}\n{{")
            self.lines.extend(f"  {text};" for text in patterns.get(group, {}).values())
            self.lines.append("}\n")
            parts.append(name if bound is None else f"@{bound}{{{name}}}")
        if not parts:
            self.lines.append(f"!none {{ [a]'h --> [a]'h{PROBABILITY if self.environments() else ''}; }}")
            parts.append("none")
        self.lines.append(f"@model({model}) = {', '.join(parts)};\n@model<{model}>\n")

    def features(self) -> None:
        features = {k: v for k, v in self.system.features.items() if not k.startswith("rules[")}
        if self.system.mode not in (Mode.DCBA, Mode.PARALLEL):
            features.setdefault("mode", self.system.mode.value)
        if self.system.priority.value != "strong":
            features.setdefault("priority", self.system.priority.value)
        exchange = any(shape.double for shape in self.shapes)
        if exchange and not self.system.unbounded and self.system.cells[0].objects:
            features.setdefault("environment", "finite")
        if not exchange and self.system.unbounded:
            features.setdefault("environment", "unbounded")
        for name, value in features.items():
            if not _OBJECT.fullmatch(name):
                raise _unprintable(f"the feature {name!r}")
            self.lines.append(f'@{name} = "{_escaped(value)}";')

    def structure(self) -> None:
        children: list[list[int]] = [[] for _ in self.system.cells]
        for i, cell in enumerate(self.system.cells[1:], 1):
            if cell.parent is None:
                raise _unprintable("more than one outermost membrane")
            children[cell.parent].append(i)
        made, queue = ["  @mu = "], [(0, False)]
        while queue:
            i, done = queue.pop()
            cell = self.system.cells[i]
            if done:
                own = _label(cell.label)
                if self.environments():
                    own = _label(cell.label.split(",")[0]) + (f",{_label(cell.name)}" if cell.name else "")
                made.append(f"]'{own} ")
                continue
            made.append(("+[", "-[", "[")[(1, -1, 0).index(cell.charge)])
            queue.append((i, True))
            queue.extend((c, False) for c in reversed(children[i]))
        self.lines.append("".join(made).rstrip() + ";")

    def environments(self) -> bool:
        return self.system.mode is Mode.DCBA

    def environment(self, index: int) -> str:
        at: int | None = index
        while at is not None:
            if self.system.cells[at].name:
                return self.system.cells[at].name
            at = self.system.cells[at].parent
        return ""

    def alphabets(self) -> tuple[frozenset[str], frozenset[str]] | None:
        found = {
            tuple(r.keeps for r in inner.results)
            for rule in self.system.rules
            for inner in rule.inner
            if any(r.keeps is not None for r in inner.results)
        }
        if not found:
            return None
        keeps = found.pop()
        if found or len(keeps) != 2 or keeps[0] is None or keeps[1] is None:
            raise _unprintable("separations with different alphabets")
        return keeps[0], keeps[1]

    def contents(self, alphabets: tuple[frozenset[str], frozenset[str]] | None) -> None:
        contents: dict[str, tuple[tuple[str, int], ...]] = {}
        for i, cell in enumerate(self.system.cells):
            objects = cell.objects
            if i == 0 and self.system.unbounded:
                objects = tuple((o, 1) for o in sorted(self.system.unbounded))
            label = _label(cell.label)
            if self.environments() and "," not in cell.label and self.environment(i):
                label += f",{_label(self.environment(i))}"
            if contents.setdefault(label, objects) != objects:
                raise _unprintable(f"different contents of two membranes with the label {cell.label}")
        if alphabets is not None:
            for label, letters in zip(("1", "2"), alphabets, strict=True):
                self.objects(label, tuple((o, 1) for o in sorted(letters)))
                contents.setdefault(label, ())
        for label, objects in contents.items():
            replaces = alphabets is not None and label in ("1", "2")
            if replaces:
                self.lines.append(f"  @ms({label}) = {show_bag(objects[:1])};")
                objects = objects[1:]
            self.objects(label, objects)

    def objects(self, label: str, objects: tuple[tuple[str, int], ...]) -> None:
        for start in range(0, len(objects), _OBJECTS_LINE):
            self.lines.append(f"  @ms({label}) += {show_bag(objects[start : start + _OBJECTS_LINE])};")

    # Rules.

    def told(self, what: Callable[..., Said], rule: Rule, *more: object) -> Said:
        """What is made of a rule; an error names the rule."""
        try:
            return what(rule, *more)
        except Unprintable as problem:
            raise Unprintable(f"{named(rule)}: {problem}") from None

    def rule(self, rule: Rule, shape: RuleShape, notes: dict[str, str]) -> None:
        text = show_shape(shape)
        if rule.priority is not None:
            text = f"({rule.priority}) {text}"
        if rule.guard is not None:
            if rule.label is None:
                raise _unprintable("a guard on a rule that no membrane holds")
            text = f"@guard {_guard(rule.guard)} ? {text}"
        number = rule.rate if self.system.mode is Mode.GILLESPIE else rule.probability
        if number is not None:
            if not isinstance(number, float | int):
                raise _unprintable("a rate law")
            text += f" :: {_number(float(number))}"
        if notes:
            text += " @ " + ", ".join(f'{name} = "{_escaped(value)}"' for name, value in notes.items())
        self.lines.append(f"  {text};")

    def shape(self, rule: Rule) -> RuleShape:
        """The rule as its left and right sides. Raises Unprintable."""
        if rule.delay or rule.divide or rule.link or rule.unlink:
            raise _unprintable("delays, links and divisions of a membrane by its own rule")
        out = [s for s in rule.send if s.target is Target.OUT]
        if len(out) < len(rule.send) or len(out) > 1:
            raise _unprintable("products that are sent elsewhere than out")
        after = out[0].objects if out else ()
        if rule.label is not None:
            exchange = self.exchange_out(rule)
            return exchange if exchange is not None else _held(rule, after)
        if len(rule.inner) == 2:
            exchange = _between(rule.inner)
            if exchange is None or rule.consume or rule.produce:
                raise _unprintable("a rule over two membranes that does not name the one around them")
            return exchange
        if len(rule.inner) != 1:
            raise _unprintable("a rule over membranes that does not name the one around them")
        inner = rule.inner[0]
        left = Shape(inner.charge or 0, _labels(inner.label), inner.consume)
        right = tuple(Shape(_after(r.charge, inner.charge), _labels(r.label), r.produce) for r in inner.results)
        return RuleShape(rule.consume, left, False, rule.produce, right)

    def exchange_out(self, rule: Rule) -> RuleShape | None:
        """`[u]'h1 <--> [v]'h2` with the environment."""
        if not self.system.unbounded or len(rule.inner) != 1 or rule.label != self.system.cells[0].label or rule.send:
            return None
        inner = rule.inner[0]
        if len(inner.results) != 1 or inner.results[0].produce != rule.consume or inner.consume != rule.produce:
            return None
        if inner.results[0].label != inner.label or rule.dissolve or rule.new_charge is not None:
            return None
        left = Shape(inner.charge or 0, _labels(inner.label), inner.consume)
        return RuleShape((), left, True, (), (Shape(rule.charge or 0, _labels(rule.label), rule.consume),))

    # Spiking systems.

    def spiking(self) -> str:
        cells = self.system.cells
        self.lines.append(f"@model<{self.system.model or 'spiking_psystems'}>\n\ndef main()\n{{")
        if any(c.parent is not None for c in cells) or len({c.label for c in cells}) < len(cells):
            raise _unprintable("a spiking system with membranes inside of neurons or two neurons of one label")
        self.lines.append(f"  @mu = {', '.join(_label(c.label) for c in cells)};")
        outputs = sorted(
            {r.label for r in self.system.rules if r.label and any(s.target is Target.OUT for s in r.send)}
        )
        if len(outputs) > 1:
            raise _unprintable("more than one output neuron")
        kept = {k: v for k, v in self.system.features.items() if not k.startswith("rules[") and k != "spiking"}
        if outputs:
            kept["mout"] = outputs[0]
        for name, value in kept.items():
            self.lines.append(f"  @{name} = {_label(value) if name in ('min', 'mout') else _quoted(value)};")
        for cell in cells:
            self.objects(_label(cell.label), cell.objects)
        for a, b in self.system.links:
            self.lines.append(f"  @marcs += ({_label(cells[a].label)},{_label(cells[b].label)});")
        for rule in self.system.rules:
            self.lines.append("  " + self.told(_spiking_rule, rule))
        self.lines.append("}")
        return "\n".join(self.lines) + "\n"


def _quoted(value: str) -> str:
    return f'"{_escaped(value)}"'


def _number(value: float) -> str:
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _labels(label: str) -> tuple[str, ...]:
    """The parts of a label as they are written."""
    return tuple(_label(part) for part in label.split(","))


def _after(charge: int | None, before: int | None) -> int:
    return (before or 0) if charge is None else charge


def _held(rule: Rule, after: tuple[tuple[str, int], ...]) -> RuleShape:
    """`[u []'h1 --> v [w]'h1]'h`."""
    assert rule.label is not None
    label, charge = _labels(rule.label), rule.charge or 0
    inner = tuple(Shape(i.charge or 0, _labels(i.label), i.consume) for i in rule.inner)
    results = []
    for i in rule.inner:
        results.extend(_inner_results(i))
    left = Shape(charge, label, rule.consume, False, inner)
    right = Shape(_after(rule.new_charge, charge), label, rule.produce, rule.dissolve, tuple(results))
    return RuleShape((), left, False, after, (right,))


def _inner_results(inner: Inner) -> list[Shape]:
    if not inner.results:
        return [Shape(inner.charge or 0, _labels(inner.label), (), True)]
    if any(r.keeps is not None for r in inner.results):
        raise _unprintable("the separation of a membrane by a rule of the one around it")
    return [Shape(_after(r.charge, inner.charge), _labels(r.label), r.produce) for r in inner.results]


def _between(inner: tuple[Inner, ...]) -> RuleShape | None:
    """`[u]'h1 <--> [v]'h2` between siblings."""
    a, b = inner
    if len(a.results) != 1 or len(b.results) != 1:
        return None
    swapped = (Result(a.label, a.results[0].charge, b.consume), Result(b.label, b.results[0].charge, a.consume))
    if (a.results[0], b.results[0]) != swapped:
        return None
    left = Shape(a.charge or 0, _labels(a.label), a.consume)
    return RuleShape((), left, True, (), (Shape(b.charge or 0, _labels(b.label), b.consume),))


def _pattern(shape: RuleShape) -> RuleShape:
    """The pattern of rules like this one: any charges, any labels, any multisets where there are some."""
    names: dict[str, str] = {}
    count = 0

    def bag(found: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
        nonlocal count
        count += 1
        return ((f"u{count}", 1),) if found else ()

    def membrane(m: Shape) -> Shape:
        labels = tuple(names.setdefault(x, f"h{len(names) + 1}") for x in m.label)
        return Shape(None, labels, bag(m.bag), m.dissolve, tuple(membrane(i) for i in m.inner))

    left = membrane(shape.left)
    right = tuple(membrane(m) for m in shape.right)
    return RuleShape(bag(shape.outside), left, shape.double, bag(shape.after), right)


def _instance(kind: RuleShape) -> RuleShape:
    """A rule of the kind: charges are 0, and no multiset is a single object."""

    def bag(found: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
        return tuple((name, 2) for name, _ in found)

    def membrane(m: Shape) -> Shape:
        return Shape(0, m.label, bag(m.bag), m.dissolve, tuple(membrane(i) for i in m.inner))

    right = tuple(membrane(m) for m in kind.right)
    return RuleShape(bag(kind.outside), membrane(kind.left), kind.double, bag(kind.after), right)


def _guard(guard: Guard) -> str:
    if guard.op in ("all", "any") and len(guard.parts) > 1:
        parts = [f"({_guard(p)})" if p.parts else _guard(p) for p in guard.parts]
        return (" && " if guard.op == "all" else " || ").join(parts)
    signs = {op: sign for sign, op in COMPARISONS.items()}
    if guard.op not in signs or guard.parts:
        raise _unprintable(f"the guard {guard.op!r}")
    return f"{{{signs[guard.op]}+{guard.object}*{guard.count}}}"


def _spiking_rule(rule: Rule) -> str:
    guard = rule.guard
    if rule.label is None or rule.inner or len(rule.consume) != 1 or guard is None or rule.produce:
        raise _unprintable("a rule that is not one of a spiking system")
    spike, count = rule.consume[0]
    sent = next((s.objects for s in rule.send if s.target is Target.SYNAPSES), ())
    text = f"[{show_bag(rule.consume)} --> {show_bag(sent) or '#'}]'{_label(rule.label)}"
    if guard.object != spike:
        raise _unprintable("a guard over another object than the spike")
    if (guard.op, guard.count) != ("eq", count):
        expression = lengths(guard)
        if not expression:
            raise _unprintable(f"the guard {guard.op} of a neuron")
        text += f' "{expression}"'
    return text + (f" :: {rule.delay}" if rule.delay else "") + ";"
