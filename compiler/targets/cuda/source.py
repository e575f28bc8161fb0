"""CUDA C++ sources: what the printers of all families share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from echoc.compiler.ir import DType, Node
from echoc.compiler.ir.types import Dim
from echoc.compiler.passes.fuse import IN_MEMORY
from echoc.compiler.targets.cpu import emit
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.printer import Arguments, symbols_in
from echoc.compiler.targets.index import Index, Var, divided, unflatten

_NAME = re.compile(r"\b[A-Za-z_]\w*")
TEMPLATES = Path(__file__).parents[3] / "templates" / "cuda"
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    keep_trailing_newline=True, autoescape=False,
)  # fmt: skip
TYPES = {
    "f64": "double", "f32": "float", "f16": "echoc::f16_t", "bf16": "echoc::bf16_t", "i64": "int64_t",
    "i32": "int32_t", "i16": "int16_t", "i8": "int8_t", "u8": "uint8_t",
}  # fmt: skip
FLOATS = frozenset({"f32", "f16", "bf16"})


@dataclass(frozen=True)
class Device:
    """What an architecture can do: multiprocessors to fill, bytes of shared memory a block may have, whether copies in
    bulk and dependent launches exist."""

    architecture: str
    processors: int
    shared_bytes: int
    bulk: bool


DEVICES = {
    "sm_80": Device("sm_80", 108, 163 * 1024, False),
    "sm_90a": Device("sm_90a", 132, 227 * 1024, True),
}


class Scope(emit.Scope):
    """Statements that know which of their variables are quotient and remainder of one index."""

    emitter: Emitter

    def unflatten(self, offset: Index, shape: Sequence[Dim]) -> list[Index]:
        return unflatten(offset, shape, self.bind, self.divide)

    def divide(self, index: Index, size: Dim) -> tuple[Index, Index]:
        if not isinstance(size, int):
            return divided(index, size, self.bind)
        whole = Index(tuple((v, c // size) for v, c in index.terms if c % size == 0))
        rest = Index(tuple((v, c) for v, c in index.terms if c % size), index.const)
        if rest.range()[0] < 0:
            whole, rest = Index(), index
        quotient, remainder = divided(rest, size, self.bind)
        self.emitter.quotients[quotient.terms[0][0], remainder.terms[0][0]] = (rest, size)
        return whole + quotient, remainder

    def flatten(self, indices: Sequence[Index], shape: Sequence[Dim]) -> Index:
        out = super().flatten(indices, shape)
        for (quotient, remainder), (whole, size) in self.emitter.quotients.items():
            terms = dict(out.terms)
            factor = terms.get(remainder, 0)
            if factor and terms.get(quotient, 0) == factor * size:
                rest = Index(tuple((v, c) for v, c in out.terms if v not in (quotient, remainder)), out.const)
                out = rest + whole * factor
        return out


class Emitter(emit.Emitter):
    """Prints values as CUDA C++: memory is indexed through views that know how to read it."""

    arguments: Arguments  # type: ignore[assignment]

    def __init__(self, arguments: Arguments, members: Collection[Node], stored: Collection[Node]) -> None:
        super().__init__(arguments, Var("t", loops=False))  # type: ignore[arg-type]
        self.members = members
        self.stored = stored
        self.quotients: dict[tuple[Var, Var], tuple[Index, int]] = {}

    def scope(self) -> Scope:
        return Scope(self)

    def is_external(self, node: Node) -> bool:
        return node not in self.members and (node.op in IN_MEMORY or node in self.stored)

    def load(self, node: Node, index: tuple[Index, ...], scope: emit.Scope) -> str | None:
        if node.op == "arg" or node in self.places:
            return super().load(node, index, scope)
        if node.op == "reshape" or not self.is_external(node):
            return None
        return self.memory(node, scope.flatten(index, node.shape), scope)

    def memory(self, node: Node, offset: Index, scope: emit.Scope) -> str:
        """The text that reads an element from memory."""
        text = f"{self.arguments.get(node)}[{offset}]"
        if node.tensor.dtype is DType.BOOL:
            return f"({text} != 0)"
        return f"echoc::to_float({text})" if self.arguments.element(node) in ("f16", "bf16") else text

    def store(self, node: Node, offset: Index | str, value: str) -> str:
        """The statement that writes an element to memory."""
        pointer = self.arguments.get(node, written=True)
        element = self.arguments.element(node)
        return f"{pointer}[{offset}] = {f'echoc::to_{element}({value})' if element in ('f16', 'bf16') else value};"


def finish(
    template: str, listing: Iterable[str], arguments: Arguments, symbols: Sequence[str],
    grid: Sequence[tuple[Dim, int]], threads: int, device: Device, shared_bytes: int, schedule: Mapping[str, Any],
    **holes: Any,
) -> Kernel:  # fmt: skip
    """Render a template; the kernel's name is its family and a hash of the source."""
    views, parameters = [], []
    for argument in arguments.items:
        kind = TYPES[argument.element]
        if argument.written:
            parameters.append(f"{kind}* {argument.name}")
        elif isinstance(argument.key, Node):
            parameters.append(f"const {kind}* {argument.name}_")
            view = "Constant" if argument.key.op == "weight" else "Fresh"
            views.append(f"const echoc::{view}<{kind}> {argument.name}{{{argument.name}_}};")
        else:
            parameters.append(f"const {kind}* {argument.name}")
    draft = ENVIRONMENT.get_template(f"{template}.cu.j2").render(
        name="NAME_",
        ir=list(listing),
        parameters="PARAMETERS_",
        views=views,
        threads=threads,
        bulk=device.bulk,
        **holes,
    )
    # Kernels that differ in nothing but the symbols of their launches are one kernel.
    used = symbols_in([x for x in draft.splitlines() if not x.startswith("//")], list(symbols))
    sizes = {name: f"size{i}" for i, name in enumerate(used)}
    parameters += [f"int {size}" for size in sizes.values()]
    source = _NAME.sub(lambda m: sizes.get(m[0], m[0]), draft).replace("PARAMETERS_", ", ".join(parameters))
    name = f"{template}_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    return Kernel(
        name, template, "cuda", source.replace("NAME_", name), tuple(arguments.items), tuple(used), tuple(grid),
        threads // 32, dependent=device.bulk, schedule={**schedule, "shared_bytes": shared_bytes},
    )  # fmt: skip
