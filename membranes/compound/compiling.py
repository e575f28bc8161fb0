"""`compile`: a topology goes in, one artifact comes out: the contents' artifacts as members, the wiring as data."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import echoc
from echoc.compiler.artifact import SCHEMA, ArtifactWriter
from echoc.compiler.bundle import Progress
from echoc.compiler.ir import Membrane as IRMembrane
from echoc.compiler.ir.text import show
from echoc.compiler.targets.backends import Cpu, backend
from echoc.errors import CompileError, EchoError

from .checking import Path as TreePath
from .checking import Route, check_wires, routes
from .contents import Content, resolve
from .lowering import lower
from .reading import read
from .topology import Membrane, Port

if TYPE_CHECKING:
    from echoc.runtime.artifact import Artifact

_CHUNK = 1 << 22


def compile(
    source: Membrane | str | os.PathLike[str],
    *,
    target: str = "cpu",
    output: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compile a compound system.

    Args:
        source: a Membrane, or a topology file (.toml).
        target: `cpu`, `cpu:LEVEL`, `cuda:LEVEL` or `rocm:LEVEL` as for models; for all contents but those that are
            artifacts already.
        output: the artifact's path; default: the file's or the membrane's name with `.echo` in the working folder.
        progress: called as progress(stage, done, total).
    Returns: the opened artifact; `echoc.runtime.compound.CompoundProgram` runs it.
    Raises: TopologyError for what crosses a boundary undeclared, for wires and ports that do not fit and for contents
        that cannot be used; CompileError for contents that do not compile.
    """
    from echoc.runtime.artifact import Artifact

    report = progress or (lambda stage, done, total: None)
    path = None if isinstance(source, Membrane) else Path(os.fspath(source))
    root = source if isinstance(source, Membrane) else read(source)
    if root.kind:
        root = _wrapped(root)
    where = (
        Path(output) if output is not None else Path(f"{root.name if path is None else path.name.split('.')[0]}.echo")
    )
    joints = check_wires(root)
    found = routes(root, joints)
    leaves = [(at, membrane) for at, membrane in root.walk() if membrane.kind]
    contents: dict[TreePath, Content] = {}
    for i, (at, membrane) in enumerate(leaves):
        report("read", i, len(leaves))
        contents[at] = resolve(membrane)
    program = lower(root, joints, contents)
    chosen = backend(target)
    device = ("cpu", chosen.level) if isinstance(chosen, Cpu) else (chosen.level.device.vendor, chosen.level.name)
    with tempfile.TemporaryDirectory(prefix="echoc-") as folder:
        members = _build(leaves, contents, Path(folder), target, report)
        manifest: dict[str, Any] = {
            "schema": SCHEMA, "echoc": echoc.__version__,
            "source": {"kind": "compound", "name": root.name, **({} if path is None else {"file": path.name})},
            "tools": _tools(Path(folder), members),
            "target": {"device": device[0], "level": device[1], "features": []},
            "membrane": _described(program.skin), "symbols": [], "ports": [], "weights": [], "random_weights": None,
            "variants": [], "model": {}, "page_size": 0, "states": [],
            "compound": _wiring(root, leaves, contents, members, found),
        }  # fmt: skip
        with ArtifactWriter(where) as writer:
            for member in sorted(set(members.values())):
                with (Path(folder) / member).open("rb") as file:
                    writer.member(f"membranes/{member}", iter(lambda: file.read(_CHUNK), b""))
            writer.member("program.eir", [show(program).encode()])
            writer.finish(manifest)
    return Artifact(where, verify=False)


def _tools(folder: Path, members: dict[TreePath, str]) -> dict[str, Any]:
    """Whatever made one of the members."""
    from echoc.runtime.artifact import Artifact

    tools: dict[str, Any] = {}
    for member in sorted(set(members.values())):
        tools |= Artifact(folder / member, verify=False).manifest.raw.get("tools", {})
    return tools


def _wrapped(content: Membrane) -> Membrane:
    """A membrane around one that holds a content, with the same ports."""
    ports = {d: {p.name: p.type for p in content.of(d)} for d in ("in", "out")}
    outer = Membrane(content.name, ports["in"], ports["out"], place=content.place)
    outer.add(content)
    for name in ports["in"]:
        outer.wire(name, f"{content.name}.{name}", place=content.place)
    for name in ports["out"]:
        outer.wire(f"{content.name}.{name}", name, place=content.place)
    return outer


def _build(leaves: list[tuple[TreePath, Membrane]], contents: dict[TreePath, Content], folder: Path, target: str,
           report: Progress) -> dict[TreePath, str]:  # fmt: skip
    """Compiles every different content once; the file of each leaf."""
    built: dict[object, str] = {}
    members: dict[TreePath, str] = {}
    for i, (at, membrane) in enumerate(leaves):
        content = contents[at]
        report("build", i, len(leaves))
        if content.key not in built:
            name = f"{len(built)}-{membrane.name}.echo"
            try:
                content.build(folder / name, target)
            except EchoError as error:
                raise CompileError(f"{'/'.join(at)}: its {membrane.kind} does not compile: {error}") from error
            built[content.key] = name
        members[at] = built[content.key]
    report("build", len(leaves), len(leaves))
    return members


def _wiring(root: Membrane, leaves: list[tuple[TreePath, Membrane]], contents: dict[TreePath, Content],
            members: dict[TreePath, str], found: list[Route]) -> dict[str, Any]:  # fmt: skip
    """What the runtime needs: contents with their ports by number, and the routes between them."""
    numbers = {at: i for i, (at, _) in enumerate(leaves)}
    entries = [
        {
            "path": "/".join(at), "kind": contents[at].kind, "member": f"membranes/{members[at]}", "steps": m.steps,
            "in": [_port(p) for p in m.of("in")], "out": [_port(p) for p in m.of("out")],
            "options": contents[at].options,
        }
        for at, m in leaves
    ]  # fmt: skip
    trees = dict(leaves) | {(): root}
    slots = {(at, d): {p.name: i for i, p in enumerate(m.of(d))} for at, m in trees.items() for d in ("in", "out")}
    listed = []
    for route in found:
        (source, out), (end, into) = route.source, route.target
        listed.append(
            {
                "from": [numbers.get(source, -1), slots[source, "out" if source else "in"][out]],
                "to": [numbers.get(end, -1), slots[end, "in" if end else "out"][into]],
                "steps": list(route.steps),
            }
        )
    return {
        "in": [_port(p) for p in root.of("in")], "out": [_port(p) for p in root.of("out")], "membranes": entries,
        "routes": listed,
    }  # fmt: skip


def _port(port: Port) -> dict[str, Any]:
    kind = port.type
    entry: dict[str, Any] = {"name": port.name, "kind": kind.kind}
    if kind.kind == "tensor":
        entry |= {"dtype": kind.dtype, "size": kind.size}
    return entry | ({"objects": list(kind.objects)} if kind.kind == "objects" else {})


def _described(membrane: IRMembrane) -> dict[str, Any]:
    return {
        "name": membrane.name, "states": [s.name for s in membrane.states], "rules": [r.name for r in membrane.rules],
        "ports": [p.name for p in membrane.ports], "children": [_described(c) for c in membrane.children],
    }  # fmt: skip
