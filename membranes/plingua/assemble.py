"""Structure, multisets, features and the finished `System`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from echoc.compiler.ir.algebra import Bag, Bound, Cell, Group, Inner, Mode, Priority, Rule, Send, System, Target
from echoc.compiler.ir.algebra import Where as Place
from echoc.membranes.blocks import Blocks, blocks_of, completed

from .build import Labels, RuleBuilder
from .diagnostics import Fault, Limits, Mark
from .patterns import Matcher
from .syntax import Arcs, Features, Ms, Mu, Structure
from .thunks import Locals, Run
from .values import HIGH, Value


@dataclass(slots=True)
class Node:
    """A membrane of the start configuration while it is built."""

    labels: Labels
    charge: int
    parent: int | None
    where: Place
    environment: str = ""


class Assembler(RuleBuilder):
    """Compiles `@mu`, `@ms`, `@marcs` and features, and makes the system."""

    def __init__(self, limits: Limits, parameters: Mapping[str, float], seed: int, substochastic: bool = False) -> None:
        super().__init__(limits, parameters, seed)
        self.nodes: list[Node] = []
        self.known = 0  # nodes that the two below know
        self.by_label: dict[Labels, list[int]] = {}
        self.inside: dict[tuple[str, str], int] = {}
        self.structured: Mu | None = None
        self.contents: dict[Labels, dict[str, int]] = {}
        self.content_marks: dict[Labels, Mark] = {}
        self.alphabets: tuple[dict[str, None], dict[str, None]] = ({}, {})
        self.replaced: dict[Labels, dict[str, None]] = {}
        self.arc_labels: list[tuple[Labels, Labels, Mark]] = []
        self.arcs_from: Arcs | None = None
        self.system_features: dict[str, Value] = {}
        self.outputs: set[str] = set()
        self.has_exchange = False
        self.around = self.label_around
        self.substochastic = substochastic
        self.blocks: Blocks | None = None

    def select(self, name: str, matcher: Matcher | None, population: bool, exchange: bool, charged: bool) -> None:
        """Fixes the model before rules are compiled."""
        self.model, self.matcher, self.has_exchange, self.charged = name, matcher, exchange, charged
        mode = str(self.system_features.get("mode", "dcba" if population else "parallel"))
        modes = {m.value: m for m in Mode}
        if mode not in modes or modes[mode] is Mode.ORDERED:
            wanted = ", ".join(m for m in modes if m != Mode.ORDERED)
            raise Fault(f'the feature @mode = "{mode}"; wanted one of {wanted}', self.mark(0))
        self.mode = modes[mode]
        self.spiking = self.switched("spiking")
        if self.spiking and self.switched("mseq"):
            self.mode = Mode.SEQUENTIAL
        if self.spiking and self.switched("masynch"):
            raise Fault("asynchronous spiking systems (@masynch) cannot be run; wanted synchronous ones", self.mark(0))

    def switched(self, feature: str) -> bool:
        return str(self.system_features.get(feature, 0)) not in ("", "0", "false")

    # Statements.

    def features(self, node: Features) -> Run:
        values, mark = self.feature_values(node.features), self.mark(node.at)

        def features(local: Locals) -> None:
            for name, value in values(local).items():
                if self.system_features.setdefault(name, value) != value:
                    raise Fault(f"the feature {name} has two values: {self.system_features[name]} and {value}", mark)
            if self.spiking and "mout" in self.system_features:
                self.outputs.add(str(self.system_features["mout"]))

        return features

    def grow(self, node: Structure, parent: int | None, local: Locals) -> None:
        """Adds a membrane and everything in it, parents first."""
        queue = [(node, parent)]
        while queue:
            item, above = queue.pop()
            if len(self.nodes) >= self.limits.cells:
                raise Fault(f"more than {self.limits.cells} membranes (limit cells)", self.mark(item.at))
            labels = self.labels(item.labels)[0](local)
            self.nodes.append(Node(labels, item.charge, above, self.source.where(item.at)))
            queue.extend((child, len(self.nodes) - 1) for child in reversed(item.children))

    def mu(self, node: Mu) -> Run:
        mark, source = self.mark(node.at), self.source
        target = self.labels(node.target)[0] if node.target is not None else None

        def mu(local: Locals) -> None:
            outer, self.source = self.source, source
            try:
                if target is None:
                    self.first_structure(node, local, mark)
                    return
                labels = target(local)
                found = self.holding(labels, mark)
                if not found:
                    raise Fault(f"no membrane has the label {','.join(labels)}", mark)
                self.spend(len(found), mark)
                for i in found:
                    self.grow(node.roots[0], i, local)
            finally:
                self.source = outer

        return mu

    def first_structure(self, node: Mu, local: Locals, mark: Mark) -> None:
        if self.structured is not None and not node.extend and (self.structured is not node or not self.spiking):
            raise Fault("the initial membrane structure is defined twice; wanted one @mu = ...", mark)
        if node.extend and not self.spiking:
            raise Fault("wanted @mu(label) += ...: the membrane to extend", mark)
        if len(node.roots) > 1 and not self.spiking:
            raise Fault("more than one outermost membrane; wanted one that holds the others", mark)
        self.structured = node
        for root in node.roots:
            self.grow(root, None, local)

    def holding(self, labels: Labels, mark: Mark) -> list[int]:
        """The membranes with these labels."""
        self.indexed()
        if self.mode is not Mode.DCBA:
            return list(self.by_label.get(labels, ()))
        candidates = self.by_label.get(labels[:1], [])
        self.spend(len(candidates), mark)
        return [i for i in candidates if self.labelled(i, self.nodes[i], labels)]

    def indexed(self) -> None:
        """Brings the membranes by label, and the labels of those around others, up to date."""
        for i in range(self.known, len(self.nodes)):
            node = self.nodes[i]
            labels = node.labels[:1] if self.mode is Mode.DCBA else node.labels
            self.by_label.setdefault(labels, []).append(i)
            if node.parent is not None:
                self.inside.setdefault((",".join(node.labels), ",".join(self.nodes[node.parent].labels)), i)
        self.known = len(self.nodes)

    def labelled(self, index: int, node: Node, labels: Labels) -> bool:
        if node.labels == labels:
            return True
        if self.mode is not Mode.DCBA or node.labels[0] != labels[0]:
            return False
        return len(labels) == 1 or (len(labels) == 2 and self.environment(index) == labels[1])

    def environment(self, index: int) -> str:
        """The second label of the membrane or of the nearest one around it that has two."""
        path, at = [], index
        while True:
            node = self.nodes[at]
            path.append(node)
            found = node.environment or (node.labels[1] if len(node.labels) > 1 else "")
            if found or node.parent is None:
                break
            at = node.parent
        for node in path:
            node.environment = found
        return found

    def ms(self, node: Ms) -> Run:
        labels, bag = self.labels(node.labels)[0], self.bag(node.objects)[0]
        mark, extend = self.mark(node.at), node.extend
        if node.alphabet:
            letters = self.alphabets[node.alphabet - 1]
            return lambda local: letters.update(dict.fromkeys(name for name, _ in bag(local)))

        def ms(local: Locals) -> None:
            key, objects = labels(local), bag(local)
            self.content_marks.setdefault(key, mark)
            counts = self.contents.setdefault(key, {})
            if not extend and counts:
                self.replaced.setdefault(key, {}).update(dict.fromkeys(counts))
                counts.clear()
            for name, count in objects:
                counts[name] = counts.get(name, 0) + count
                if counts[name] > HIGH:
                    raise Fault(f"the multiplicity of {name} does not fit in 64 bits", mark)

        return ms

    def arcs(self, node: Arcs) -> Run:
        pairs = [(self.label(a)[0], self.label(b)[0]) for a, b in node.pairs]
        mark = self.mark(node.at)

        def arcs(local: Locals) -> None:
            if not self.spiking:
                raise Fault("synapses @marcs are for spiking models", mark)
            if self.arcs_from is not None and not node.extend and self.arcs_from is not node:
                raise Fault("the synapses are defined twice; wanted @marcs += ...", mark)
            self.arcs_from = node
            self.arc_labels.extend(((a(local),), (b(local),), mark) for a, b in pairs)

        return arcs

    def label_around(self, first: str, second: str) -> str | None:
        """Of two labels, that of the membrane directly around one with the other label; None for siblings."""
        self.indexed()
        pairs = [pair for pair in ((first, second), (second, first)) if pair in self.inside]
        return min(pairs, key=lambda pair: self.inside[pair])[1] if pairs else None

    # The finished system.

    def finish(self, name: str) -> System:
        if not self.nodes:
            raise Fault(
                "no initial membrane structure: wanted @mu = ... in main or a module that it ctotals", self.mark(0)
            )
        self.preorder()
        rules, groups = self.rules, self.groups
        labels = self.cell_labels(rules)
        if self.mode is Mode.DCBA:
            self.blocks = blocks_of(rules)
            if self.repeated:
                rules, self.blocks = self.merged(rules, self.blocks)
            if self.spreads(labels):
                rules, groups = self.spread(rules, groups, labels)
                self.blocks, self.samples = blocks_of(rules), list(range(len(rules)))
        cells = self.cells(labels)
        if self.patterns:
            rules = self.separated(rules)
        links = self.links()
        if self.spiking:
            rules = [self.to_environment(r) for r in rules]
        unbounded, cells = self.unlimited(cells)
        features = {k: str(v) for k, v in self.system_features.items()} | self.notes
        priority = str(self.system_features.get("priority", Priority.STRONG.value))
        if priority not in ("strong", "weak"):
            raise Fault(f'the feature @priority = "{priority}"; wanted "strong" or "weak"', self.mark(0))
        system = System(
            self.model,
            cells,
            tuple(rules),
            self.grouped(groups),
            self.mode,
            Priority(priority),
            links,
            unbounded,
            name=name,
            features=features,
        )
        if self.substochastic and self.blocks is not None:
            system, self.blocks = completed(system, self.blocks)
        return system

    def merged(self, rules: list[Rule], blocks: Blocks) -> tuple[list[Rule], Blocks]:
        """Rules of population dynamics that are written more than once: their probabilities are parts of one, where
        the block they are in needs them all to reach 1; otherwise the first one counts.
        """
        totals = list(blocks.totals)
        for i, more in self.repeated.items():
            totals[blocks.numbers[i]] += sum(more)
        made, sums = list(rules), list(blocks.totals)
        for i, more in self.repeated.items():
            number, first = blocks.numbers[i], rules[i].probability
            if first is not None and abs(totals[number] - 1) < abs(blocks.totals[number] - 1):
                made[i] = replace(rules[i], probability=min(1.0, first + sum(more)))
                sums[number] += (made[i].probability or 0.0) - first
        return made, replace(blocks, totals=sums)

    def preorder(self) -> None:
        """Sorts the membranes as a walk from the outermost one meets them, children in the order they were added."""
        children: list[list[int]] = [[] for _ in self.nodes]
        roots: list[int] = []
        for i, node in enumerate(self.nodes):
            (roots if node.parent is None else children[node.parent]).append(i)
        order, queue = [], list(reversed(roots))
        while queue:
            i = queue.pop()
            order.append(i)
            queue.extend(reversed(children[i]))
        place = {old: new for new, old in enumerate(order)}
        self.nodes = [self.nodes[i] for i in order]
        self.known = 0
        self.by_label.clear()
        for node in self.nodes:
            if node.parent is not None:
                node.parent = place[node.parent]

    def cell_labels(self, rules: list[Rule]) -> list[str]:
        """The label of every cell. In population dynamics a rule may name an environment behind the label; cells with
        such a label get one of their own in that environment.
        """
        if self.mode is not Mode.DCBA:
            return [",".join(n.labels) for n in self.nodes]
        special = {i.label for r in rules for i in r.inner if "," in i.label}
        special |= {r.label for r in rules if r.label is not None and "," in r.label}
        found = []
        for i, node in enumerate(self.nodes):
            both = f"{node.labels[0]},{self.environment(i)}"
            found.append(both if special and both in special else node.labels[0])
        return found

    def spreads(self, labels: list[str]) -> bool:
        return any(v != [k] for k, v in _variants(labels).items())

    def spread(self, rules: list[Rule], groups: list[int], labels: list[str]) -> tuple[list[Rule], list[int]]:
        """Repeats the rules of a label for the cells of that label which got a label of their own."""
        variants = _variants(labels)
        made: list[Rule] = []
        places: list[int] = []
        for rule, group in zip(rules, groups, strict=True):
            if rule.label is not None or len(rule.inner) != 1 or "," in rule.inner[0].label:
                made.append(rule)
                places.append(group)
                continue
            inner = rule.inner[0]
            for label in variants.get(inner.label, [inner.label]):
                made.append(replace(rule, inner=(_renamed(inner, label),)) if label != inner.label else rule)
                places.append(group)
        first = {r: i for i, r in reversed(list(enumerate(made)))}
        kept = [i for i, r in enumerate(made) if first[r] == i]
        made, places = [made[i] for i in kept], [places[i] for i in kept]
        return made, places

    def cells(self, labels: list[str]) -> tuple[Cell, ...]:
        bags: list[dict[str, int]] = [{} for _ in self.nodes]
        for key, counts in self.contents.items():
            found = self.holding(key, self.content_marks[key])
            if not found and counts:
                raise Fault(f"@ms of the label {','.join(key)}: no membrane has it", self.content_marks[key])
            self.spend(len(found) * (1 + len(counts)), self.content_marks[key])
            for i in found:
                for name, count in counts.items():
                    bags[i][name] = bags[i].get(name, 0) + count
        cells = []
        for node, label, counts in zip(self.nodes, labels, bags, strict=True):
            objects: Bag = tuple(sorted(counts.items()))
            second = node.labels[1] if self.mode is Mode.DCBA and len(node.labels) > 1 else ""
            cells.append(Cell(label, node.parent, objects, node.charge, second, node.where))
        return tuple(cells)

    def unlimited(self, cells: tuple[Cell, ...]) -> tuple[frozenset[str], tuple[Cell, ...]]:
        """In models with exchanges <--> the outermost membrane is the environment: its objects never run out."""
        supply = str(self.system_features.get("environment", "unbounded" if self.has_exchange else "finite"))
        if supply not in ("unbounded", "finite"):
            raise Fault(f'the feature @environment = "{supply}"; wanted "unbounded" or "finite"', self.mark(0))
        if supply == "finite" or self.spiking:
            return frozenset(), cells
        return frozenset(o for o, _ in cells[0].objects), (replace(cells[0], objects=()), *cells[1:])

    def separated(self, rules: list[Rule]) -> list[Rule]:
        """Gives every separation rule the two alphabets: what was in @ms(1) and @ms(2) before `=` replaced it, or, in
        version 4, @ms1 and @ms2.
        """
        first = self.alphabets[0] or self.replaced.get(("1",), {})
        second = self.alphabets[1] or self.replaced.get(("2",), {})
        both = sorted(set(first) & set(second))
        if not first or not second or both:
            problem = f"{both[0]} is in both" if both else "one of them is missing"
            raise Fault(
                f"separation needs two alphabets: {problem}; wanted @ms(1) += ... and @ms(2) += ... with the objects "
                "of the first and second part, before @ms(1) = ... and @ms(2) = ... replace them",
                self.mark(0),
            )
        every = {o for counts in self.contents.values() for o in counts} | set(first)
        for rule in rules:
            every.update(
                o for inner in rule.inner for b in (inner.consume, *(r.produce for r in inner.results)) for o, _ in b
            )
            every.update(o for o, _ in (*rule.consume, *rule.produce))
        keeps = (frozenset(every - set(second)), frozenset(second))
        separations = set(self.patterns)
        made = []
        for rule in rules:
            divides = rule.label is None and len(rule.inner) == 1 and len(rule.inner[0].results) == 2
            if divides and separations:
                inner = rule.inner[0]
                results = tuple(replace(r, keeps=k) for r, k in zip(inner.results, keeps, strict=True))
                rule = replace(rule, inner=(replace(inner, results=results),))
            made.append(rule)
        return made

    def links(self) -> tuple[tuple[int, int], ...]:
        places: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            places.setdefault(",".join(node.labels), []).append(i)
        found: dict[tuple[int, int], None] = {}
        for (a,), (b,), mark in self.arc_labels:
            for label in (a, b):
                if label not in places:
                    raise Fault(f"a synapse of the neuron {label}; no neuron has this label", mark)
            self.spend(len(places[a]) * len(places[b]), mark)
            found.update(((i, j), None) for i in places[a] for j in places[b])
        return tuple(found)

    def to_environment(self, rule: Rule) -> Rule:
        """The output neuron spikes into the environment as well."""
        if rule.label not in self.outputs or not rule.send:
            return rule
        return replace(rule, send=(*rule.send, Send(Target.OUT, rule.send[0].objects)))

    def grouped(self, groups: list[int]) -> tuple[Group, ...]:
        members: dict[int, list[int]] = {}
        for rule, group in enumerate(groups):
            members.setdefault(group, []).append(rule)
        bounds = {g.group: g.bound for g in self.matcher.groups} if self.matcher is not None else {}
        made = []
        for group, rules in sorted(members.items()):
            bound = bounds.get(group)
            if bound is None:
                made.append(Group(tuple(rules)))
            else:
                made.append(Group(tuple(rules), Bound.AT_MOST, bound))
        return tuple(made)


def _variants(labels: list[str]) -> dict[str, list[str]]:
    """The labels, by their part before the comma."""
    variants: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        variants.setdefault(label.split(",")[0], []).append(label)
    return variants


def _renamed(inner: Inner, label: str) -> Inner:
    """The same in a cell of another label."""
    results = tuple(replace(r, label=label) if r.label == inner.label else r for r in inner.results)
    return replace(inner, label=label, results=results)
