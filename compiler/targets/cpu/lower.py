"""From a program to kernels, launch lists and memory plans for a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from echoc import _native
from echoc.compiler.ir import Membrane, Node, Program, Rule, StateType, make
from echoc.compiler.ir.node import rebuild
from echoc.compiler.ir.types import Dim, Poly, symbol
from echoc.compiler.passes.fold import RULE as WEIGHTS_RULE
from echoc.compiler.passes.fuse import LEAF_OPS, Fuser, Group, root
from echoc.compiler.passes.pack import Packed, Packing, plan_packing
from echoc.compiler.passes.plan import Access, Launch, place_buffers, set_barriers
from echoc.compiler.targets.cpu.emit import Argument, storage_bytes
from echoc.compiler.targets.cpu.kernels import Kernel, Prepared, Renderer
from echoc.compiler.targets.cpu.loops import Workspace
from echoc.errors import CompileError

PAGE_SIZE = 16
DECODE_TOKENS = 16
PREFILL_TOKENS = 512
_NAMED_BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2}


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
    """Variants by token count where the program counts tokens in T, else one of any size."""
    if "T" not in program.symbols:
        return [Size(None, False), Size(None, True)]
    high = program.symbols["T"][1]
    counts = sorted({min(DECODE_TOKENS, high), min(PREFILL_TOKENS, high)})
    return [Size(c, False) for c in counts] + [Size(counts[-1], True)]


def lower(program: Program, weights_dtype: str, group: int) -> Lowered:
    """Fuse, pack, render and plan the skin's rules.

    Raises:
        CompileError: a node that no kernel family can express.
    """
    skin = program.skin
    rules = [r for r in skin.rules if r.name != WEIGHTS_RULE]
    if len(rules) != 1 or skin.children:
        raise CompileError(
            f"membrane {skin.name} has {len(rules)} rules and {len(skin.children)} children; one rule is compiled"
        )
    check_ports(skin, rules[0])
    rule = own_outputs(state_outputs(rules[0]))
    fuser = Fuser(rule, frozenset(root(n) for name, n in rule.outputs if isinstance(name, _StateName)))
    groups = fuser.groups()
    packing = plan_packing(fuser, groups, weights_dtype, group)
    lowered = Lowered(program, packing)
    done: dict[bool, list[tuple[Kernel, Group]]] = {}
    for size in sizes_for(program):
        if size.deterministic not in done:
            boundary = frozenset(root(n) for _, n in rule.outputs)
            renderer = Renderer(list(program.symbols), packing, {n for g in groups for n in g.outputs}, boundary)
            renderer.announce(groups)
            done[size.deterministic] = [
                (kernel, g) for g in groups for kernel in renderer.kernels(g, size.deterministic)
            ]
        lowered.variants.append(_variant(lowered, skin, rule, done[size.deterministic], size))
    return lowered


def check_ports(skin: Membrane, rule: Rule) -> None:
    """Raises CompileError for a port that gets no value, or whose dimensions are not numbers and single symbols."""
    for port in skin.ports:
        for dim in port.type.shape:
            if isinstance(dim, Poly) and dim != symbol(str(dim)):
                raise CompileError(
                    f"port {port.name} of membrane {skin.name} is {port.type}; wanted numbers and symbols as its "
                    f"dimensions: reshape or cut {dim} inside the rule"
                )
    for port in skin.ports:
        if port.direction == "out" and port.name not in dict(rule.outputs):
            raise CompileError(f"rule @{rule.name} of membrane {skin.name} gives nothing to the out port {port.name!r}")


class _StateName(str):
    """The name of an output that is the next value of a state."""


def state_outputs(rule: Rule) -> Rule:
    """The rule with writes of value states as outputs, made when everything that reads the old value is done."""
    settled: dict[Node, Node] = {}
    for node in rule.order:
        inputs = tuple(settled[i] for i in node.inputs)
        read_back = node.op == "read" and inputs[0].op == "write"
        settled[node] = inputs[0].inputs[1] if read_back else rebuild(node, inputs)
    rule = rule.map(lambda n: settled[n])
    outputs = list(rule.outputs)
    for name, node in rule.next_states:
        if node.op == "write":
            # computed apart, then copied: the states of a rule change together
            outputs.append((_StateName(name), _copy(_copy(node.inputs[1]))))
    paged = tuple((name, node) for name, node in rule.next_states if node.op not in ("write", "state"))
    return replace(rule, outputs=tuple(outputs), next_states=paged)


def own_outputs(rule: Rule) -> Rule:
    """The rule with a node of its own for every output, so that each can be written in place."""
    used: set[Node] = set()
    outputs = []
    for name, node in rule.outputs:
        source = root(node)
        half = node.tensor.dtype in ("f16", "bf16")  # in memory a port has 16 bits, a value between kernels 32
        if source.op in LEAF_OPS or source in used or half:
            node = _copy(node)
            while root(node) in used:
                node = _copy(node)
        used.add(root(node))
        outputs.append((name, node))
    return replace(rule, outputs=tuple(outputs))


def _copy(node: Node) -> Node:
    if not node.tensor.rank:
        return make("reshape", _copy(make("reshape", node, shape=(1,))), shape=())
    zeros = tuple(0 for _ in node.shape)
    return make("slice", node, starts=zeros, stops=node.shape, steps=tuple(1 for _ in node.shape))


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
        launches.append(Launch(kernel.name, [_access(lowered, skin, outputs, a) for a in kernel.arguments]))
    plan = place_buffers(launches, symbols)
    set_barriers(launches, plan, symbols)
    return {
        "rule": rule.name,
        "max_tokens": size.max_tokens,
        "max_rows": size.max_tokens,
        "deterministic": size.deterministic,
        "arena_bytes": plan.arena_bytes,
        "scratch_bytes": max((_scratch(k.scratch_bytes) for k, _ in kernels), default=0),
        "launches": [
            {
                "kernel": launch.kernel,
                "barrier": launch.barrier,
                "args": [list(a.place) if a.place else ["arena", plan.offsets[a.key]] for a in launch.accesses],
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
    if key in outputs and isinstance(outputs[key], _StateName):
        names = [s.name for s in skin.states]
        return Access(key, ("state", names.index(str(outputs[key]))), 0, argument.written)
    if key in outputs:
        return Access(key, ("port", ports.index(outputs[key])), 0, argument.written)
    return Access(key, None, key.tensor.size * storage_bytes(key.tensor.dtype), argument.written)


def _format(weight_class: str) -> tuple[str, int]:
    bits, group = weight_class.partition("<")[2].rstrip(">").split(",")
    return {32: "f32", 16: "bf16", 8: "i8", 4: "i4"}[int(bits)], int(group)


def _scratch(text: str) -> int:
    """Bytes of per-thread scratch; attention's formula stands beside its kernel in attend.h."""
    if text.isdigit():
        return int(text)
    head, value = (-(-int(x) // 16) * 16 for x in text.partition("(")[2].rstrip(")").split(","))
    rows, block, tall = 96, 64, 32
    floats = (rows + block) * (head + value) + tall * block * 3 // 2 + rows * (head + 16) // 2 + 6 * rows
    return -(-floats * 4 // 64) * 64


def states_of(skin: Membrane) -> list[dict[str, Any]]:
    """The manifest's entries for the membrane's states."""
    out = []
    for state in skin.states:
        type_: StateType = state.type
        count = 1
        for d in type_.shape:
            count *= d
        paged = type_.kind == "pages"
        nbytes = count * _NAMED_BYTES.get(str(type_.dtype), 1) * (PAGE_SIZE if paged else 1)
        out.append(
            {
                "name": state.name, "kind": type_.kind, "page_size": PAGE_SIZE if paged else 0,
                "bytes_per_page": nbytes, "dtype": str(type_.dtype), "shape": list(type_.shape),
            }
        )  # fmt: skip
    return out


def shape_json(shape: Sequence[Dim]) -> list[int | str]:
    return [str(d) if isinstance(d, Poly) else d for d in shape]
