"""The README keeps its promises: its links lead somewhere, its programs parse, its verbs exist."""

import ast
import re
from pathlib import Path

import pytest

from echoc.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    local = [link for link in re.findall(r"\]\(([^)#]+)", prose) if "://" not in link]
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_python_programs_parse() -> None:
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert programs
    for program in programs:
        ast.parse(program)


def test_every_verb_is_told_and_every_told_verb_exists() -> None:
    told = set(re.findall(r"^\| `echoc (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert told == {command.name for command in (*app.registered_commands, *app.registered_groups)}


def test_the_two_commands_install_with_the_tested_versions() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert all("-c constraints.txt" in command for command in commands)
    assert "echoc run" in commands[0]
    assert "pytest" in commands[1]
