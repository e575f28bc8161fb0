"""From a program to kernels, launch lists and memory plans for a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from echoc import _native
from echoc.compiler.ir import DType, Membrane, Node, Program, Rule
from echoc.compiler.ir.types import Dim, dim_value
from echoc.compiler.passes.fuse import Fuser, Group, root
from echoc.compiler.passes.pack import Packed, Packing, plan_packing
from echoc.compiler.passes.plan import ALIGN, Access, Launch, place_buffers, set_barriers
from echoc.compiler.schedules import Schedule
from echoc.compiler.targets.cpu.emit import Argument, storage_bytes
from echoc.compiler.targets.cpu.kernels import CANDIDATES, Kernel, Prepared, Renderer
from echoc.compiler.targets.cpu.loops import Workspace
from echoc.compiler.targets.interface import StateName, only_rule, own_outputs, state_outputs

DECODE_TOKENS = 16
PREFILL_TOKENS = 512


@dataclass(frozen=True)
class Size:
    """One variant: the most tokens and rows of a step it serves, and whether it is the deterministic one."""

    max_tokens: int | None
    deterministic: bool


@dataclass
class Lowered:
    """Everything of a compiled program but the weights' values and the built library."""

    program: Program
    packing: Packing
    plain: list[Node] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    variants: list[dict[str, Any]] = field(default_factory=list)

    def weight_index(self, key: object) -> int:
        """Packed streams first, then plain tensors, in the order of the artifact."""
        if isinstance(key, Packed):
            return self.packing.entries.index(key)
        return len(self.packing.entries) + next(i for i, n in enumerate(self.plain) if n is key)


def sizes_for(program: Program) -> list[Size]:
    """Variants by token count where the program counts tokens in T, else one of any size. A single token has its own: a
    thread has nothing to share then with others in what is done row by row."""
    if "T" not in program.symbols:
        return [Size(None, False), Size(None, True)]
    high = program.symbols["T"][1]
    counts = sorted({1, min(DECODE_TOKENS, high), min(PREFILL_TOKENS, high)})
    return [Size(c, False) for c in counts] + [Size(counts[-1], True)]


def lower(
    program: Program,
    weights_dtype: str,
    group: int,
    schedules: Mapping[str, Schedule] | None = None,
    codable: Callable[[Packed], bool] | None = None,
) -> Lowered:
    """Fuse, pack, render and plan the skin's rules. `schedules` are by kernel; others have the default. `codable`: see
    `Packing`.

    Raises:
        CompileError: a node that no kernel family can express.
    """
    skin = program.skin
    rule = own_outputs(state_outputs(only_rule(skin)))
    fuser = Fuser(rule, frozenset(root(n) for name, n in rule.outputs if isinstance(name, StateName)))
    groups = fuser.groups()
    packing = plan_packing(fuser, groups, weights_dtype, group, codable)
    lowered = Lowered(program, packing)
    head = logits_group(skin, rule, fuser, groups)
    done: dict[bool, list[tuple[Kernel, Group]]] = {}
    chooses: dict[bool, str] = {}
    for size in sizes_for(program):
        if size.deterministic not in done:
            boundary = frozenset(root(n) for _, n in rule.outputs)
            renderer = Renderer(
                list(program.symbols), packing, {n for g in groups for n in g.outputs}, boundary, schedules
            )
            renderer.announce(groups)
            done[size.deterministic] = [
                (kernel, g) for g in groups for kernel in renderer.kernels(g, size.deterministic)
            ]
            if head is not None:
                (kernel,) = renderer.matmul(head, size.deterministic, choosing=True)
                lowered.sources[kernel.name] = kernel.source
                chooses[size.deterministic] = kernel.name
        variant = _variant(lowered, skin, rule, done[size.deterministic], size)
        if head is not None:
            at = max(i for i, (_, group) in enumerate(done[size.deterministic]) if group is head)
            variant["launches"][at]["choosing"] = {"kernel": chooses[size.deterministic], "most": CANDIDATES}
        lowered.variants.append(variant)
    return lowered


def logits_group(skin: Membrane, rule: Rule, fuser: Fuser, groups: Sequence[Group]) -> Group | None:
    """The product that makes the port `logits` f32 [R, V] and nothing else, which could tell the best of each row
    instead; None where there is no such port, or more is done to its values than a product's epilogue does."""
    node = next((root(n) for name, n in rule.outputs if name == "logits"), None)
    type_ = next((port.type for port in skin.ports if port.name == "logits"), None)
    if node is None or type_ is None or type_.dtype is not DType.F32 or type_.rank != 2:
        return None
    group = next(g for g in groups if node in g.nodes)
    elsewhere = any(user not in group.nodes for user in fuser.users.get(node, ()))
    if group.family != "gemm" or group.outputs != [node] or elsewhere:
        return None
    first = group.matmuls[0]
    return group if type_.shape == (first.rows, first.n) else None


def _variant(
    lowered: Lowered, skin: Membrane, rule: Rule, kernels: Sequence[tuple[Kernel, Group]], size: Size
) -> dict[str, Any]:
    symbols = {name: high for name, (_, high) in lowered.program.symbols.items()}
    if size.max_tokens is not None:
        symbols |= {"T": size.max_tokens, "R": size.max_tokens}
    outputs = {root(n): name for name, n in rule.outputs}
    launches = []
    for kernel, _ in kernels:
        lowered.sources[kernel.name] = kernel.source
        accesses = [_access(lowered, skin, outputs, a) for a in kernel.arguments]
        single = size.max_tokens == 1 and kernel.rows is not None and dim_value(kernel.rows, symbols) == 1
        alike = single and all(a.place is None for a in accesses if a.written)
        launches.append(Launch(kernel.name, accesses, alike=alike))
    set_barriers(launches)
    plan = place_buffers(launches, symbols, in_stages=True)
    scratch = -(-max((_scratch(k.scratch_bytes) for k, _ in kernels), default=0) // ALIGN) * ALIGN

    def place(access: Access) -> list[str | int]:
        if access.place is not None:
            return list(access.place)
        offset = plan.offsets[access.key]
        return ["scratch", scratch + offset] if access.key in plan.own else ["arena", offset]

    return {
        "rule": rule.name,
        "max_tokens": size.max_tokens,
        "max_rows": size.max_tokens,
        "deterministic": size.deterministic,
        "arena_bytes": plan.arena_bytes,
        "scratch_bytes": scratch + plan.own_bytes,
        "launches": [
            {
                "kernel": launch.kernel,
                "barrier": launch.barrier,
                "alike": launch.alike,
                "args": [place(a) for a in launch.accesses],
                "schedule": dict(kernel.schedule),
                "ops": sorted({n.op for n in g.nodes}),
            }
            for launch, (kernel, g) in zip(launches, kernels, strict=True)
        ],
    }


def _access(lowered: Lowered, skin: Membrane, outputs: Mapping[Node, str], argument: Argument) -> Access:
    key = argument.key
    ports = [p.name for p in skin.ports]
    if isinstance(key, str):
        return Access(key, ("state", [s.name for s in skin.states].index(key)), 0, argument.written)
    if isinstance(key, Packed):
        return Access(key, ("weight", lowered.weight_index(key)), 0, False)
    if isinstance(key, Prepared):
        format_, group = _format(key.weight_class)
        size: Dim = key.rows * _native.row_nbytes(format_, group, key.k)
        return Access(key, None, size, argument.written)
    if isinstance(key, Workspace):
        return Access(key, None, key.size, argument.written)
    assert isinstance(key, Node)
    if key.op == "read":
        names = [s.name for s in skin.states]
        return Access(key, ("state", names.index(key.inputs[0]["name"])), 0, argument.written)
    if key.op == "port":
        return Access(key, ("port", ports.index(key["name"])), 0, argument.written)
    if key.op == "weight":
        if key not in lowered.plain:
            lowered.plain.append(key)
        return Access(key, ("weight", lowered.weight_index(key)), 0, False)
    if key in outputs and isinstance(outputs[key], StateName):
        names = [s.name for s in skin.states]
        return Access(key, ("state", names.index(str(outputs[key]))), 0, argument.written)
    if key in outputs:
        return Access(key, ("port", ports.index(outputs[key])), 0, argument.written)
    return Access(key, None, key.tensor.size * storage_bytes(key.tensor.dtype), argument.written)


def _format(weight_class: str) -> tuple[str, int]:
    bits, group = map(int, weight_class.partition("<")[2].rstrip(">").split(","))
    return {32: "f32", 16: "bf16", 12: "bf16c", 8: "i8" if group else "f8", 4: "i4"}[bits], group


def _scratch(text: str) -> int:
    """Bytes of per-thread scratch; attention's formula stands beside its kernel in attend.h."""
    if text.isdigit():
        return int(text)
    head, value = (-(-int(x) // 16) * 16 for x in text.partition("(")[2].rstrip(")").split(","))
    rows, block, tall = 96, 64, 32
    floats = (rows + block) * (head + value) + tall * block * 3 // 2 + rows * (head + 16) // 2 + 7 * rows + 2 * block
    return -(-floats * 4 // 64) * 64
