"""Runs of systems whose membranes stay (population dynamics, chemical systems) on GPUs: the CPU's kernel, a thread of
the device for each run, so that the same seeds give the same runs.

The arrays of population dynamics, whose runs walk the same tables in step, lie interleaved; those of chemical systems,
whose runs go their own ways, one behind the other.
"""

from __future__ import annotations

from typing import Any

import jinja2

from echoc.compiler.bundle import Code, Progress
from echoc.compiler.targets.cpu.build import KERNELS
from echoc.compiler.targets.cpu.rewriting.runs import Generated
from echoc.compiler.targets.gpu import weights
from echoc.compiler.targets.gpu.cpp import build_cpp, versions
from echoc.compiler.targets.gpu.levels import Level

STRIDES = {"dcba": 32, "gillespie": 1}
"""How many runs lie interleaved, by mode; a warp of every vendor is a multiple or they are alone."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(KERNELS.parent / "templates" / "gpu"), undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip


def code(generated: Generated, level: Level, report: Progress) -> tuple[Code, dict[str, Any]]:
    """The machine code of a generated kernel for a GPU, and what the layout says of it besides: `kernel` (among the
    manifest's binaries) and `stride`.

    Raises CompileError as `build_cpp` does, and for kernels that need more than the architecture has.
    """
    ((name, text),) = generated.sources.items()
    stride, entry = STRIDES[str(generated.layout["mode"])], f"{name}_runs"
    threads = level.device.warp
    source = _TEMPLATES.get_template("runs.cpp.j2").render(
        stride=stride, source=text, threads=threads, entry=entry, name=generated.entry
    )
    report("compile kernels", 0, 1)
    built = build_cpp(source, [entry], level, threads=threads, blocks=1)
    report("compile kernels", 1, 1)
    image, path = f"kernels/{name}.{level.suffix}", f"kernels/{name}.cpp"
    found = Code(
        target={"device": level.device.vendor, "level": level.runs_on or level.name},
        kernels={
            "binaries": {entry: {"member": image, "entry": entry, "extra_pointers": 0, **built.facts()[entry]}},
            "sources": {name: path},
        },
        members={image: built.image, path: source.encode()}, tools={"clang": versions(level.device.vendor)},
        nbytes=weights.nbytes, parts=weights.parts,
    )  # fmt: skip
    return found, {"kernel": entry, "stride": stride}
