"""From a program to kernels, launch lists and memory plans for a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import MappingProxyType
from typing import Any

from echoc.compiler.ir import Membrane, Node, Program, Rule
from echoc.compiler.ir.types import Dim, dim_product, dim_value
from echoc.compiler.passes.fuse import Fuser, Group, root
from echoc.compiler.passes.pack import Packed, Packing, plan_packing
from echoc.compiler.passes.plan import Access, Launch, place_buffers
from echoc.compiler.targets.cuda import fusion, ring
from echoc.compiler.targets.cuda.source import DEVICES
from echoc.compiler.targets.gpu import attention, matmul
from echoc.compiler.targets.gpu.blocks import LIMIT, Parts
from echoc.compiler.targets.gpu.inline import inline
from echoc.compiler.targets.gpu.kernel import Argument, Kernel, grid_json
from echoc.compiler.targets.gpu.printer import ELEMENT_BYTES, Workspace
from echoc.compiler.targets.gpu.render import Device, Renderer
from echoc.compiler.targets.gpu.rows import RowKernel
from echoc.compiler.targets.interface import StateName, only_rule, own_outputs, state_outputs

TOKENS = (1, 4, 16, 64, 256, 8192)  # the most tokens of a step that a variant serves


@dataclass(frozen=True)
class Size:
    """One variant: the most tokens and rows of a step it serves, and whether it is the deterministic one."""

    max_tokens: int | None
    deterministic: bool


@dataclass
class Lowered:
    """Everything of a compiled program but the weights' values and the built kernels."""

    program: Program
    packing: Packing
    plain: list[Node] = field(default_factory=list)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    variants: list[dict[str, Any]] = field(default_factory=list)

    def weight_index(self, key: object) -> int:
        """Packed weights first, then plain tensors, in the order of the artifact."""
        if isinstance(key, Packed):
            return self.packing.entries.index(key)
        return len(self.packing.entries) + next(i for i, n in enumerate(self.plain) if n is key)


def sizes_for(program: Program) -> list[Size]:
    """Variants by token count where the program counts tokens in T, else one of any size.

    The deterministic variant is one for all sizes: a row must come out the same whatever else is in the batch.
    """
    if "T" not in program.symbols:
        return [Size(None, False), Size(None, True)]
    high = program.symbols["T"][1]
    counts = sorted({min(c, high) for c in TOKENS})
    return [Size(c, False) for c in counts] + [Size(counts[-1], True)]


def lower(program: Program, weights_dtype: str, group: int, device: Device) -> Lowered:
    """Fuse, pack, render and plan the skin's rule.

    Raises:
        CompileError: a node that no kernel family can express.
    """
    skin = program.skin
    rule = own_outputs(state_outputs(only_rule(skin)))
    fuser = Fuser(rule, frozenset(root(n) for name, n in rule.outputs if isinstance(name, StateName)))
    groups = fuser.groups()
    packing = plan_packing(fuser, groups, weights_dtype, group)
    lowered = Lowered(program, packing)
    sizes = sizes_for(program)
    bounds = _bounds(program, max((s.max_tokens for s in sizes if s.max_tokens is not None), default=None))
    boundary = frozenset(root(n) for _, n in rule.outputs)
    renderer = Renderer(bounds, packing, {n for g in groups for n in g.outputs}, boundary, device)
    renderer.announce(groups)
    lean = inline(groups, boundary)
    tiles = Renderer(bounds, packing, {n for g in lean for n in g.outputs}, boundary, device)
    tiles.announce(lean)
    runs = launch_runs(lean, packing)
    rows = {id(run[0]): tiles.kernels(run, False, None) for run in runs if run[0].family == "rows"}
    for size in sizes:
        if device.streams and not size.deterministic and (size.max_tokens or ring.MAX_ROWS + 1) <= ring.MAX_ROWS:
            kernels = fusion.decode(groups, renderer, size.max_tokens or 1, DEVICES[device.streams])
            lowered.variants.append(_variant(lowered, skin, rule, kernels, size))
            continue
        kernels = launch_list(tiles, runs, size.deterministic, size.max_tokens, rows)
        lowered.variants.append(_variant(lowered, skin, rule, kernels, size))
    return lowered


def launch_list(
    renderer: Renderer, runs: Sequence[list[Group]], deterministic: bool, form: int | None,
    rows: Mapping[int, list[Kernel]] = MappingProxyType({}),
) -> list[tuple[Kernel, list[Group]]]:  # fmt: skip
    """The kernels of runs in their order, each with the groups that it serves; `rows` are those that are there already,
    by the identity of their group."""
    out: list[tuple[Kernel, list[Group]]] = []
    for run in runs:
        found = rows.get(id(run[0])) or renderer.kernels(run, deterministic, form)
        if out and (summing := _summing(renderer, *out[-1], run[0])):
            (_, before), found = out.pop(), summing
            run = [*before, *run]
        out += [(kernel, run) for kernel in found]
    return out


def _summing(renderer: Renderer, merge: Kernel, run: Sequence[Group], group: Group) -> list[Kernel]:
    """The kernel of rows, or of an append, that also does what a merging kernel before it does: it sums the parts of
    the products that it reads. Empty where it reads none of them, or has no room for its rows."""
    outputs, reads = [n for g in run for n in g.outputs], {root(i) for n in group.nodes for i in n.inputs}
    if merge.family != "gemm_merge" or group.family not in ("rows", "append") or reads.isdisjoint(outputs):
        return []
    products = [g.matmuls[0] for g in run]
    fits = all(p.n <= LIMIT and p.node.tensor.rank == 2 and p.rows == group.domain for p in products)
    if not fits or len(run[0].matmuls) > 1 or any(n.shape[:1] != (group.domain,) for n in outputs):
        return []
    starts = accumulate((p.n for p in products), initial=0)
    columns = {p.node: start for p, start in zip(products, starts, strict=False)}
    memory = next(a.key for a in merge.arguments if isinstance(a.key, Workspace))
    parts = Parts(memory, merge.schedule["splits"], columns, sum(p.n for p in products))
    own = Group("rows", group.stage, [n for g in run for n in g.nodes], group.domain, outputs)
    if group.family == "append":
        return attention.append(renderer, group, RowKernel(own, renderer, parts))
    whole = replace(group, nodes=[*own.nodes, *group.nodes], outputs=[*outputs, *group.outputs])
    return renderer.rows(whole, parts)


def launch_runs(groups: Sequence[Group], packing: Packing) -> list[list[Group]]:
    """Groups in launch order, as runs that share launches: matmuls of the same rows, appends to several states."""
    out: list[Group] = []
    for group in groups:
        if out and _same_append(out[-1], group):
            last = out.pop()
            group = replace(last, nodes=[*last.nodes, *group.nodes], outputs=[*last.outputs, *group.outputs])
        out.append(group)
    return matmul.siblings(out, packing.of)


def _same_append(a: Group, c: Group) -> bool:
    """Whether both append entries of the same tokens."""
    alike = a.family == c.family == "append" and a.stage == c.stage
    return alike and a.nodes[-1].inputs[2:] == c.nodes[-1].inputs[2:]


def _bounds(program: Program, tokens: int | None) -> dict[str, int]:
    """The highest values of the symbols in any variant."""
    bounds = {name: high for name, (_, high) in program.symbols.items()}
    return bounds | ({n: min(bounds[n], tokens) for n in ("T", "R") if n in bounds} if tokens is not None else {})


def _variant(lowered: Lowered, skin: Membrane, rule: Rule, kernels: Sequence[tuple[Kernel, Sequence[Group]]], size: Size
             ) -> dict[str, Any]:  # fmt: skip
    symbols = list(lowered.program.symbols)
    outputs = {root(n): name for name, n in rule.outputs}
    launches = []
    for kernel, _ in kernels:
        lowered.kernels[kernel.name] = kernel
        launches.append(Launch(kernel.name, [_access(lowered, skin, outputs, a) for a in kernel.arguments]))
    bounds = _bounds(lowered.program, size.max_tokens)
    plan = place_buffers(launches, bounds)
    return {
        "rule": rule.name,
        "max_tokens": size.max_tokens,
        "max_rows": size.max_tokens,
        "deterministic": size.deterministic,
        "arena_bytes": plan.arena_bytes,
        "launches": [
            {
                "kernel": kernel.name,
                "args": [list(a.place) if a.place else ["arena", plan.offsets[a.key]] for a in launch.accesses],
                "symbols": [symbols.index(s) for s in kernel.symbols],
                "grid": grid_json(kernel.grid, symbols),
                **_matrices(kernel, bounds),
                "dependent": kernel.dependent,
                "schedule": dict(kernel.schedule),
                "ops": sorted({n.op for g in run for n in g.nodes}),
            }
            for launch, (kernel, run) in zip(launches, kernels, strict=True)
        ],
    }


def _matrices(kernel: Kernel, bounds: Mapping[str, int]) -> dict[str, Any]:
    """What the tensor maps of a launch say: [argument, element type, rows, columns] of each. They have the rows of
    the largest step: those behind the rows of a smaller one lie in the same buffer, and what comes of them is not
    stored."""
    found = [
        [i, a.element, dim_value(a.matrix.rows, bounds), a.matrix.columns]
        for i, a in enumerate(kernel.arguments)
        if a.matrix is not None
    ]
    return {"matrices": found} if found else {}


def _access(lowered: Lowered, skin: Membrane, outputs: Mapping[Node, str], argument: Argument) -> Access:
    key = argument.key
    ports = [p.name for p in skin.ports]
    states = [s.name for s in skin.states]
    if isinstance(key, str):
        return Access(key, ("state", states.index(key)), 0, argument.written)
    if isinstance(key, Packed):
        return Access(key, ("weight", lowered.weight_index(key)), 0, False)
    if isinstance(key, Workspace):
        return Access(key, None, key.size, argument.written)
    assert isinstance(key, Node)
    if key.op == "read":
        return Access(key, ("state", states.index(key.inputs[0]["name"])), 0, argument.written)
    if key.op == "port":
        return Access(key, ("port", ports.index(key["name"])), 0, argument.written)
    if key.op == "weight":
        if key not in lowered.plain:
            lowered.plain.append(key)
        return Access(key, ("weight", lowered.weight_index(key)), 0, False)
    if key in outputs and isinstance(outputs[key], StateName):
        return Access(key, ("state", states.index(str(outputs[key]))), 0, argument.written)
    if key in outputs:
        return Access(key, ("port", ports.index(outputs[key])), 0, argument.written)
    size: Dim = dim_product(key.shape) * ELEMENT_BYTES[argument.element]
    return Access(key, None, size, argument.written)
