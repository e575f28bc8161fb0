"""Programs from nodes, and both devices to run them on: the numpy meanings, and the generated code in one library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from echoc import _native
from echoc.compiler.api import lookup
from echoc.compiler.bundle import Provenance, cpu_code, write_artifact
from echoc.compiler.ir import DType, Membrane, Node, Port, Program, Rule, StateType, make
from echoc.compiler.ir.interpret import run_rule
from echoc.compiler.ir.membrane import State
from echoc.compiler.ir.node import topological
from echoc.compiler.ir.ops.pointwise import cast_array
from echoc.compiler.ir.verify import verify
from echoc.compiler.passes.fold import RULE
from echoc.compiler.targets.cpu import build
from echoc.compiler.targets.cpu.lower import Lowered, lower
from echoc.compiler.weights import Weights
from echoc.runtime.artifact import Artifact
from echoc.runtime.program import Program as LoadedProgram
from echoc.runtime.program import load

Arrays = dict[str, np.ndarray[Any, Any]]


def widened_arrays(arrays: Arrays) -> Arrays:
    return {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in arrays.items()}


def program_of(
    outputs: Mapping[str, Node],
    symbols: Mapping[str, tuple[int, int]] | None = None,
    next_states: Mapping[str, Node] | None = None,
) -> Program:
    """A program of one membrane whose in ports and states are those that the nodes mention."""
    after = dict(next_states or {})
    order = topological([*outputs.values(), *after.values()])
    ports = {n["name"]: Port(n["name"], "in", n.tensor) for n in order if n.op == "port"}
    states = {}
    for n in order:
        if n.op == "state":
            assert isinstance(n.type, StateType)
            states[n["name"]] = State(n["name"], n.type)
    outs = tuple(Port(name, "out", node.tensor) for name, node in outputs.items())
    rule = Rule("step", tuple(outputs.items()), tuple(after.items()))
    skin = Membrane("skin", tuple(states.values()), (*ports.values(), *outs), (rule,))
    return verify(Program(skin, dict(symbols or {})))


def port(name: str, *shape: Any, dtype: str = "f32") -> Node:
    return make("port", name=name, shape=shape, dtype=dtype)


def interpret(program: Program, inputs: Arrays, weights: Arrays | None = None, states: Arrays | None = None) -> Arrays:
    """The out ports by the op table's numpy meanings. Computed weights are computed first."""
    skin = program.skin
    values = dict(weights or {})
    for rule in skin.rules:
        if rule.name == RULE:
            computed, _ = run_rule(skin, rule, {}, values.__getitem__)
            values.update(computed)
    (step,) = (r for r in skin.rules if r.name != RULE)
    outputs, after = run_rule(skin, step, inputs, values.__getitem__, states)
    return {**outputs, **{f"next {name}": value for name, value in after.items()}}


def widened(program: Program) -> Program:
    """The same program with float64 wherever it computes with floats; casts to 16 bits still round."""
    done: dict[Node, Node] = {}

    def wide(dtype: Any) -> Any:
        return "f64" if DType(dtype).is_float else dtype

    def widen(root: Node) -> Node:
        for node in topological([root]):
            if node in done:
                continue
            attrs = dict(node.attrs)
            inputs = tuple(done[i] for i in node.inputs)
            if node.op == "random":
                done[node] = make("cast", make("random", *inputs), dtype="f64")
                continue
            if node.op == "cast" and attrs["dtype"] in ("f16", "bf16"):
                done[node] = make("cast", make("cast", *inputs, **attrs), dtype="f64")
                continue
            if "dtype" in attrs and node.op != "state":
                attrs["dtype"] = wide(attrs["dtype"])
            done[node] = make(node.op, *inputs, **attrs)
        return done[root]

    rule = program.skin.rules[0].map(widen)
    return program_of(dict(rule.outputs), program.symbols, dict(rule.next_states))


@dataclass
class Case:
    """A program with the arrays to run it on; `low` fills when it is lowered."""

    name: str
    program: Program
    inputs: Arrays
    weights: Arrays = field(default_factory=dict)
    weights_dtype: str = "f32"
    group: int = 32
    low: Lowered | None = None
    error: Exception | None = None


class Built:
    """Cases compiled together: one library for all kernels, one artifact per case."""

    def __init__(self, cases: Sequence[Case], folder: Path, level: str = "native") -> None:
        self.folder, self.level = folder, level
        self.cases = {c.name: c for c in cases}
        assert len(self.cases) == len(cases), "names of cases must differ"
        sources: dict[str, str] = {}
        for case in cases:
            try:
                case.low = lower(case.program, case.weights_dtype, case.group)
                sources |= case.low.sources
            except Exception as error:  # reported by the case's own test
                case.error = error
        self.library = _build(sources, level)

    def run(self, name: str, threads: int = 2, deterministic: bool = False) -> Arrays:
        """The out ports of one case by generated code."""
        return self.step(name, self.load(name, threads, deterministic), self.cases[name].inputs)

    def load(self, name: str, threads: int = 2, deterministic: bool = False) -> LoadedProgram:
        """One case on its device, its states empty."""
        case = self.cases[name]
        if case.error is not None:
            raise case.error
        assert case.low is not None
        path = self.folder / f"{name.replace('/', '_')}.echo"
        if not path.exists():
            values = Weights(case.program.skin, lookup(case.weights), {})
            write_artifact(
                path,
                case.low,
                values,
                cpu_code(case.low.sources, self.library, self.level),
                Provenance(),
                lambda stage, done, total: None,
            )
        return load(Artifact(path, verify=False), num_threads=threads, num_pages=64, deterministic=deterministic)

    def step(self, name: str, program: LoadedProgram, inputs: Arrays) -> Arrays:
        """One step with arrays as the reference device takes and gives them."""
        types = {p.name: p.type for p in self.cases[name].program.skin.ports}
        out = program.step({n: to_device(a, types[n].dtype) for n, a in inputs.items()})
        return {n: from_device(a, types[n].dtype) for n, a in out.items()}


def dequantised(case: Case) -> Arrays:
    """The weights as their packed form holds them."""
    assert case.low is not None
    values = dict(case.weights)
    for entry in case.low.packing.entries:
        sources = [case.weights[w["name"]] for w in entry.sources]
        stacks = [s if s.ndim == 3 else s[None] for s in sources]
        held = []
        for expert in zip(*stacks, strict=True):
            form = (entry.format, entry.group)
            packed = _native.pack(*form, [np.ascontiguousarray(e) for e in expert], entry.transposed)
            held.append(_native.unpack(*form, packed, len(expert), entry.n, entry.k))
        for i, w in enumerate(entry.sources):
            whole = np.stack([h[i].T if entry.transposed else h[i] for h in held])
            values[w["name"]] = whole.reshape(case.weights[w["name"]].shape)
    return values


def _build(sources: Mapping[str, str], level: str) -> bytes:
    """One library of many small kernels: most of a compiler's time goes into reading headers, so units are large."""
    before, build.BATCH = build.BATCH, 24
    try:
        return build.build_library(sources, level)
    finally:
        build.BATCH = before


def to_device(array: np.ndarray[Any, Any], dtype: DType) -> np.ndarray[Any, Any]:
    """An array in the element type that a port has in memory: bf16 as its bits."""
    if dtype is DType.BF16:
        return (np.array(cast_array(array, DType.BF16), order="C")[..., None].view(np.uint32)[..., 0] >> 16).astype(
            np.uint16
        )
    return np.array(array, order="C")


def cast_to_port(array: np.ndarray[Any, Any], dtype: DType) -> np.ndarray[Any, Any]:
    """A reference value with the rounding, overflow and underflow of a port's floats."""
    if not dtype.is_float:
        return array
    with np.errstate(over="ignore"):
        return cast_array(array, dtype)


def from_device(array: np.ndarray[Any, Any], dtype: DType) -> np.ndarray[Any, Any]:
    if dtype is DType.BF16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def random_array(generator: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray[Any, Any]:
    """Values that every op of the table takes: floats around 0, small ints of both signs, bools."""
    kind = DType(dtype)
    if kind is DType.BOOL:
        return generator.random(tuple(shape)) < 0.5
    if kind.is_int:
        low = 0 if kind is DType.U8 else -7
        return generator.integers(low, 8, tuple(shape)).astype(kind.numpy)
    return cast_array(generator.standard_normal(tuple(shape)) * 2.0, kind)
