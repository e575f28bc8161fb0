"""Systems whose membranes stay (population dynamics, chemical systems): from rules to a compiled kernel and its layout.

    generated = generate(system)
    library = build(generated)              # bytes of a shared library
    Runs(library, generated.layout)         # echoc.runtime.runs runs it

The layout is JSON-able:

    mode        "dcba" or "gillespie"
    entry       the function of the library, called as kernels/cpu/runs.h says
    size        length of the vector of counts; behind them, whether each trigger of `events` holds, and
                what waits for its delay
    events      [[name, cell], ...]: the events of the system in their membranes
    cells       [{label, name, parent (index or null), charge, objects: {object: place in the vector}}]; the last one is
                the environment, and has the label "environment" and no parent
    initial     [[place, count], ...]: the start, zero elsewhere
    rules       the rules as text, in the system's order
    instances   [[rule, holder, inner membranes..., membranes sent to...], ...]: what the entries of `applications`
                count; -1 is the environment
    scratch_bytes   working memory of one run
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from echoc.compiler.ir.algebra import Mode, System
from echoc.compiler.targets.cpu.build import Progress, build_library
from echoc.compiler.targets.cpu.kernels import ENVIRONMENT
from echoc.compiler.targets.cpu.rewriting import dcba, gillespie
from echoc.compiler.targets.cpu.rewriting.ground import Ground, Place, ground
from echoc.compiler.targets.cpu.rewriting.notation import show_rule
from echoc.errors import CompileError

FAMILIES: Mapping[Mode, Callable[[Ground], dict[str, Any]]] = {
    Mode.DCBA: dcba.tables,
    Mode.GILLESPIE: gillespie.tables,
}
MAX_COMMENT = 5000


@dataclass(frozen=True)
class Generated:
    """Sources by name (for `build_library`), the function to call, and what its vector means (see the module)."""

    sources: Mapping[str, str]
    entry: str
    layout: Mapping[str, Any]


def generate(system: System, inputs: Iterable[tuple[int, str]] = ()) -> Generated:
    """The kernel of a system in mode DCBA or GILLESPIE.

    Args:
        system: validated.
        inputs: (cell, object) pairs that the caller may put into the vector though no rule makes them; cell
            `len(system.cells)` is the environment. Other places exist only where the rules can bring something.
    Raises: CompileError naming the rule and its place, for what the mode has no meaning for.
    """
    if system.mode not in FAMILIES:
        known = " and ".join(FAMILIES)
        raise CompileError(f"the system {system.name or system.model!r} is in mode {system.mode}, wanted {known}")
    places: list[Place] = list(inputs)
    for cell, _ in places:
        if not 0 <= cell <= len(system.cells):
            raise CompileError(f"an input names the cell {cell}; the system has 0 to {len(system.cells)}")
    try:
        bound = ground(system, places)
        holes = FAMILIES[system.mode](bound)
    except RecursionError:
        raise CompileError("a guard or a rate law is nested too deeply; wanted fewer levels") from None
    template = ENVIRONMENT.get_template(f"{system.mode}.cpp.j2")
    common = {
        "comment": _comment(system), "places": len(bound.places), "cells": len(bound.charges),
        "instance_count": len(bound.instances),
    }  # fmt: skip
    draft = template.render(name=str(system.mode), **common, **holes)
    name = f"{system.mode}_{hashlib.sha256(draft.encode()).hexdigest()[:8]}"
    source = template.render(name=name, **common, **holes)
    return Generated({name: source}, name, _layout(bound, name, holes))


def build(generated: Generated, level: str = "native", progress: Progress | None = None) -> bytes:
    """The shared library of a generated kernel. Raises CompileError as `build_library` does."""
    return build_library(generated.sources, level, progress, tiles=False)


def _comment(system: System) -> list[str]:
    lines = [show_rule(rule) for rule in system.rules[:MAX_COMMENT]]
    if len(system.rules) > MAX_COMMENT:
        lines.append(f"and {len(system.rules) - MAX_COMMENT} more")
    return lines


def _layout(bound: Ground, entry: str, holes: Mapping[str, Any]) -> dict[str, Any]:
    system, start = bound.system, [*bound.counts, *holes.get("hidden", ())]
    objects: list[dict[str, int]] = [{} for _ in bound.charges]
    for (cell, name), place in bound.places.items():
        objects[cell][name] = place
    cells: list[dict[str, Any]] = [
        {"label": c.label, "name": c.name, "parent": c.parent, "charge": c.charge, "objects": objects[i]}
        for i, c in enumerate(system.cells)
    ]
    cells.append({"label": "environment", "name": "", "parent": None, "charge": 0, "objects": objects[-1]})
    return {
        "mode": str(system.mode),
        "entry": entry,
        "size": len(start),
        "cells": cells,
        "initial": [[place, count] for place, count in enumerate(start) if count],
        "rules": [show_rule(rule) for rule in system.rules],
        "instances": [[i.rule, *(c if c < len(system.cells) else -1 for c in i.cells)] for i in bound.instances],
        "events": [[system.events[e].name or system.events[e].label, c] for e, c in bound.events],
        "scratch_bytes": holes["scratch_bytes"],
    }
