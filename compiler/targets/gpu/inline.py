"""Light work on the way to attention (rotary positions, scales, casts) is done where attention and append read it.

It needs no kernel of its own then, and no pass through memory. What costs more than arithmetic (the sines of the
positions, reductions) stays where it is and is read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from echoc.compiler.ir import Node
from echoc.compiler.ir.ops import POINTWISE
from echoc.compiler.passes.fuse import Group, root
from echoc.compiler.targets.cpu.loops import COSTLY

LIGHT = (frozenset(POINTWISE) | {"slice", "concat", "broadcast", "transpose"}) - COSTLY
RANK = {"rows": 0, "append": 1, "gemm": 2, "experts": 2, "attend": 3}  # within a stage
MOST = 32  # nodes that one reader computes anew


def inline(groups: Sequence[Group], final: Collection[Node]) -> list[Group]:
    """The groups with light nodes moved from rows into the attend and append groups that alone read them.

    `final` are nodes that the outside reads. A reader's own node comes last in its group; an append is done as early as
    what it needs is there.
    """
    users: dict[Node, list[Node]] = {}
    for group in groups:
        for node in group.nodes:
            for operand in node.inputs:
                users.setdefault(root(operand), []).append(node)
    moved: set[Node] = set()
    for group in reversed(groups):
        for node in reversed(group.nodes):
            read = users.get(node, [])
            light = group.family == "rows" and node.op in LIGHT and node not in final and node.tensor.rank > 0
            if light and read and all(u in moved or _reads(u, node) for u in read):
                moved.add(node)
    trees = {g.nodes[0]: _tree(_source(g.nodes[0]), moved) for g in groups if g.family in ("attend", "append")}
    for tree in trees.values():
        if len(tree) > MOST:
            moved.difference_update(tree)
    moved = _closed(moved, users)
    stage = {n: g.stage for g in groups for n in g.nodes}
    out: list[Group] = []
    for group in groups:
        if group.family in ("attend", "append"):
            tree = [n for n in trees[group.nodes[0]] if n in moved]
            when = max(map(stage.__getitem__, tree)) if tree and group.family == "append" else group.stage
            out.append(replace(group, stage=when, nodes=[*tree, *group.nodes]))
            continue
        nodes = [n for n in group.nodes if n not in moved]
        if nodes:
            needed = [n for n in nodes if n in group.outputs or any(u in moved for u in users.get(n, ()))]
            out.append(replace(group, nodes=nodes, outputs=needed))
    return sorted(out, key=lambda g: (g.stage, RANK[g.family]))


def _source(reader: Node) -> Node:
    """The operand that a reader may compute by itself: an attend's queries, an append's entries."""
    return root(reader.inputs[0 if reader.op == "attend" else 1])


def _reads(user: Node, node: Node) -> bool:
    """Whether the user computes the node by itself: it reads it as its queries or entries, and nowhere else."""
    if user.op not in ("attend", "append") or _source(user) is not node:
        return False
    return sum(root(i) is node for i in user.inputs) == 1


def _tree(node: Node, moved: Collection[Node]) -> list[Node]:
    """The moved nodes that a value needs, operands first."""
    out: list[Node] = []

    def visit(inner: Node) -> None:
        inner = root(inner)
        if inner in moved and inner not in out:
            for operand in inner.inputs:
                visit(operand)
            out.append(inner)

    visit(node)
    return out


def _closed(moved: set[Node], users: dict[Node, list[Node]]) -> set[Node]:
    """The moved nodes all of whose users are moved or read them: those of a tree that stays, stay."""
    while True:
        kept = {n for n in moved if all(u in moved or _reads(u, n) for u in users[n])}
        if kept == moved:
            return moved
        moved = kept
