"""P systems to artifacts: a program of rewriting rules in, one `.echo` file out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import echoc
from echoc.compiler.artifact import SCHEMA, ArtifactWriter
from echoc.compiler.bundle import Progress, cpu_code
from echoc.compiler.ir import Membrane, Program
from echoc.compiler.ir.algebra import Mode, System, bag
from echoc.compiler.ir.systems import system_of
from echoc.compiler.ir.text import show
from echoc.compiler.ir.verify import verify
from echoc.compiler.targets.backends import Cpu, Gpu, backend
from echoc.compiler.targets.cpu.build import build_library
from echoc.compiler.targets.cpu.rewriting import population, runs
from echoc.compiler.targets.gpu import cpp
from echoc.compiler.targets.gpu.runs import runs_code
from echoc.compiler.targets.gpu.systems import population_code

if TYPE_CHECKING:
    from echoc.runtime.artifact import Artifact

ENGINES = {Mode.DCBA: "runs", Mode.GILLESPIE: "runs"}  # membranes that stay; all others are populations


def compile_system(
    program: Program,
    *,
    target: str = "cpu",
    output: str | os.PathLike[str],
    source: Mapping[str, Any] | None = None,
    incoming: Sequence[tuple[int, str]] = (),
    progress: Progress | None = None,
) -> Artifact:
    """Compile the program of a P system (`echoc.compiler.ir.systems.program_of`).

    Args:
        target: `cpu`, `cpu:LEVEL`, `cuda:LEVEL` or `rocm:LEVEL` as for models.
        output: the artifact's path.
        source: what the manifest says of where it comes from.
        incoming: (cell, object) pairs that `SystemRun.put` brings in from outside, so that kernels reckon with them.
        progress: called as progress(stage, done, total).
    Returns: the opened artifact; `echoc.load` runs it.
    Raises: CompileError.
    """
    from echoc.runtime.artifact import Artifact

    report = progress or (lambda stage, done, total: None)
    chosen = backend(target)
    if isinstance(chosen, Cpu):
        chosen.check()
    else:
        cpp.versions(chosen.level.device.vendor)
    verify(program)
    system = system_of(program)
    report("generate", 0, 1)
    engine = ENGINES.get(system.mode, "population")
    primed, added = _primed(system, incoming)
    generated = runs.generate(primed) if engine == "runs" else population.generate(primed)
    layout = _without(dict(generated.layout), added)
    report("generate", 1, 1)
    code = _code(generated, engine, chosen, report)
    manifest = {
        "schema": SCHEMA,
        "echoc": echoc.__version__,
        "source": {"name": system.name, "model": system.model, **(source or {})},
        "tools": dict(code.tools),
        "target": dict(code.target),
        "membrane": _described(program.skin),
        "symbols": [], "ports": [], "weights": [], "random_weights": None, "variants": [], "model": {}, "page_size": 0,
        "states": [],
        "kernels": dict(code.kernels),
        "system": {
            "engine": engine, "mode": str(system.mode), "priority": str(system.priority),
            "groups": _bounds(system), "features": dict(system.features), "layout": layout,
        },
    }  # fmt: skip
    path = Path(output)
    with ArtifactWriter(path) as writer:
        for name, data in code.members.items():
            writer.member(name, [data])
        writer.member("program.eir", [show(program).encode()])
        writer.finish(manifest)
    return Artifact(path, verify=False)


def _code(generated: Any, engine: str, chosen: Cpu | Gpu, report: Progress) -> Any:
    """Machine code of a system's kernel, with the entries of the manifest that say what it is."""
    if isinstance(chosen, Cpu):
        library = build_library(generated.sources, chosen.level, report, tiles=False)
        return cpu_code(generated.sources, library, chosen.level)
    if engine == "runs":
        return runs_code(generated, chosen.level, report)
    return population_code(generated, chosen.level, report)


def _primed(system: System, incoming: Sequence[tuple[int, str]]) -> tuple[System, list[tuple[int, str]]]:
    """The system with one of each incoming object that its start lacks, and which those are."""
    added = [(cell, obj) for cell, obj in dict.fromkeys(incoming) if obj not in dict(system.cells[cell].objects)]
    cells = list(system.cells)
    for cell, obj in added:
        cells[cell] = replace(cells[cell], objects=bag((*cells[cell].objects, obj)))
    return replace(system, cells=tuple(cells)), added


def _without(layout: dict[str, Any], added: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """The layout of a primed system with the start of the system itself."""
    if "initial" in layout:
        places = {layout["cells"][cell]["objects"][obj] for cell, obj in added}
        return layout | {"initial": [pair for pair in layout["initial"] if pair[0] not in places]}
    numbers = {(cell, layout["objects"].index(obj)) for cell, obj in added}
    cells = [
        [*cell[:4], [pair for pair in cell[4] if (i, pair[0]) not in numbers]] for i, cell in enumerate(layout["cells"])
    ]
    return layout | {"cells": cells}


def _described(membrane: Membrane) -> dict[str, Any]:
    """A membrane and what is inside it, as the manifest says it."""
    return {
        "name": membrane.name, "states": [s.name for s in membrane.states], "rules": [r.name for r in membrane.rules],
        "ports": [p.name for p in membrane.ports], "children": [_described(c) for c in membrane.children],
    }  # fmt: skip


def _bounds(system: System) -> list[dict[str, Any]]:
    """The groups of rules: how many rules, applied how."""
    return [{"rules": len(g.rules), "bound": str(g.bound), "limit": g.limit} for g in system.groups]
