"""The page on topologies: its file and its Python are the same, and run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import echoc
from echoc.membranes.compound import compile, read

PAGE = Path(__file__).resolve().parents[3] / "docs" / "topologies.md"


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_page(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block("python")], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed == ["{}", "{}", "{}", "{'bell': {'ring': 1}}", "{}"]
    artifact = compile(read("alarm.toml", text=block("toml")), output=tmp_path / "file.echo")
    run = echoc.load(artifact).create(seed=1)
    assert [str(run.step({"signal": [x]})) for x in (0.9, 0.9, 0.9, 0.9, 0.0)] == printed
