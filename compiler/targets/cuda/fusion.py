"""From fused groups to the launches of a decode step on CUDA.

Three kinds of groups become launches of hand-written kernels: products that read one x become one launch, the rows
group that makes this x becomes its prologue, and an attention takes in the groups that make q, k and v and those that
write k and v into pages. Every condition is on the graph; a group that does not fit stays what it was, for the general
renderer.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from echoc.compiler.ir import DType, Node
from echoc.compiler.ir.ops import POINTWISE
from echoc.compiler.passes.fuse import Group, root
from echoc.compiler.passes.pack import Packed, Packing
from echoc.compiler.targets.cuda import attention, ring
from echoc.compiler.targets.cuda.attention import Parts
from echoc.compiler.targets.cuda.ring import Prologue, Source, Unfit
from echoc.compiler.targets.cuda.source import Device
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.printer import Arguments
from echoc.errors import CompileError

if TYPE_CHECKING:
    from echoc.compiler.targets.gpu.render import Renderer

# Launches that wait for each other hold their places: with more than 256 threads on every multiprocessor of 2048, no
# more than 7 can have begun and not ended. What lies further back is done.
AT_ONCE = 8
MERGED_ROWS = 1
MAX_MAPS = 4  # nodes that every reader may compute again


@dataclass
class Launch:
    """Groups that run together. `kernels` are the generated ones; where there are none, the general renderer makes
    them, one group a launch."""

    groups: list[Group]
    kernels: list[Kernel] = field(default_factory=list)
    prologue: Prologue | None = None
    inner: list[Node] = field(default_factory=list)  # computed here as well: towards q, k and v, or in an epilogue

    @property
    def family(self) -> str:
        return self.groups[-1].family


class Chain:
    """The launches of one variant for at most `rows` rows."""

    def __init__(
        self, groups: Sequence[Group], packing: Packing, boundary: Collection[Node], symbols: Sequence[str], rows: int,
        device: Device,
    ) -> None:  # fmt: skip
        self.packing, self.boundary, self.symbols, self.rows, self.device = packing, boundary, symbols, rows, device
        self.launches = [Launch([g]) for g in groups]
        self.outputs = {n for g in groups for n in g.outputs}
        self.narrow: set[Node] = set()
        self.parts: dict[Node, Parts] = {}
        self.known: dict[tuple[int, int, int, int], set[Node]] = {}  # what launches read, while they stay as they are
        self.merge_products()
        self.take_in_rows()
        self.take_in_attention()
        self.find_narrow()
        self.render()

    # -- the graph of launches

    def maker(self, node: Node) -> Launch | None:
        """The launch that leaves a node in memory."""
        source = root(node)
        for launch in self.launches:
            if any(source in g.outputs for g in launch.groups):
                return launch
            if launch.prologue is not None and source in launch.prologue.outputs:
                return launch
        return None

    def reads(self, launch: Launch) -> set[Node]:
        """The nodes in memory that a launch reads."""
        inside = launch.prologue.nodes if launch.prologue is not None else []
        key = (id(launch), len(launch.groups), len(launch.inner), len(inside))
        if key not in self.known:
            own = {n for g in launch.groups for n in g.nodes}.union(launch.inner, inside)
            weights = {m.node: m.weight for g in launch.groups for m in g.matmuls}
            read = {root(i) for n in own for i in _operands(n) if i is not weights.get(n)}
            self.known[key] = read - own
        return self.known[key]

    def readers(self, node: Node) -> list[Launch]:
        return [x for x in self.launches if node in self.reads(x)]

    # -- products

    def streams(self, launch: Launch) -> bool:
        """Whether a launch is of products that the ring kernel may take."""
        if launch.family != "gemm":
            return False
        first = launch.groups[0].matmuls[0]
        packed = self.packing.of(launch.groups[0])
        return ring.fits(packed, first.k) and isinstance(first.k, int) and self.few(first.rows)

    def few(self, rows: object) -> bool:
        return str(rows) in ("T", "R")

    def merge_products(self) -> None:
        """Products of one x, of one stage and one number of sisters, share a launch."""
        heads: dict[tuple[object, ...], Launch] = {}
        kept = []
        for launch in self.launches:
            if self.streams(launch):
                group = launch.groups[0]
                first, packed = group.matmuls[0], self.packing.of(group)
                key = (
                    root(first.x), group.stage, first.k, len(group.matmuls), packed.format, packed.group,
                )  # fmt: skip
                if key in heads:
                    heads[key].groups.append(group)
                    continue
                heads[key] = launch
                launch.prologue = Prologue(root(first.x), first.rows, first.k)
            kept.append(launch)
        self.launches = kept

    def take_in_rows(self) -> None:
        """Rows groups that only products read, or that products can write on the way, are computed by these."""
        settled = False
        while not settled:
            taken = [x for x in self.launches if x.family == "rows" and self.dissolve(x)]
            settled = not taken

    def dissolve(self, launch: Launch) -> bool:
        """Let all readers of a rows group compute what they read of it: towards x in their prologues, and a few maps in
        their epilogues. What this leaves, the first of them writes to memory, if it computes it and comes first."""
        (group,) = launch.groups
        readers = [x for x in self.launches if x is not launch and not self.reads(x).isdisjoint(group.outputs)]
        if not readers or any(n in self.boundary for n in group.outputs) or _reads_table(group):
            return False
        extras: set[Node] = set()
        plans: list[tuple[Launch, Prologue, list[Node]]] = []
        for reader in readers:
            if reader.prologue is None:
                extras |= self.reads(reader) & set(group.outputs)
                continue
            before = reader.prologue
            inside = {root(i) for n in before.nodes for i in n.inputs} | {before.x}
            nodes = _slice(group, [n for n in group.outputs if n in inside])
            beside = {n for n in group.outputs if self.in_epilogue(reader, n)}
            maps = _slice(group, list(beside))
            if len(maps) > MAX_MAPS or not all(n.op in POINTWISE or n.op in ring.VIEWS for n in maps):
                extras |= beside
                maps = []
            plan = Prologue(before.x, before.rows, before.k, nodes + before.nodes, list(before.outputs))
            if not ring.fits_rows(plan):
                return False
            plans.append((reader, plan, maps))
        if extras:
            if not plans or plans[0][0] is not readers[0] or not extras <= set(plans[0][1].nodes):
                return False
            if any(self.in_epilogue(readers[0], n) for n in extras):
                return False
            plans[0][1].outputs += [n for n in group.outputs if n in extras]
        if not all(self.possible(*plan) for plan in plans):
            return False
        for reader, plan, maps in plans:
            reader.prologue = plan
            reader.inner += maps
        self.launches.remove(launch)
        return True

    def in_epilogue(self, launch: Launch, node: Node) -> bool:
        """Whether riders of a launch read a node, beside its products reading it as x."""
        for group in launch.groups:
            products = {m.node for m in group.matmuls}
            if any(root(i) is node for n in group.nodes if n not in products for i in n.inputs):
                return True
        return False

    def possible(self, launch: Launch, plan: Prologue, maps: Sequence[Node]) -> bool:
        """Whether the kernel can be made so."""
        try:
            self.product(launch, plan, {}, maps)
        except (Unfit, CompileError):
            return False
        return True

    def product(
        self, launch: Launch, prologue: Prologue, parts: dict[Node, Parts], more: Sequence[Node], ahead: bool = False
    ) -> Kernel:
        arguments = Arguments(self.boundary, self.narrow)
        sources: dict[Node, Source] = {n: p.source(arguments) for n, p in parts.items()}
        weights = [self.packing.of(g) for g in launch.groups]
        return ring.gemv(
            launch.groups, weights, prologue, self.rows, arguments, self.outputs, self.symbols, self.device, sources,
            {*launch.inner, *more}, ahead,
        )  # fmt: skip

    # -- attention

    def take_in_attention(self) -> None:
        for launch in [x for x in self.launches if x.family == "attend"]:
            self.enclose(launch)

    def enclose(self, launch: Launch) -> None:
        """Let an attention make its q, k and v and write its state, if nobody else needs what it takes in."""
        (node,) = launch.groups[0].nodes
        states = list(node.inputs[1:3])
        appends = [x for x in self.launches if x.family == "append" and set(x.groups[0].nodes) & set(states)]
        wanted = [n for n in states if n.op == "append"]
        if {n for x in appends for n in x.groups[0].nodes} != set(wanted) or not attention.fits(
            node, wanted, self.rows
        ):
            return
        if not self.few(node.inputs[0].shape[0]):
            return
        inner: set[Node] = set()
        makers: list[Launch] = []
        for value in (node.inputs[0], wanted[0].inputs[1], wanted[1].inputs[1]):
            maker = self.maker(value)
            if maker is None or maker.family != "rows":
                continue
            nodes = self.vector(value, maker.groups[0])
            if nodes is None:
                continue
            inner |= nodes
            if maker not in makers:
                makers.append(maker)
        taken = []
        for maker in makers:
            users = [x for n in maker.groups[0].outputs for x in self.readers(n)]
            if all(x is launch or x in appends for x in users) and inner >= set(maker.groups[0].outputs):
                taken.append(maker)
        launch.inner = [n for m in taken for n in m.groups[0].nodes if n in inner]
        launch.groups = [*(x.groups[0] for x in appends), launch.groups[0]]
        self.launches = [x for x in self.launches if x not in taken and x not in appends]

    def vector(self, value: Node, group: Group) -> set[Node] | None:
        """The nodes of a rows group that make one head's vectors, if they are maps and sums over a head."""
        rows, heads, dim = value.shape
        nodes: set[Node] = set()
        stack = [value]
        while stack:
            node = root(stack.pop())
            if node in nodes or node not in group.nodes:
                continue
            if not attention.is_vector(node, rows, int(str(heads)), int(str(dim))):
                return None
            nodes.add(node)
            stack += node.inputs
        return nodes

    # -- kernels

    def find_narrow(self) -> None:
        """Results that only products read, as they are, lie in memory as bf16: that is how they are multiplied."""
        made = [n for x in self.launches if x.prologue is not None for g in x.groups for n in g.outputs]
        if not self.merges():
            made += [x.groups[-1].nodes[0] for x in self.launches if x.family == "attend" and len(x.groups) > 1]
        for node in made:
            users = self.readers(node)
            plain = all(
                x.prologue is not None and x.prologue.x is node and not x.prologue.nodes
                and not self.in_epilogue(x, node) for x in users
            )  # fmt: skip
            if users and plain and node not in self.boundary and node.tensor.dtype is DType.F32:
                self.narrow.add(node)

    def render(self) -> None:
        behind = 0  # launches before, with a block for every multiprocessor
        far: set[int] = set()
        for launch in self.launches:
            if behind >= AT_ONCE:
                far.add(id(launch))
            if launch.family == "attend" and len(launch.groups) > 1:
                self.render_attention(launch, id(launch) in far)
            elif launch.prologue is not None and sum(g.matmuls[0].n for g in launch.groups) >= self.device.processors:
                behind += 1
        for launch in list(self.launches):
            if launch.prologue is not None:
                parts = {n: self.parts[n] for n in self.reads(launch) if n in self.parts and self.merges()}
                try:
                    launch.kernels = [self.product(launch, launch.prologue, parts, (), id(launch) in far)]
                except Unfit:
                    self.split_up(launch)
        for node, held in self.parts.items():
            readers = self.readers(node)
            whole = any(not x.kernels or self.in_epilogue(x, node) for x in readers) or node in self.boundary
            if whole or not self.merges():
                maker = next(x for x in self.launches if node in x.groups[-1].nodes)
                maker.kernels.append(
                    attention.merge(held, Arguments(self.boundary, self.narrow), self.symbols, self.device)
                )

    def merges(self) -> bool:
        """Whether prologues merge the parts of attentions: of more rows every block would read too much."""
        return self.rows <= MERGED_ROWS

    def split_up(self, launch: Launch) -> None:
        """A launch that does not fit after all goes back to the general renderer, a group at a time."""
        assert launch.prologue is not None and not launch.prologue.nodes
        at = self.launches.index(launch)
        self.launches[at : at + 1] = [Launch([g]) for g in launch.groups]

    def render_attention(self, launch: Launch, early: bool) -> None:
        group = launch.groups[-1]
        (node,) = group.nodes
        appends = [node.inputs[1], node.inputs[2]]
        kernel, parts = attention.attend(
            group, appends, set(launch.inner), self.outputs - set(launch.inner), self.rows,
            Arguments(self.boundary, self.narrow), self.symbols, self.device, early,
        )  # fmt: skip
        launch.kernels = [kernel]
        self.parts[node] = parts

    @property
    def kernels(self) -> list[Kernel]:
        """All generated kernels in launch order."""
        return [k for x in self.launches for k in x.kernels]


def decode(groups: Sequence[Group], renderer: Renderer, rows: int, device: Device) -> list[tuple[Kernel, list[Group]]]:
    """The kernels of a step of at most `rows` rows with the groups of each; `renderer` makes what is left."""
    chain = Chain(groups, renderer.packing, renderer.boundary, renderer.symbols, rows, device)
    rest = copy.copy(renderer)
    rest.narrow = chain.narrow
    return [
        (kernel, launch.groups)
        for launch in chain.launches
        for kernel in launch.kernels or rest.kernels(launch.groups, False, rows)
    ]


def _slice(group: Group, wanted: Sequence[Node]) -> list[Node]:
    """The nodes of a group that some of its nodes depend on, in order."""
    needed: set[Node] = set()
    stack = list(wanted)
    while stack:
        node = root(stack.pop())
        if node in group.nodes and node not in needed:
            needed.add(node)
            stack += node.inputs
    return [n for n in group.nodes if n in needed]


def _reads_table(group: Group) -> bool:
    """Whether a group reads rows of a weight, which may lie packed."""
    return any(n.op in ("take", "gather") and root(n.inputs[0]).op == "weight" for n in group.nodes)


def _operands(node: Node) -> list[Node]:
    """What a node reads; the body of an attention is a part of it."""
    operands = list(node.inputs)
    if node.op == "attend" and node["body"]:
        operands.pop()
    return operands


def packed_of(kernels: Sequence[Kernel]) -> list[Packed]:
    """The packed weights that kernels read, each once."""
    return list({id(a.key): a.key for k in kernels for a in k.arguments if isinstance(a.key, Packed)}.values())
