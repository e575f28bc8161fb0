"""Rules: from a statement to `Rule`s, through the patterns of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from echoc.compiler.ir.algebra import Bag, Guard, Mode, Rule, Send, Target, Where

from .diagnostics import Fault, Limits, Mark
from .evaluate import Evaluator
from .loopnest import Aside, Nest, Unsuited, kind_of, loop_nest, many
from .patterns import Matcher, PatternGroup, RuleShape, Shape, TooManyWays
from .plan import Maker, Member, Plan, Unmapped, maker, plan_exchange, plan_rule
from .show import shortened, show_shape
from .spiking import BadExpression, unary_language
from .syntax import Condition, Feature, Label, Membrane, Object, Ranged
from .syntax import Rule as RuleNode
from .thunks import BagThunk, Locals, Run, Thunk
from .values import Undefined, Value, to_whole

Labels = tuple[str, ...]
SHOWN = 40  # patterns in a message
ROUNDING = 1e-9  # a probability may miss 0 or 1 by this much
MANY = 200  # values of ranges for which a loop nest pays
GUESS = 16  # values of a range whose bounds are not numbers


class Part(NamedTuple):
    """A membrane of a rule statement: where its labels and its bag stand in the lists of the statement."""

    charge: int
    labels: int
    bag: int
    dissolve: bool
    inner: tuple[Part, ...]


class Template:
    """The dynamic parts of a rule statement, in order: bags and labels."""

    def __init__(self, builder: RuleBuilder, node: RuleNode) -> None:
        self.builder = builder
        self.bags: list[BagThunk] = []
        self.constant_bags: list[Bag | None] = []
        self.open_bags: list[int] = []  # those that may be empty, single or more
        self.bag_nodes: list[tuple[Object, ...]] = []
        self.label_nodes: list[tuple[Label, ...]] = []
        self.labels: list[Callable[[Locals], Labels]] = []
        self.constant_labels: list[Labels | None] = []
        self.outside = self.side(node.outside)
        self.after = self.side(node.outside_after)
        self.left = self.part(node.left)
        self.right = tuple(self.part(m) for m in node.right)
        self.double = node.double

    def side(self, objects: tuple[Object, ...]) -> int | None:
        for o in objects:
            if o.dissolve:
                raise Fault("@d outside of a membrane; wanted it inside of the one that dissolves", self.mark(o.at))
        return self.bag(objects) if objects else None

    def mark(self, at: int) -> Mark:
        return self.builder.mark(at)

    def bag(self, objects: tuple[Object, ...]) -> int:
        run, constant = self.builder.bag(objects)
        self.bags.append(run)
        self.bag_nodes.append(objects)
        self.constant_bags.append(constant)
        named = [o for o in objects if o.name is not None]
        if constant is None and (len(named) != 1 or len(objects) > 1 or named[0].count is not None):
            self.open_bags.append(len(self.bags) - 1)
        return len(self.bags) - 1

    def part(self, node: Membrane) -> Part:
        index = 0
        if node.labels is not None or not self.labels:
            run, constant = self.builder.labels(node.labels or ())
            self.labels.append(run)
            self.label_nodes.append(node.labels or ())
            self.constant_labels.append(constant)
            index = len(self.labels) - 1
        assert node.charge.value is not None
        dissolve = any(o.dissolve for o in node.objects)
        place = self.bag(node.objects)
        return Part(node.charge.value, index, place, dissolve, tuple(self.part(m) for m in node.inner))

    def shape(self, part: Part, labels: Sequence[Labels], bags: Sequence[Bag]) -> Shape:
        inner = tuple(self.shape(p, labels, bags) for p in part.inner)
        return Shape(part.charge, labels[part.labels], bags[part.bag], part.dissolve, inner)

    def member(self, part: Part, labels: Sequence[Labels]) -> Member:
        charge = part.charge if self.builder.charged else None
        inner = tuple(self.member(p, labels) for p in part.inner)
        return Member(charge, ",".join(labels[part.labels]), part.bag, part.dissolve, inner)


class Planned(NamedTuple):
    """A plan, its number among the different plans, what makes its rules, and the number of its group (-1: maximal)."""

    plan: Plan
    number: int
    make: Maker
    group: int


class RuleBuilder(Evaluator):
    """Compiles rule statements; the rules gather in `rules`, their groups in `groups`."""

    def __init__(self, limits: Limits, parameters: Mapping[str, float], seed: int) -> None:
        super().__init__(limits, parameters, seed)
        self.rules: list[Rule] = []
        self.groups: list[int] = []
        self.patterns: list[str] = []
        self.notes: dict[str, str] = {}
        self.matcher: Matcher | None = None
        self.model = ""
        self.mode = Mode.PARALLEL
        self.charged = True
        self.spiking = False
        self.around: Callable[[str, str], str | None] = lambda a, b: None
        self.repeated: dict[int, list[float]] = {}  # probabilities of rules that are written again
        self.seen: dict[object, int] = {}
        self._plans: dict[Plan, tuple[int, Maker]] = {}
        self.samples: list[int] = []  # rules that stand for all others: those differ in names and sound numbers only

    def rule(self, node: RuleNode) -> Run:
        return self.spiking_rule(node) if self.spiking else self.applied(node, Template(self, node), {})

    def ranged(self, node: Ranged) -> Run:
        rule = node.body
        if self.spiking or not isinstance(rule, RuleNode) or not many(node.ranges, MANY, GUESS):
            return super().ranged(node)
        template, cache = Template(self, rule), dict[object, Planned]()
        closures = self.nest(node.ranges, self.applied(rule, template, cache))
        mark = self.mark(rule.at)
        try:
            nest: Nest | None = loop_nest(self, node.ranges, rule, template, cache)
        except Unsuited:
            return closures

        def run(local: Locals) -> tuple[Value] | None:
            nonlocal nest
            if nest is None or any("{" in name for name in local):
                return closures(local)
            if not self.nested(nest, local, mark):
                nest = None
                return closures(local)
            return None

        return run

    def nested(self, nest: Nest, local: Locals, mark: Mark) -> bool:
        """Runs a loop nest. False: it did not work, and everything is as it was."""
        rules, known, checked = len(self.rules), len(self.seen), len(self.samples)
        again: list[tuple[int, float | None, int | None]] = []
        try:
            self.left = nest(self, local, again)
        except (Aside, Fault, Undefined, Unmapped, KeyError, OverflowError):
            del self.rules[rules:], self.groups[rules:], self.samples[checked:]
            while len(self.seen) > known:
                self.seen.popitem()
            return False
        for first, p, level in again:
            self.repeat(first, p, level, mark)
        return True

    def applied(self, node: RuleNode, template: Template, cache: dict[object, Planned]) -> Run:
        """The rule for one set of values of the variables, as closures."""
        mark = self.mark(node.at)
        where = self.source.where(node.at)
        number = self.number(node)
        priority = self.priority(node)
        extra = self.extra(node)
        guard = self.guard(node.guard) if node.guard is not None else None
        bags, labels, open_bags = template.bags, template.labels, template.open_bags
        fixed = all(c is not None for c in template.constant_labels)
        exact = self.matcher is not None and self.matcher.exact
        gillespie = self.mode is Mode.GILLESPIE

        def run(local: Locals) -> None:
            p = number(local) if number is not None else None
            if p == 0.0 and not gillespie:
                return
            found = [b(local) for b in bags]
            key: object = () if fixed else tuple([run(local) for run in labels])
            if open_bags:
                key = (key, tuple([kind_of(found[i]) for i in open_bags]))
            planned = cache.get(key)
            if planned is None or exact:
                planned = cache[key] = self.plan(template, found, [run(local) for run in labels], mark, extra, local)
            level = priority(local) if priority is not None else None
            held = guard(local) if guard is not None else None
            if held is not None and planned.plan.label is None:
                raise Fault("a guard is for rules that a membrane holds: [u --> v]'h", mark)
            self.add(planned, found, p, level, where, mark, extra, local, held)

        return run

    def add(
        self,
        planned: Planned,
        bags: Sequence[Bag],
        p: float | None,
        level: int | None,
        where: Where,
        mark: Mark,
        extra: Callable[[Locals], dict[str, Value]] | None,
        local: Locals,
        guard: Guard | None,
    ) -> None:
        notes = extra(local) if extra is not None else {}
        identity: tuple[object, ...] = (planned.number, *bags)
        weight = None if self.mode is Mode.DCBA else p
        if guard is not None or notes or weight is not None:
            identity = (*identity, (weight, guard, tuple(notes.items())))
        first = self.seen.setdefault(identity, len(self.rules))
        if first < len(self.rules):
            self.repeat(first, p, level, mark)
            return
        self.room(mark)
        rate = p if self.mode is Mode.GILLESPIE else None
        try:
            rule = planned.make(identity, level, None if rate is not None else p, rate, guard, where)
        except Unmapped as problem:
            raise Fault(str(problem), mark) from None
        self.samples.append(len(self.rules))
        self.rules.append(rule)
        self.groups.append(planned.group)
        for name, value in notes.items():
            if name != "pattern":
                self.notes[f"rules[{len(self.rules) - 1}].{name}"] = str(value)

    def repeat(self, first: int, p: float | None, level: int | None, mark: Mark) -> None:
        """A rule that is there already, by its number."""
        other = self.rules[first]
        if level != other.priority:
            raise Fault(f"the same rule has the priority {other.priority} at {other.where}; here: {level}", mark)
        if p is not None and self.mode is Mode.DCBA:
            self.repeated.setdefault(first, []).append(p)

    def guard(self, node: Condition) -> Callable[[Locals], Guard]:
        """The guard of a rule for the values of the variables."""
        if node.object is None:
            parts = [self.guard(p) for p in node.parts]
            return lambda local: Guard(node.op, parts=tuple([part(local) for part in parts]))
        assert node.object.name is not None
        key, count = self.key(node.object.name)[0], node.object.count
        number: Callable[[Locals], int] = self.count(count) if count is not None else lambda _: 1
        return lambda local: Guard(node.op, key(local), number(local))

    def room(self, mark: Mark) -> None:
        if len(self.rules) >= self.limits.rules:
            raise Fault(f"more than {self.limits.rules} rules (limit rules)", mark)

    def plan(
        self,
        template: Template,
        bags: Sequence[Bag],
        labels: Sequence[Labels],
        mark: Mark,
        extra: Callable[[Locals], dict[str, Value]] | None,
        local: Locals,
    ) -> Planned:
        """Matches the rule with the model and maps it; raises Fault where either fails."""

        def side(index: int | None) -> Bag:
            return () if index is None else bags[index]

        left = template.shape(template.left, labels, bags)
        right = tuple(template.shape(p, labels, bags) for p in template.right)
        shape = RuleShape(side(template.outside), left, template.double, side(template.after), right)
        wanted = str(extra(local).get("pattern", "")) if extra is not None else ""
        group = self.match(shape, wanted, mark)
        try:
            plan = self.mapped(template, labels)
        except Unmapped as problem:
            raise Fault(f"the rule {shortened(show_shape(shape))} cannot be run: {problem}", mark) from None
        if plan not in self._plans:
            self._plans[plan] = len(self._plans), maker(plan)
        if group is not None and "separation" in group.name:
            self.patterns.append(group.name)
        return Planned(plan, *self._plans[plan], group.group if group is not None else -1)

    def mapped(self, template: Template, labels: Sequence[Labels]) -> Plan:
        left = template.member(template.left, labels)
        right = tuple(template.member(p, labels) for p in template.right)
        if template.double:
            if template.outside is not None or template.after is not None or len(right) != 1:
                raise Unmapped("an exchange <--> is between two membranes, without objects outside")
            if left.label == right[0].label:
                raise Unmapped("an exchange <--> of a membrane with itself")
            return plan_exchange(left, right[0], self.around(left.label, right[0].label))
        return plan_rule(template.outside, template.after, left, right, self.mode is Mode.DCBA)

    def match(self, shape: RuleShape, wanted: str, mark: Mark) -> PatternGroup | None:
        """The group of the pattern that the rule matches, or that its feature `pattern` names."""
        if self.matcher is None:
            return None
        groups = self.matcher.groups
        try:
            group = next((g for g in groups if g.name == wanted), None) if wanted else self.matcher.find(shape)
        except TooManyWays:
            raise Fault("a rule with too many membranes to compare with the patterns of the model", mark) from None
        if group is None and wanted:
            known = ", ".join(g.name for g in groups)
            raise Fault(f"the model {self.model} has no pattern {wanted}; its patterns: {known}", mark)
        if group is None:
            texts = [f"\n    {g.name}: {shortened(r.text)}" for g in groups for r in g.rules]
            more = f"\n    and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
            allowed = "".join(texts[:SHOWN]) + more
            raise Fault(
                f"the rule {shortened(show_shape(shape))} is outside of the model {self.model}, which allows{allowed}",
                mark,
            )
        return group

    def number(self, node: RuleNode) -> Callable[[Locals], float] | None:
        """What stands behind `::`: a probability, or a rate in stochastic models."""
        if node.regular is not None:
            raise Fault("a regular expression is for spiking models only", self.mark(node.regular.at))
        if node.any_probability:
            raise Fault("a probability of any value is for patterns only; wanted a number", self.mark(node.at))
        if node.probability is None:
            return None
        run, check = self.expression(node.probability).run, self.checked_number(self.mark(node.probability.at))

        def number(local: Locals) -> float:
            value = run(local)
            return value if value.__class__ is float and ROUNDING < value < 1 - ROUNDING else check(value)

        return number

    def checked_number(self, mark: Mark) -> Callable[[Value], float]:
        """The check of what stands behind `::`."""
        rate = self.mode is Mode.GILLESPIE

        def check(value: Value) -> float:
            if isinstance(value, str):
                raise Fault(f"a probability is a number; found the string {value[:40]!r}", mark)
            p = float(value)
            if rate:
                if not 0 <= p < float("inf"):
                    raise Fault(f"the rate constant {p}; wanted a finite number, 0 or more", mark)
                return p
            if abs(p) < ROUNDING:
                return 0.0
            if abs(p - 1) < ROUNDING:
                return 1.0
            if not 0 <= p <= 1:
                raise Fault(f"the probability {p}; wanted 0 to 1", mark)
            return p

        return check

    def priority(self, node: RuleNode) -> Callable[[Locals], int] | None:
        if node.priority is None:
            return None
        run, check = self.expression(node.priority).run, self.checked_priority(self.mark(node.priority.at))
        return lambda local: check(run(local))

    def checked_priority(self, mark: Mark) -> Callable[[Value], int]:
        def check(value: Value) -> int:
            if not isinstance(value, int) or value < 0:
                raise Fault(f"the priority {value}; wanted a whole number, 0 or more", mark)
            return value

        return check

    def extra(self, node: RuleNode) -> Callable[[Locals], dict[str, Value]] | None:
        return self.feature_values(node.features) if node.features else None

    def feature_values(self, features: tuple[Feature, ...]) -> Callable[[Locals], dict[str, Value]]:
        for feature in features:
            if feature.type:
                raise Fault(
                    f"the feature {feature.name.name}({feature.type}) is for patterns only", self.mark(feature.at)
                )
        pairs = [(self.key(f.name)[0], self.feature_value(f), self.mark(f.at)) for f in features]

        def values(local: Locals) -> dict[str, Value]:
            found: dict[str, Value] = {}
            for key, run, mark in pairs:
                name, value = key(local), run(local)
                if found.setdefault(name, value) != value:
                    raise Fault(f"the feature {name} has two values: {found[name]} and {value}", mark)
            return found

        return values

    def feature_value(self, feature: Feature) -> Thunk:
        if isinstance(feature.value, Label):
            return self.label(feature.value)[0]
        one: Value = 1
        return self.expression(feature.value).run if feature.value is not None else lambda _: one

    # Spiking neural P systems.

    def spiking_rule(self, node: RuleNode) -> Run:
        """`[a*3 --> a]'2 "a(aa)*" :: d`. Without an expression, the neuron has as many spikes as the rule consumes."""
        mark, where = self.mark(node.at), self.source.where(node.at)
        if node.guard is not None or node.priority is not None or node.features or node.any_probability:
            raise Fault("a rule of a spiking system has an expression and a delay, nothing else", mark)
        plain = node.evolution and not node.left.inner and not node.right[0].inner
        if not plain or node.left.charge.value or any(o.dissolve for o in node.right[0].objects) or node.double:
            raise Fault('a rule of a spiking system reads [a*c --> a*p]\'label "expression" :: delay', mark)
        consumed, produced = self.bag(node.left.objects)[0], self.bag(node.right[0].objects)[0]
        label = self.labels(node.left.labels or ())[0]
        delay = self.expression(node.probability).run if node.probability is not None else lambda _: 0
        languages: dict[str, Guard] = {}

        def guard(spike: str, count: int) -> Guard:
            if node.regular is None:
                return Guard("eq", spike, count)
            if spike not in languages:
                try:
                    languages[spike] = unary_language(node.regular.value, spike)
                except BadExpression as problem:
                    raise Fault(str(problem), self_mark) from None
            return languages[spike]

        self_mark = self.mark(node.regular.at) if node.regular is not None else mark

        def run(local: Locals) -> None:
            taken, given = consumed(local), produced(local)
            if len(taken) != 1 or (given and (len(given) != 1 or given[0][0] != taken[0][0])):
                raise Fault("a rule of a spiking system consumes spikes, one kind of object, and emits the same", mark)
            try:
                steps = to_whole(delay(local))
            except Undefined as problem:
                raise Fault(str(problem), mark) from None
            if not 0 <= steps < 1 << 31:
                raise Fault(f"the delay {steps}; wanted 0 or more steps", mark)
            send = (Send(Target.SYNAPSES, given),) if given else ()
            name = ",".join(label(local))
            self.room(mark)
            rule = Rule(name, taken, send=send, guard=guard(*taken[0]), delay=steps, where=where)
            if self.seen.setdefault(rule, len(self.rules)) == len(self.rules):
                self.samples.append(len(self.rules))
                self.rules.append(rule)
                self.groups.append(0)

        return run
