"""From groups to Triton sources: one rendering per family, through the templates."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from echoc.compiler.ir import Node
from echoc.compiler.ir.types import Dim
from echoc.compiler.passes.fuse import Group, root
from echoc.compiler.passes.pack import Packing
from echoc.compiler.targets.cpu.kernels import listing
from echoc.compiler.targets.gpu import attention, matmul
from echoc.compiler.targets.gpu.blocks import Parts
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.printer import Arguments, Workspace, symbols_in
from echoc.compiler.targets.gpu.rows import RowKernel
from echoc.errors import CompileError

_NAME = re.compile(r"\b[A-Za-z_]\w*")
_ASSIGNED = re.compile(r"\s*(?:for\s+)?([A-Za-z_][\w\s,]*?)\s*(?:[-+*&|]?=(?!=)|\bin\b)")
_USED = re.compile(r"\.([A-Za-z_]\w*)|\b([A-Za-z_]\w*)(?=\()")  # attributes, functions
TEMPLATES = Path(__file__).parents[3] / "templates" / "triton"
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    keep_trailing_newline=True, autoescape=False,
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    """What the renderers may count on. `dependent`: kernels can wait for the launches before them by themselves.
    `streams`: the name of an architecture whose steps of few tokens stream weights through shared memory (CUDA).
    `tensor_maps`: it copies boxes of a matrix to shared memory by itself (TMA)."""

    vendor: str  # "cuda" or "rocm"
    warp: int = 32
    dependent: bool = False
    streams: str = ""
    tensor_maps: bool = False


class Renderer:
    """Renders groups for one program: knows the symbols, the packing and which nodes lie in buffers.

    `bounds` are the highest values of the symbols; `stored` the nodes that some kernel writes to memory; `boundary`
    those whose memory is a port's; `narrow` the intermediates that lie in memory as bf16.
    """

    def __init__(self, bounds: Mapping[str, int], packing: Packing, stored: set[Node], boundary: frozenset[Node],
                 device: Device) -> None:  # fmt: skip
        self.bounds = dict(bounds)
        self.symbols = list(bounds)
        self.packing = packing
        self.stored = stored
        self.boundary = boundary
        self.device = device
        self.narrow: set[Node] = set()
        self.routes: dict[object, tuple[Workspace, Workspace]] = {}  # rows sorted by expert, by their ids and variant

    def announce(self, groups: Sequence[Group]) -> None:
        """Find the intermediates that only matmuls with 16-bit and quantised weights read: nobody misses their bits."""
        readers: dict[Node, set[str]] = {}
        for group in groups:
            for node in group.nodes:
                matmul = next((m for m in group.matmuls if m.node is node), None)
                for operand in node.inputs:
                    source = root(operand)
                    rounded = matmul is not None and source is root(matmul.x) and self.packing.of(group).format != "f32"
                    if source not in group.nodes or group.family == "rows":
                        readers.setdefault(source, set()).add("rounded" if rounded else "whole")
        self.narrow = {n for n, kinds in readers.items() if kinds == {"rounded"} and n.tensor.dtype == "f32"}
        self.narrow = (self.narrow & self.stored) - self.boundary

    def arguments(self) -> Arguments:
        return Arguments(self.boundary, self.narrow)

    def external(self, node: Node) -> bool:
        """Whether a node lies in memory that another kernel has written."""
        return node in self.stored

    def kernels(self, run: Sequence[Group], deterministic: bool, form: int | None) -> list[Kernel]:
        """The kernels of groups that share launches, in their order, for steps of at most `form` tokens (None: any)."""
        group = run[0]
        if group.family == "rows":
            return self.rows(group)
        if group.family in ("gemm", "experts"):
            return matmul.render(self, run, deterministic, form)
        if group.family == "append":
            return attention.append(self, group)
        return attention.attend(self, group, deterministic, form)

    def rows(self, group: Group, parts: Parts | None = None) -> list[Kernel]:
        """The kernel of a group of rows; `parts` are products that it sums itself."""
        kernel = RowKernel(group, self, parts)
        body = kernel.render()
        return [
            self.finish(
                "rows", listing(group), kernel.arguments, ((group.domain, kernel.rows),), num_warps=kernel.num_warps,
                dependent=True, schedule={"rows": kernel.rows}, body=body,
            )
        ]  # fmt: skip

    def finish(
        self, family: str, ir: list[str], arguments: Arguments, grid: tuple[tuple[Dim, int], ...], num_warps: int = 4,
        num_stages: int = 1, dependent: bool = False, schedule: Mapping[str, Any] | None = None, **holes: Any,
    ) -> Kernel:  # fmt: skip
        """The kernel that the template of a family makes of its holes; kernels with equal sources are one kernel."""
        dependent = dependent and self.device.dependent
        holes |= {"name": "NAME_", "ir": ir, "arguments": arguments.items, "dependent": dependent}
        template = ENVIRONMENT.get_template(f"{family}.py.j2")
        draft = template.render(symbols=[], **holes)
        code = [line for line in draft.splitlines() if not line.startswith("#")]
        symbols = symbols_in(code, self.symbols)
        if clash := sorted(_own_names(code).intersection(symbols)):
            raise CompileError(
                f"the symbol {clash[0]!r} has a name that kernels of the family {family} use; rename it, say to "
                f"{clash[0].upper() + '_'!r}"
            )
        # kernels that differ in the symbols that they are launched with are one kernel
        sizes = {name: f"size{i}" for i, name in enumerate(symbols)}
        source = _NAME.sub(lambda m: sizes.get(m[0], m[0]), template.render(symbols=symbols, **holes))
        digest = hashlib.sha256(f"{source}{num_warps}{num_stages}".encode()).hexdigest()[:8]
        name = f"{family}_{digest}"
        return Kernel(
            name, family, "triton", source.replace("NAME_", name), tuple(arguments.items), symbols, grid, num_warps,
            num_stages, dependent, schedule or {},
        )  # fmt: skip


def _own_names(code: Sequence[str]) -> set[str]:
    """The names that a kernel's code gives or calls by itself."""
    found = {name for line in code for match in _USED.findall(line) for name in match}
    for line in code:
        if line.startswith(("import ", "from ")):
            found.update(_NAME.findall(line))
        elif match := _ASSIGNED.match(line):
            found.update(_NAME.findall(match[1]))
    return found
