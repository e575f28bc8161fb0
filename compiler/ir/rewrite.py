"""Named rewrite rules and the one engine that applies them, bottom up, to a fixed point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from echoc.errors import IRError

from .membrane import Rule
from .node import Node, rebuild


@dataclass(frozen=True)
class Rewrite:
    """One identity: `apply` returns the replacement of a node whose op is in `ops`, or None where it does not match.

    `example` builds an instance of the left side, on which the identity is tested numerically.
    """

    name: str
    ops: frozenset[str]
    apply: Callable[[Node], Node | None]
    example: Callable[[], Node]
    doc: str


@dataclass
class Rules:
    """A set of rewrites, indexed by op, with counts of their uses."""

    rewrites: tuple[Rewrite, ...]
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._by_op: dict[str, list[Rewrite]] = {}
        for rewrite in self.rewrites:
            for op in rewrite.ops:
                self._by_op.setdefault(op, []).append(rewrite)

    def step(self, node: Node) -> tuple[Rewrite, Node] | None:
        for rewrite in self._by_op.get(node.op, ()):
            found = rewrite.apply(node)
            if found is not None and found is not node:
                if found.type != node.type:
                    raise IRError(f"rewrite {rewrite.name} changed {node.type} to {found.type}")
                return rewrite, found
        return None


LIMIT = 200


class _Rewriter:
    def __init__(self, rules: Rules) -> None:
        self.rules, self.done = rules, dict[Node, Node]()

    def visit(self, roots: Iterable[Node]) -> None:
        """Rewrite everything below `roots`; replacements are rewritten in turn until nothing matches."""
        stack: list[tuple[Node, int]] = [(r, 0) for r in roots]
        path: dict[Node, tuple[Node, str]] = {}
        while stack:
            node, count = stack.pop()
            if node in self.done:
                continue
            missing = [i for i in node.inputs if i not in self.done]
            if missing:
                stack.append((node, count))
                stack += [(i, 0) for i in missing]
                continue
            if node in path:
                target, name = path[node]
                if target not in self.done:  # the replacement needs the node itself
                    raise IRError(f"rewrite rules do not settle on {node}: it comes back after {name}")
                self.done[node] = self.done[target]
                continue
            built = rebuild(node, tuple(self.done[i] for i in node.inputs))
            if built is not node and built in self.done:
                self.done[node] = self.done[built]
                continue
            found = self.rules.step(built)
            if found is None:
                self.done[node] = self.done[built] = built
                continue
            rewrite, replacement = found
            self.rules.counts[rewrite.name] += 1
            if count >= LIMIT:
                raise IRError(f"rewrite rules do not settle on {node}: the last of {LIMIT} was {rewrite.name}")
            path[node] = (replacement, rewrite.name)
            stack += [(node, count), (replacement, count + 1)]


def rewrite_rule(rule: Rule, rules: Rules) -> Rule:
    """The rule with every node rewritten to a fixed point. Raises IRError naming the rewrite that loops."""
    rewriter = _Rewriter(rules)
    rewriter.visit(rule.roots)
    return rule.map(lambda n: rewriter.done[n])
