"""The program: a tree of membranes. A membrane has state, rules, ports and children; a rule is a dataflow graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from echoc.errors import IRError

from .node import Node, rebuild, topological
from .types import StateType, TensorType


@dataclass(frozen=True)
class State:
    """Named state of one kind of instance: pages of per-position entries, or one value."""

    name: str
    type: StateType


@dataclass(frozen=True)
class Port:
    """A named tensor that crosses the membrane's boundary; direction is `in` or `out`."""

    name: str
    direction: str
    type: TensorType


@dataclass(frozen=True)
class Rule:
    """One rule: `outputs` are written to out ports, `next_states` give each state's version after the rule."""

    name: str
    outputs: tuple[tuple[str, Node], ...]
    next_states: tuple[tuple[str, Node], ...] = ()

    @property
    def roots(self) -> tuple[Node, ...]:
        return tuple(n for _, n in self.outputs) + tuple(n for _, n in self.next_states)

    @property
    def order(self) -> list[Node]:
        return topological(self.roots)

    def map(self, transform: Callable[[Node], Node]) -> Rule:
        """The rule with `transform` applied to its roots."""
        return replace(
            self,
            outputs=tuple((k, transform(n)) for k, n in self.outputs),
            next_states=tuple((k, transform(n)) for k, n in self.next_states),
        )


@dataclass(frozen=True)
class Membrane:
    """State, ports, rules and children; the root of a program is its skin."""

    name: str
    states: tuple[State, ...] = ()
    ports: tuple[Port, ...] = ()
    rules: tuple[Rule, ...] = ()
    children: tuple[Membrane, ...] = ()

    def rule(self, name: str) -> Rule:
        for rule in self.rules:
            if rule.name == name:
                return rule
        raise IRError(f"membrane {self.name} has no rule {name!r}; it has {[r.name for r in self.rules]}")

    def walk(self) -> list[Membrane]:
        return [self] + [m for child in self.children for m in child.walk()]


@dataclass(frozen=True)
class Program:
    """A tree of membranes and the bounds of the symbols their shapes use (inclusive)."""

    skin: Membrane
    symbols: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def map_membranes(self, transform: Callable[[Membrane], Membrane]) -> Program:
        def visit(membrane: Membrane) -> Membrane:
            return transform(replace(membrane, children=tuple(visit(c) for c in membrane.children)))

        return replace(self, skin=visit(self.skin))

    def map_rules(self, transform: Callable[[Rule], Rule]) -> Program:
        """The program with `transform` applied to every rule of every membrane."""
        return self.map_membranes(lambda m: replace(m, rules=tuple(transform(r) for r in m.rules)))


def substitute(rule: Rule, mapping: Mapping[Node, Node]) -> Rule:
    """The rule with nodes replaced; replacements are not visited again."""
    done: dict[Node, Node] = dict(mapping)
    for node in rule.order:
        if node not in done:
            done[node] = rebuild(node, tuple(done[i] for i in node.inputs))
    return rule.map(lambda n: done[n])
