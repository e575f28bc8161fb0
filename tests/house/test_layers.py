"""Imports between rooms go down only, and the thin runtime stays thin (DESIGN.md, Layout)."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("bench", "compiler", "kernels", "membranes", "runtime", "templates")
HEAVY = ("torch", "transformers", "triton", "safetensors", "onnx", "jax")

# What each room may import besides itself, `echoc.errors` and `echoc._native`.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "kernels": frozenset(),
    "templates": frozenset(),
    "runtime": frozenset(),
    "compiler": frozenset({"kernels", "templates", "runtime.artifact"}),
    "membranes": frozenset({"compiler", "kernels", "templates", "runtime.artifact"}),
    "bench": frozenset({"compiler", "runtime", "membranes"}),
}
SHARED = frozenset({"errors", "_native"})


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported(path: Path, *, module_level: bool = False) -> set[str]:
    """Dotted names that a source file imports, relative imports made absolute."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = ["echoc", *path.relative_to(ROOT).parent.parts] if path.is_relative_to(ROOT) else []
    nodes = _executed_on_import(tree) if module_level else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def _executed_on_import(tree: ast.Module) -> list[ast.AST]:
    """Nodes that run when the module is imported: not bodies of functions, not `if TYPE_CHECKING`."""
    found: list[ast.AST] = []
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        found.append(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            queue.extend(node.orelse)
            continue
        queue.extend(ast.iter_child_nodes(node))
    return found


def violations(room: str, names: set[str]) -> list[str]:
    """Imports of `echoc.X` that the room may not make."""
    allowed = MAY_IMPORT[room] | SHARED | {room}
    inside = (name.removeprefix("echoc.") for name in names if name.startswith("echoc."))
    return sorted(
        name for name in inside if not any(name == ok or name.startswith(ok + ".") for ok in allowed) and "." in name
    )


@pytest.mark.parametrize("room", ROOMS)
def test_imports_between_rooms_go_down_only(room: str) -> None:
    wrong = {str(path.relative_to(ROOT)): violations(room, imported(path)) for path in sources(room)}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize("room", ["compiler", "runtime", "bench"])
def test_the_room_has_sources(room: str) -> None:
    assert sources(room)


def test_a_forbidden_import_is_seen() -> None:
    assert violations("runtime", {"echoc.compiler.api.compile"}) == ["compiler.api.compile"]
    assert violations("compiler", {"echoc.membranes.psystem"}) == ["membranes.psystem"]
    assert violations("membranes", {"echoc.compiler.ir.node", "echoc.errors.EchoError"}) == []


@pytest.mark.parametrize("room", ["runtime", "kernels", "templates"])
def test_no_heavy_library_in_the_thin_rooms(room: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): heavy
        for path in sources(room)
        if path.parent != ROOT / "kernels" / "triton"  # device functions, read by the compiler that this library is
        and (heavy := sorted(name for name in imported(path) if name.split(".")[0] in HEAVY))
    }
    assert wrong == {}


def test_the_face_imports_rooms_only_when_asked() -> None:
    face = [*(ROOT / "src" / "echoc").glob("*.py"), *(ROOT / "src" / "echoc" / "cli").glob("*.py")]
    assert face
    rooms_above = tuple(f"echoc.{room}" for room in ROOMS)
    wrong = {
        path.name: early
        for path in face
        if (early := sorted(n for n in imported(path, module_level=True) if n.startswith(rooms_above + HEAVY)))
    }
    assert wrong == {}


def test_rooms_have_no_init_of_their_own() -> None:
    assert [room for room in ROOMS if (ROOT / room / "__init__.py").exists()] == []


def test_every_room_is_linked_into_the_package() -> None:
    for room in ROOMS:
        link = ROOT / "src" / "echoc" / room
        assert link.is_symlink(), f"{link} is not a link"
        assert link.resolve() == ROOT / room


_THIN_IMPORT = """
import json, sys, time
start = time.perf_counter()
import echoc
import echoc.runtime.llm
echoc.LLM
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(name.split(".")[0] for name in sys.modules)}))
"""


def test_importing_the_runtime_pulls_in_no_framework(record_property: Callable[[str, object], None]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _THIN_IMPORT], capture_output=True, text=True, env=os.environ, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    record_property("import_seconds", answer["seconds"])
    print(f"import echoc and its runtime: {answer['seconds']:.3f} s")
    assert set(answer["modules"]).isdisjoint({*HEAVY, "pandas", "scipy"})
    assert not any(name.startswith("echoc.compiler") for name in answer["modules"])
