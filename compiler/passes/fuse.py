"""Fusion: every node of a rule goes into a group around a root, and a group becomes one kernel.

Families: `gemm` (a contraction with a weight, its pointwise epilogue, and sister contractions of the same input that
the epilogue combines), `experts` (the same with the weight chosen per row), `attend`, `append`, and `rows`: everything
else, as loops over the leading axis in which each row is finished before the next. Reshapes are never computed: they
are views of the buffer below them.

A node's stage is the number of groups on the longest path to it; rows of one stage and one leading axis share a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from echoc.compiler.ir import Node, Rule
from echoc.compiler.ir.node import topological
from echoc.compiler.ir.ops import POINTWISE
from echoc.compiler.ir.types import Dim, StateType, dim_div, dim_mul, dim_product

LEAF_OPS = frozenset({"port", "weight", "const", "iota", "state", "arg", "read"})
IN_MEMORY = frozenset({"port", "weight", "read"})  # leaves whose elements lie somewhere before the step begins
HEAVY = frozenset({"gemm", "experts", "attend", "append"})
MAX_SISTERS = 4


@dataclass(frozen=True)
class Matmul:
    """A contraction of rows [rows, K] with a weight [N, K] (or [K, N] when transposed; [E, N, K] with expert ids)."""

    node: Node
    x: Node
    weight: Node
    rows: Dim
    n: int
    k: int
    transposed: bool
    ids: Node | None = None


@dataclass
class Group:
    """One kernel's worth of nodes. `outputs` are the nodes it writes to memory, `domain` the rows it loops over."""

    family: str
    stage: int
    nodes: list[Node]
    domain: Dim
    outputs: list[Node] = field(default_factory=list)
    matmuls: list[Matmul] = field(default_factory=list)


def root(node: Node) -> Node:
    """The node whose buffer holds this node's elements: reshapes are views."""
    while node.op == "reshape":
        node = node.inputs[0]
    return node


def works_whole(node: Node) -> bool:
    """Whether a node is a single row, all of it: it works along its leading axis and cannot be cut there."""
    if node.op in ("cumsum", "topk", "sort"):
        return bool(node["axis"] == 0)
    return node.op == "scatter" and (node["axis"] == 0 or node.inputs[1].shape[0] != node.shape[0])


def domain_of(node: Node) -> Dim:
    return node.shape[0] if node.tensor.rank and not works_whole(node) else 1


def row_local(node: Node, operand: Node) -> bool:
    """Whether row r of `node` needs only row r of `operand`, both cut along the leading axis."""
    if works_whole(node):
        return False
    if node.tensor.rank == 0 or operand.tensor.rank == 0:
        return node.tensor.rank == operand.tensor.rank
    if operand.shape[0] != node.shape[0]:
        return False
    if node.op in POINTWISE or node.op in ("broadcast",):
        return operand.tensor.rank == node.tensor.rank
    if node.op in ("sum", "max", "min"):
        return 0 not in node["axes"]
    if node.op in ("argmax", "cumsum", "topk", "sort", "gather", "concat"):
        return bool(node["axis"] != 0)
    if node.op == "scatter":
        return True
    if node.op == "transpose":
        return bool(node["perm"][0] == 0)
    if node.op == "slice":
        return bool(node["starts"][0] == 0 and node["stops"][0] == operand.shape[0] and node["steps"][0] == 1)
    if node.op == "pad":
        return bool(node["low"][0] == 0 and node["high"][0] == 0)
    if node.op == "take":
        return (operand is node.inputs[1]) == (node["axis"] == 0) and node.inputs[0] is not node.inputs[1]
    if node.op == "contract":
        left, _, out = node["spec"].partition("->")
        return all(n[:1] == out[:1] for n, i in zip(left.split(","), node.inputs, strict=True) if i is operand)
    return False


def _view_keeps_rows(operand: Node) -> bool:
    """Whether a chain of reshapes keeps the leading axis, so that rows of the view are rows of the buffer."""
    lead = domain_of(operand)
    while operand.op == "reshape":
        operand = operand.inputs[0]
        if domain_of(operand) != lead:
            return False
    return True


def match_matmul(node: Node) -> Matmul | None:
    """The contraction as a matmul with a weight, where its indices allow it."""
    if node.op != "contract":
        return None
    left, _, out = node["spec"].partition("->")
    names = left.split(",")
    for x_at in (0, 1):
        x, w = node.inputs[x_at], node.inputs[1 - x_at]
        xs, ws = names[x_at], names[1 - x_at]
        if w.tensor.dtype != "f32":
            continue
        ids: Node | None = None
        weight = w
        if w.op == "take" and w["axis"] == 0 and w.inputs[0].op == "weight" and w.inputs[0].tensor.rank == 3:
            ids, weight = w.inputs[1], w.inputs[0]
            if ids.tensor.dtype != "i32":
                continue  # the kernels read 32-bit ids; NarrowIds makes them where they are wider
            lead = ws[: len(ids.shape)]
            if xs[: len(lead)] != lead or out[: len(lead)] != lead or len(xs) != len(lead) + 1:
                continue
            ws = ws[len(lead) :]
        if weight.op != "weight" or len(ws) != 2:
            continue
        contracted = [c for c in ws if c not in out]
        free = [c for c in ws if c in out]
        if len(contracted) != 1 or len(free) != 1 or xs[-1:] != contracted[0] or out != xs[:-1] + free[0]:
            continue
        sizes = dict(zip(ws, weight.shape[-2:], strict=True))
        n, k = sizes[free[0]], sizes[contracted[0]]
        assert isinstance(n, int) and isinstance(k, int)
        return Matmul(node, x, weight, dim_product(x.shape[:-1]), n, k, ws[0] == contracted[0], ids)
    return None


class Fuser:
    """Computes the groups of one rule, in execution order."""

    def __init__(self, rule: Rule, last: frozenset[Node] = frozenset()) -> None:
        """`last` are nodes that must wait for all others: they overwrite what those read."""
        self.rule = rule
        self.bodies = _body_nodes(rule)
        self.order = [n for n in rule.order if n not in self.bodies]
        self.family: dict[Node, str] = {}
        self.matmuls: dict[Node, Matmul] = {}
        self.stage: dict[Node, int] = {}
        self.users: dict[Node, list[Node]] = {n: [] for n in self.order}
        self.final = {root(n) for n in rule.roots}
        self.classify()
        end = max(self.stage.values(), default=0) + 1
        self.stage.update(dict.fromkeys(last, end))

    def inputs(self, node: Node) -> list[Node]:
        """The values a node reads; a matmul reads its rows and weight, not the take that chooses the expert."""
        if node in self.matmuls:
            m = self.matmuls[node]
            return [m.x, m.weight] + ([m.ids] if m.ids is not None else [])
        return [i for i in node.inputs if i not in self.bodies] + self.body_reads(node)

    def body_reads(self, node: Node) -> list[Node]:
        inner = [i for i in node.inputs if i in self.bodies]
        return [n for n in topological(inner) if n.op == "weight"] if inner else []

    def classify(self) -> None:
        for node in self.order:
            if node.op in ("append", "attend"):
                self.family[node] = node.op
            elif (found := match_matmul(node)) is not None:
                self.matmuls[node] = found
                self.family[node] = "experts" if found.ids is not None else "gemm"
        needed = self.needed()
        self.order = [n for n in self.order if n in needed]
        for node in self.order:
            if node.op in LEAF_OPS or node.op == "reshape":
                continue
            self.family.setdefault(node, "rows")
            self.stage[node] = self.stage_of(node)
            for operand in self.inputs(node):
                self.users.setdefault(root(operand), []).append(node)

    def needed(self) -> set[Node]:
        """Nodes that some root reads once matmuls have swallowed their weight views."""
        out: set[Node] = set()
        stack = list(self.rule.roots)
        while stack:
            node = stack.pop()
            if node not in out:
                out.add(node)
                stack += self.inputs(node)
        return out

    def stage_of(self, node: Node) -> int:
        heavy = self.family[node] in HEAVY
        stage = 0
        for operand in self.inputs(node):
            source = root(operand)
            if source not in self.stage:
                continue
            before = self.stage[source]
            if self.family[source] in HEAVY or (not heavy and not self.same_kernel(node, operand)):
                before += 1
            stage = max(stage, before)
        return stage

    def same_kernel(self, node: Node, operand: Node) -> bool:
        return domain_of(node) == domain_of(root(operand)) and row_local(node, operand) and _view_keeps_rows(operand)

    def groups(self) -> list[Group]:
        epilogues = _Epilogues(self)
        groups: list[Group] = []
        placed: set[Node] = set()
        for cluster in epilogues.clusters():
            first = cluster[0].node
            nodes = [m.node for m in cluster] + epilogues.tail(cluster)
            placed.update(nodes)
            groups.append(Group(self.family[first], self.stage[first], nodes, cluster[0].rows, matmuls=cluster))
        rows: dict[tuple[int, Dim], Group] = {}
        for node in self.order:
            if node in placed or node not in self.stage:
                continue
            if self.family[node] in ("attend", "append"):
                domain = self.inputs(node)[0 if node.op == "attend" else 1].shape[0]
                groups.append(Group(node.op, self.stage[node], [node], domain))
                continue
            key = (self.stage[node], domain_of(node))
            if key not in rows:
                rows[key] = Group("rows", self.stage[node], [], key[1])
                groups.append(rows[key])
            rows[key].nodes.append(node)
        self.find_outputs(groups)
        rank = {"rows": 0, "append": 1, "gemm": 2, "experts": 2, "attend": 3}
        place = {n: i for i, n in enumerate(self.order)}
        return sorted(groups, key=lambda g: (g.stage, rank[g.family], min(place[n] for n in g.nodes)))

    def find_outputs(self, groups: list[Group]) -> None:
        owner = {n: g for g in groups for n in g.nodes}
        for group in groups:
            for node in group.nodes:
                outside = any(owner.get(u) is not group for u in self.users.get(node, ()))
                if outside or node in self.final:
                    group.outputs.append(node)


class _Epilogues:
    """Which pointwise nodes ride on which matmuls."""

    def __init__(self, fuser: Fuser) -> None:
        self.fuser = fuser
        self.parent: dict[Node, Node] = {n: n for n in fuser.matmuls}
        self.rides: dict[Node, Node] = {}
        for node in fuser.order:
            if fuser.family.get(node) == "rows" and node.op in POINTWISE:
                self.try_ride(node)

    def find(self, node: Node) -> Node:
        while self.parent[node] is not node:
            node = self.parent[node]
        return node

    def members(self, head: Node) -> list[Node]:
        return [n for n in self.parent if self.find(n) is head]

    def compatible(self, a: Node, c: Node) -> bool:
        p, q = self.fuser.matmuls[a], self.fuser.matmuls[c]
        same = root(p.x) is root(q.x) and (p.n, p.k, p.rows, p.transposed) == (q.n, q.k, q.rows, q.transposed)
        ids = (p.ids is None) == (q.ids is None) and (p.ids is None or root(p.ids) is root(q.ids))  # type: ignore[arg-type]
        return same and ids and p.weight.tensor.rank == q.weight.tensor.rank

    def try_ride(self, node: Node) -> None:
        """Let the node ride when its operands are results of one cluster of matmuls or ready before it starts."""
        clusters: dict[Node, Node] = {}
        for operand in node.inputs:
            source = root(operand)
            if source in self.parent or source in self.rides:
                clusters[operand] = self.find(source if source in self.parent else self.rides[source])
        if not clusters:
            return
        stage = max(self.fuser.stage[h] for h in clusters.values())
        heads = [h for h in clusters.values() if self.fuser.stage[h] == stage]
        ready = [root(i) for i in node.inputs if i not in clusters or self.fuser.stage[clusters[i]] != stage]
        if any(i.tensor.size != node.tensor.size for i, h in clusters.items() if h in heads):
            return
        first = self.fuser.matmuls[heads[0]]
        if dim_mul(first.rows, first.n) != node.tensor.size or dim_div(node.tensor.size, first.n) != first.rows:
            return
        if next((d for d in reversed(node.shape) if d != 1), 1) != first.n or first.n == 1:
            return  # the row is laid out in finer axes: its indices would need divisions
        for source in ready:
            if source in self.fuser.stage:
                late = self.fuser.stage[source] + (1 if self.fuser.family[source] in HEAVY else 0)
                if late > stage:
                    return
        distinct = list(dict.fromkeys(heads))
        if any(not self.compatible(distinct[0], other) for other in distinct[1:]):
            return
        if sum(len(self.members(h)) for h in distinct) > MAX_SISTERS:
            return
        for other in distinct[1:]:
            self.parent[other] = distinct[0]
        self.rides[node] = distinct[0]

    def clusters(self) -> Iterable[list[Matmul]]:
        for node in self.fuser.order:
            if node in self.parent and self.find(node) is node:
                yield [self.fuser.matmuls[n] for n in self.fuser.order if n in self.parent and self.find(n) is node]

    def tail(self, cluster: list[Matmul]) -> list[Node]:
        head = self.find(cluster[0].node)
        riders = [n for n in self.fuser.order if n in self.rides and self.find(self.rides[n]) is head]
        mine = {m.node for m in cluster}.union(riders)
        for node in reversed(list(riders)):
            if self.idle(node, mine):
                riders.remove(node)
                mine.remove(node)
                del self.rides[node]
        return riders

    def idle(self, node: Node, mine: set[Node]) -> bool:
        """Whether a rider saves no memory traffic: nobody on board needs it, and what it reads is written anyway."""
        users = self.fuser.users.get(node, [])
        if node in self.fuser.final or any(u in mine for u in users):
            return False
        sources = [root(i) for i in node.inputs if root(i) in mine]
        return all(any(u not in mine for u in self.fuser.users[s]) or s in self.fuser.final for s in sources)


def _body_nodes(rule: Rule) -> set[Node]:
    """Nodes that only exist inside the inlined bodies of attention."""
    bodies: set[Node] = set()
    outside: set[Node] = set(rule.roots)
    for node in reversed(rule.order):
        for i, operand in enumerate(node.inputs):
            last = i == len(node.inputs) - 1
            inner = node in bodies or (node.op in ("attend", "attention") and node["body"] and last)
            (bodies if inner else outside).add(operand)
    return bodies - outside if not bodies & outside else {n for n in bodies if n not in outside or n.op == "arg"}


def is_state(node: Node) -> bool:
    return isinstance(node.type, StateType)
