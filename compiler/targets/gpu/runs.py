"""Runs of systems whose membranes stay (population dynamics, chemical systems) on GPUs: the CPU's kernel, a thread of
the device for each run, so that the same seeds give the same runs.

What runs of population dynamics work in, as they walk the same tables in step, lies interleaved; what runs of chemical
systems work in, as they go their own ways, one behind the other.
"""

from __future__ import annotations

import jinja2

from echoc.compiler.bundle import Code, Progress
from echoc.compiler.targets.cpu.build import KERNELS
from echoc.compiler.targets.cpu.rewriting.runs import Generated
from echoc.compiler.targets.gpu import weights
from echoc.compiler.targets.gpu.cpp import build_cpp, versions
from echoc.compiler.targets.gpu.levels import Level

ABI = 2  # of kernels/gpu/runs.h: struct Batch and what its fields mean
STRIDES = {"dcba": 32, "gillespie": 1}
"""How many runs are interleaved, by mode; a warp of every vendor is a multiple or they are alone."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(KERNELS.parent / "templates" / "gpu"), undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip


def runs_code(generated: Generated, level: Level, report: Progress) -> Code:
    """The machine code of a generated kernel for a GPU; the manifest's entry of it says which `stride` its runs have.

    Raises: CompileError as `build_cpp` does, and for kernels that need more than the architecture has.
    """
    ((name, text),) = generated.sources.items()
    stride, threads = STRIDES[str(generated.layout["mode"])], level.device.warp
    source = _TEMPLATES.get_template("runs.cpp.j2").render(stride=stride, source=text, threads=threads, name=name)
    report("compile kernels", 0, 1)
    built = build_cpp(source, [name], level, threads=threads, blocks=1)
    report("compile kernels", 1, 1)
    image, path, facts = f"kernels/{name}.{level.suffix}", f"kernels/{name}.cpp", built.facts()[name]
    binary = {
        "member": image, "entry": name, "extra_pointers": 0, **facts, "shared_bytes": 0,
        "static_shared_bytes": facts["shared_bytes"], "stride": stride, "abi": ABI,
    }  # fmt: skip
    return Code(
        target={"device": level.device.vendor, "level": level.name},
        kernels={"binaries": {name: binary}, "sources": {name: path}},
        members={image: built.image, path: source.encode()}, tools={"compiler": versions(level.device.vendor)},
        nbytes=weights.nbytes, parts=weights.parts,
    )  # fmt: skip
