"""What the wheel and the sdist carry, and what a thin install asks for."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("bench", "compiler", "kernels", "membranes", "runtime", "templates")
CARRIED = {".py", ".h", ".cpp", ".j2"}
COMMIT = subprocess.run(
    ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.strip()


def built(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Path:
    """A wheel or an sdist made from the files that git knows, without fetching a build environment."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp(kind)
    archive = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    call = f"from scikit_build_core import build; print(build.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", call], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return out / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory, "wheel")


def at_head(folder: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", COMMIT, folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


def test_the_wheel_carries_every_room(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"echoc/{path}" for room in ROOMS for path in at_head(room + "/") if Path(path).suffix in CARRIED}
    assert wanted
    assert sorted(wanted - names) == []
    assert {"echoc/__init__.py", "echoc/py.typed", "echoc/cli/__init__.py", "echoc/errors.py"} <= names


def test_the_wheel_carries_the_extension_and_the_pocket_model(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if re.fullmatch(r"echoc/_native\.[^/]*so", name)] != []
    pocket = {name.removeprefix("echoc/pocket/") for name in names if name.startswith("echoc/pocket/")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= pocket


def test_the_wheel_puts_one_name_into_site_packages(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"echoc"}


def test_an_installed_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    """The wheel alone on the path: rooms, data and the extension are found in it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        # The redirection of an editable install would answer first.
        "sys.meta_path = [f for f in sys.meta_path if type(f).__module__ != '_editable_skbc_echoc']; "
        "import echoc, echoc._native, echoc.runtime.llm, "
        "echoc.compiler.ir.node as node; assert node.__file__.startswith(sys.argv[1]), node.__file__; "
        "assert echoc._native.__file__.startswith(sys.argv[1]); print('imported')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout == "imported\n", done.stderr


def test_the_sdist_keeps_rooms_once_and_links_to_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    with tarfile.open(built(tmp_path_factory, "sdist")) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    for room in ROOMS:
        assert members[f"src/echoc/{room}"].issym()
        assert {path for path in at_head(room + "/") if Path(path).suffix in CARRIED} <= set(members)
    assert not [name for name in members if name.endswith(".so")]


def test_a_thin_install_asks_for_no_framework() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    heavy = re.compile(r"torch|transformers|triton|safetensors|onnx")
    assert [name for name in project["project"]["dependencies"] if heavy.match(name)] == []
    assert [name for name in project["build-system"]["requires"] if heavy.match(name)] == []


def test_every_direct_dependency_has_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    pinned = re.findall(r"^([a-z0-9-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    names = {re.match(r"[A-Za-z0-9_.-]+", requirement).group().lower() for requirement in asked}  # type: ignore[union-attr]
    assert sorted(names - set(pinned)) == []
