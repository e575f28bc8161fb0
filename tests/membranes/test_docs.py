"""docs/membranes.md keeps its promises: its files compile, its commands print what it shows, its Python runs."""

from __future__ import annotations

import doctest
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "membranes.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([\w.]+\.pli)`:\n\n```text\n(.*?)```", TEXT, re.DOTALL))
BLOCKS = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader is: the files of the page, the examples, and `echoc` and `python` on the path."""
    place = tmp_path_factory.mktemp("page")
    (place / "examples").symlink_to(ROOT / "examples")
    for name, text in FILES.items():
        (place / name).write_text(text, encoding="utf-8")
    programs = place / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    (programs / "echoc").write_text(f'#!/bin/sh\nexec {sys.executable} -m echoc "$@"\n', encoding="utf-8")
    (programs / "echoc").chmod(0o755)
    return place


def commands(block: str) -> list[tuple[str, str]]:
    """Each command of a block, with what the page shows below it."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def settled(command: str, output: str) -> str:
    """The output without what chance decides: numbers of random runs, and the order in which halves came about."""
    if "choice.pli" in command or "--runs" in command:
        return re.sub(r"\d+(\.\d+)?(e-\d+)?", "N", output)
    if "subsets.pli" in command:
        return "\n".join(sorted(re.sub(r"[+-]\[", "[", output).splitlines()))
    return output


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_commands_print_what_the_page_shows(number: int, folder: Path) -> None:
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "COLUMNS": "80"}
    for command, shown in commands(BLOCKS[number]):
        if ".xml" in command:
            pytest.importorskip("libsbml", reason="the extra `sbml` is not installed")
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False,
            timeout=300,
        )  # fmt: skip
        told = [line for line in done.stderr.splitlines() if line.startswith("echoc:")]
        found = "\n".join([*done.stdout.rstrip("\n").splitlines(), *told])
        assert settled(command, found) == settled(command, shown.rstrip("\n")), command


def test_python_runs_as_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    test = doctest.DocTestParser().get_doctest(TEXT, {}, "membranes.md", str(PAGE), 0)
    assert len(test.examples) > 20
    report = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, out=report.write)
    assert runner.failures == 0, report.getvalue()


def test_every_file_is_used_and_every_link_leads_somewhere() -> None:
    assert len(FILES) > 5
    assert "internal error" not in TEXT
    typed = " ".join(command for block in BLOCKS for command, _ in commands(block))
    assert [name for name in FILES if Path(name).stem not in typed] == []
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#]+)", prose) if "://" not in link]
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []


def test_the_program_of_the_readme_prints_what_it_shows(folder: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    programs = re.findall(r"```python\n([^`]*echoc\.membranes[^`]*)```\s+```\n(.*?)```", text, re.DOTALL)
    assert len(programs) == 1
    for program, shown in programs:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True, timeout=300
        )
        assert sorted(done.stdout.splitlines()) == sorted(shown.splitlines())
