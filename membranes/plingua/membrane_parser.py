"""Parsing of membranes, multisets, labels and rules."""

from __future__ import annotations

from .expressions import SHIFT, ExpressionParser
from .lexer import TYPES
from .syntax import Charge, Condition, Expression, Feature, Label, Membrane, Name, Object, Range, Rule, Structure, Text

ARROWS = {"-->": False, "->": False, "<-->": True, "<->": True}
COMPARISONS = {"=": "eq", "<": "lt", ">": "gt", "<=": "le", ">=": "ge", "<>": "ne"}
_SIGN = {"+": 1, "-": -1}
LABEL_FEATURES = frozenset({"min", "mout"})  # version 4: `@mout = out`


class MembraneParser(ExpressionParser):
    charged = False
    in_pattern = False

    def label(self) -> Label:
        offset = self.offset
        if self.accept("{"):
            value = self.expression()
            self.expect("}")
            return Label(offset, value)
        if self.kind == "id":
            name = self.name()
            return Label(offset, name if name.index else Text(offset, name.name), literal=True)
        if self.kind == "int":
            number = self.primary()
            return Label(offset, number, literal=True)
        raise self.unexpected("a label: a name, a number or {expression}")

    def labels(self) -> tuple[Label, ...]:
        found = [self.label()]
        while self.kind == "," and self.kinds[self.at + 1] in ("id", "int", "{"):
            self.at += 1
            found.append(self.label())
        return tuple(found)

    def starts_membrane(self) -> bool:
        kind, kinds, at = self.kind, self.kinds, self.at
        if kind in ("+", "-"):
            return kinds[at + 1] == "["
        if kind == "?":
            return kinds[at + 1] == "[" or (kinds[at + 1] == "int" and kinds[at + 2] == "[")
        return kind == "["

    def open_membrane(self) -> Charge:
        """Reads the charge and `[`."""
        charge = Charge()
        if self.kind in _SIGN:
            charge = Charge(_SIGN[self.kind])
            self.charged = self.charged or not self.in_pattern
            self.at += 1
        elif self.kind == "?":
            if not self.in_pattern:
                raise self.fault("the charge '?' stands for any charge: it is for patterns only; wanted + or - or none")
            self.at += 1
            variable = -1
            if self.kind == "int":
                variable = self.number("the number of a charge", 9)
            charge = Charge(None, variable)
        self.expect("[")
        return charge

    def number(self, what: str, most: int) -> int:
        offset = self.offset
        value = self.expect("int", what)
        assert isinstance(value, int)
        if value > most:
            raise self.fault(f"{what} is at most {most}; found {value}", offset)
        return value

    def close_membrane(self, labels: bool) -> tuple[Label, ...] | None:
        """Reads `]` and the labels, which may be left out unless `labels`."""
        self.expect("]", "an object, a membrane, an arrow or ']'")
        if self.accept("'"):
            return self.labels()
        if labels:
            raise self.unexpected("the label of the membrane: 'label")
        return None

    def starts_object(self) -> bool:
        return self.kind in ("id", "#", "@d", "&")

    def objects(self, dissolution: bool = True) -> tuple[Object, ...]:
        """One or more objects with commas between them."""
        found = [self.object(dissolution)]
        while self.accept(","):
            found.append(self.object(dissolution))
        return tuple(found)

    def object(self, dissolution: bool) -> Object:
        offset = self.offset
        if self.accept("#"):
            return Object(offset, None)
        if self.kind == "@d" and dissolution:
            self.at += 1
            return Object(offset, None, dissolve=True)
        if self.accept("&"):
            return self.ranged_objects(offset)
        if self.kind != "id":
            raise self.unexpected("an object")
        return self.object_count(self.name())

    def ranged_objects(self, offset: int) -> Object:
        """`&{a{i}, b} : {1 <= i <= n}` of version 4: all of them together."""
        self.expect("{")
        self.enter("multisets", self.limits.parentheses)
        objects = self.objects(dissolution=False)
        self.depth -= 1
        self.expect("}", "',' or '}'")
        self.expect(":")
        self.expect("{")
        ranges = [self.range()]
        while self.accept(","):
            ranges.append(self.range())
        self.expect("}", "',' or '}'")
        return Object(offset, None, objects=objects, ranges=tuple(ranges))

    def object_count(self, name: Name) -> Object:
        count = self.primary() if self.accept("*") else None
        return Object(name.at, name, count)

    def content(self, nested: bool) -> tuple[tuple[Object, ...], tuple[Membrane, ...]]:
        """What stands in a membrane of a rule, up to an arrow or `]`."""
        objects: tuple[Object, ...] = ()
        inner: list[Membrane] = []
        while True:
            if self.starts_object():
                objects += self.objects()
            elif self.starts_membrane():
                if not nested:
                    raise self.fault("a rule sees a membrane and its children, no deeper")
                inner.append(self.inner_membrane())
            else:
                return objects, tuple(inner)

    def inner_membrane(self) -> Membrane:
        offset = self.offset
        charge = self.open_membrane()
        objects, _ = self.content(nested=False)
        return Membrane(offset, charge, self.close_membrane(labels=True), objects)

    def outer_membrane(self) -> Membrane:
        offset = self.offset
        charge = self.open_membrane()
        objects, inner = self.content(nested=True)
        return Membrane(offset, charge, self.close_membrane(labels=False), objects, inner)

    def arrow(self) -> bool:
        kind = self.kind
        if kind not in ARROWS:
            raise self.unexpected("an arrow: -->, ->, <--> or <->")
        self.at += 1
        return ARROWS[kind]

    def guarded_rule(self) -> Rule:
        """`@guard {>=+a*2} && ({<+b} || {=+c}) ? rule` of version 4."""
        self.at += 2
        guard = self.condition_of("any", "||")
        self.expect("?", "'&&', '||' or '?' and the rule")
        rule = self.rule()
        rule.guard = guard
        return rule

    def condition_of(self, op: str, sign: str) -> Condition:
        """Parts joined by `||`, each of parts joined by `&&`."""
        offset = self.offset
        self.enter("guards", self.limits.parentheses)
        parts = [self.condition_of("all", "&&") if op == "any" else self.comparison()]
        while self.accept(sign):
            parts.append(self.condition_of("all", "&&") if op == "any" else self.comparison())
        self.depth -= 1
        return Condition(offset, op, tuple(parts)) if len(parts) > 1 else parts[0]

    def comparison(self) -> Condition:
        offset = self.offset
        if self.accept("("):
            inside = self.condition_of("any", "||")
            self.expect(")")
            return inside
        self.expect("{", "a guard: {>=+a*2}")
        if self.kind not in COMPARISONS:
            raise self.unexpected(f"one of {' '.join(COMPARISONS)}")
        op = COMPARISONS[self.kind]
        self.at += 1
        self.accept("+")
        found = self.object_count(self.name())
        self.expect("}")
        return Condition(offset, op, object=found)

    def rule(self, first: Name | None = None) -> Rule:
        """A rule; `first` is the name of its first object, where that was read already."""
        offset = first.at if first is not None else self.offset
        priority: Expression | None = None
        any_priority = False
        if first is None and self.accept("("):
            if self.in_pattern and self.accept("?"):
                any_priority = True
            else:
                priority = self.expression()
            self.expect(")")
        outside: tuple[Object, ...] = ()
        if first is not None:
            outside = (self.object_count(first),)
            if self.accept(","):
                outside += self.objects()
        elif self.starts_object():
            outside = self.objects()
        rule = self.rule_body(offset, outside)
        rule.priority, rule.any_priority = priority, any_priority
        self.rule_suffixes(rule)
        return rule

    def rule_body(self, offset: int, outside: tuple[Object, ...]) -> Rule:
        if not self.starts_membrane():
            raise self.unexpected("a membrane of the rule: '['")
        at = self.offset
        charge = self.open_membrane()
        objects, inner = self.content(nested=True)
        if self.kind in ARROWS:
            double = self.arrow()
            after, inner_after = self.content(nested=True)
            labels = self.close_membrane(labels=False)
            if labels is None and (not self.in_pattern or not outside):
                raise self.unexpected("the label of the membrane: 'label")
            if outside:
                raise self.fault("objects outside of a membrane with the arrow inside", offset)
            left = Membrane(at, charge, labels, objects, inner)
            right = Membrane(at, charge, labels, after, inner_after)
            return Rule(offset, left, (), double, (right,), (), evolution=True)
        left = Membrane(at, charge, self.close_membrane(labels=True), objects, inner)
        if self.starts_object():
            if outside:
                raise self.fault("objects on both sides of the membrane; wanted them on one")
            outside = self.objects()
        double = self.arrow()
        outside_after: tuple[Object, ...] = ()
        after_membranes: list[Membrane] = []
        while True:
            if self.starts_object():
                outside_after += self.objects()
            elif self.starts_membrane():
                after_membranes.append(self.outer_membrane())
            else:
                return Rule(offset, left, outside, double, tuple(after_membranes), outside_after)

    def rule_suffixes(self, rule: Rule) -> None:
        """A regular expression, a probability (or rate, or delay) and features."""
        if self.kind == "str":
            rule.regular = Text(self.offset, str(self.values[self.at]))
            self.at += 1
        if self.accept("::"):
            kinds = self.kinds[self.at : self.at + 3]
            if kinds[:2] == ["id", "("] and kinds[2] in TYPES:
                self.at += 3
                self.expect(")")
                rule.any_probability = True
            else:
                rule.probability = self.expression()
        if self.accept("@"):
            rule.features = self.features()

    def features(self) -> tuple[Feature, ...]:
        found = [self.feature()]
        while self.accept(","):
            found.append(self.feature())
        return tuple(found)

    def feature(self) -> Feature:
        offset = self.offset
        name = self.name()
        if self.kind == "(" and self.kinds[self.at + 1] in TYPES:
            self.at += 2
            self.expect(")")
            return Feature(offset, name, type=self.kinds[self.at - 2])
        if not self.accept("="):
            return Feature(offset, name)
        if name.name in LABEL_FEATURES:
            return Feature(offset, name, self.label())
        return Feature(offset, name, self.expression())

    def range(self) -> Range:
        offset = self.offset
        low = self.expression(SHIFT)
        if self.accept("<>"):
            return Range(offset, low, False, None, False, self.expression(SHIFT))
        strict = self.bound()
        variable = self.name()
        high_strict = self.bound()
        return Range(offset, low, strict, variable, high_strict, self.expression(SHIFT))

    def bound(self) -> bool:
        if self.accept("<"):
            return True
        self.expect("<=", "'<' or '<=' of a range, or '<>'")
        return False

    def structure(self) -> Structure:
        """A membrane of `@mu`, read without recursion."""
        stack: list[Structure] = []
        while True:
            if self.kind in _SIGN or self.kind == "[":
                offset = self.offset
                charge = self.open_membrane().value
                stack.append(Structure(offset, charge or 0, ()))
                if len(stack) > self.limits.brackets:
                    raise self.fault(f"membranes more than {self.limits.brackets} deep")
            elif self.kind == "]" and stack:
                labels = self.close_membrane(labels=True)
                done = stack.pop()
                done.labels = labels or ()
                if not stack:
                    return done
                stack[-1].children.append(done)
            else:
                raise self.unexpected("'[' or ']' of the membrane structure")

    def neuron(self) -> Structure:
        label = self.label()
        return Structure(label.at, 0, (label,))
