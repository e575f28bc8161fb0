"""`echoc trees` from outside, and the page about it."""

import doctest
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from echoc.cli.trees import app

PAGE = Path(__file__).resolve().parents[3] / "docs" / "trees.md"
TOO_DEEP = "[" * 50_000


def echoc(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def answer(*arguments: str) -> dict[str, object]:
    done = echoc(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def heun(tmp_path: Path) -> str:
    path = tmp_path / "heun.json"
    path.write_text('{"A": [[], [1]], "b": ["1/2", "1/2"], "b_hat": [1, 0]}', encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["count", "30"], "354426847597\n"),
        (["count", "0"], "0\n"),
        (["list", "0"], ""),
        (["list", "3"], "1,2,3\n1,2,2\n"),
        (["list", "3", "--form", "brackets"], "[[[]]]\n[[][]]\n"),
        (["list", "4", "--form", "parents", "--limit", "1"], "-1,0,1,2\n"),
        (["list", "100000", "--limit", "0"], ""),
        (["rank", "[[]'2[]'3]'1"], "1\n"),
        (["rank", "-1,0,0"], "1\n"),
        (["unrank", "5", "8", "--form", "brackets"], "[[][][][]]\n"),
        (["conditions", "2"], "sum(i) b_i = 1  []\nsum(i) b_i c_i = 1/2  [[]]\n"),
    ],
)
def test_answers(arguments: list[str], output: str) -> None:
    done = echoc(*arguments)
    assert (done.exit_code, done.stdout, done.stderr) == (0, output, "")


def test_json_answers(heun: str) -> None:
    assert answer("count", "30") == {"nodes": 30, "count": 354426847597}
    assert answer("list", "3") == {"nodes": 3, "trees": [[1, 2, 3], [1, 2, 2]]}
    assert answer("list", "3", "--form", "brackets")["trees"] == ["[[[]]]", "[[][]]"]
    assert answer("rank", "1,2,2,3") == {"nodes": 4, "rank": 2, "levels": [1, 2, 3, 2]}
    assert answer("unrank", "4", "2", "--form", "parents")["tree"] == [-1, 0, 1, 0]
    assert answer("random", "9", "--seed", "4") == answer("random", "9", "--seed", "4")
    shown = answer("show", "[[][]]")
    assert (shown["order"], shown["symmetry"], shown["density"], shown["monotonic_labellings"]) == (3, 2, 3, 1)
    assert answer("conditions", "1")["conditions"] == [{"levels": [1], "formula": "sum(i) b_i", "value": "1"}]
    found = answer("order", heun)
    assert (found["order"], found["exact"], found["explicit"], found["symplectic"]) == (2, True, True, False)
    assert found["failures"] == [
        {"levels": [1, 2, 3], "found": "0", "wanted": "1/6"},
        {"levels": [1, 2, 2], "found": "1/2", "wanted": "1/3"},
    ]
    embedded = found["embedded"]
    assert isinstance(embedded, dict)
    assert embedded["order"] == 1
    coefficients = answer("modified", heun, "--order", "2")["coefficients"]
    assert coefficients == [
        {"levels": [1], "coefficient": "1", "symmetry": 1},
        {"levels": [1, 2], "coefficient": "0", "symmetry": 1},
    ]


def test_a_tree_may_come_from_standard_input() -> None:
    assert echoc("rank", "-", stdin="[[]'2\n []'3]'1\n").stdout == "1\n"


def test_an_order_beyond_the_search_is_a_lower_bound(heun: str) -> None:
    assert "order at least 1" in echoc("order", heun, "--max-order", "1").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["count", "1000000"], "at most"),
        (["list", "40"], "--limit"),
        (["list", "1" + "0" * 30], "--limit"),
        (["list", "1" + "0" * 30, "--limit", "1"], "at most"),
        (["list", "100000", "--limit", "100000", "--json"], "leave --json out"),
        (["rank", "[[]"], "column 1: this bracket is not closed"),
        (["rank", TOO_DEEP + "]" * 50_000], "at most"),
        (["rank", "-1,2,1"], "their own ancestors"),
        (["unrank", "5", "9"], "0 .. 8"),
        (["random", "0"], "smallest has 1"),
        (["random", "100000"], "at most"),
        (["show", "x"], "no whole number"),
        (["show", "1" + ",2" * 1000], "at most"),
        (["conditions", "99"], "outside"),
        (["order", "no/such/file.json"], "No such file"),
        (["order", "."], "Is a directory"),
        (["modified", "no/such/file.json"], "No such file"),
    ],
)
def test_what_goes_wrong_is_one_message_and_exit_code_1(arguments: list[str], message: str) -> None:
    done = echoc(*arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("echoc: ")
    assert message in done.stderr
    assert "internal error" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["count"],
        ["count", "x"],
        ["list", "3", "--form", "xml"],
        ["list", "3", "--limit", "-1"],
        ["unrank", "3", "9" * 5000],
        ["order"],
        ["no-such-verb"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    done = echoc(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""


def test_floats_are_refused_without_a_tolerance(tmp_path: Path) -> None:
    path = tmp_path / "midpoint.json"
    path.write_text('{"A": [[0.5]], "b": [1]}', encoding="utf-8")
    assert "0.5 is a float" in echoc("order", str(path)).stderr + echoc("modified", str(path)).stderr
    assert "order 2" in echoc("order", str(path), "--tolerance", "1e-12").stdout


def test_every_command_has_help_and_the_manners_of_a_verb() -> None:
    group = typer.main.get_command(app)
    commands = getattr(group, "commands", {})
    assert set(commands) == {*("count", "list", "rank", "unrank", "random", "show", "conditions", "order", "modified")}
    for command in commands.values():
        assert command.help
        assert {"as_json", "debug"} <= {parameter.name for parameter in command.params}


def test_the_python_of_the_page_gives_what_it_shows() -> None:
    out = io.StringIO()
    found = doctest.DocTestRunner()
    test = doctest.DocTestParser().get_doctest(PAGE.read_text(encoding="utf-8"), {}, "trees.md", str(PAGE), 0)
    found.run(test, out=out.write)
    assert found.tries > 20
    assert found.failures == 0, out.getvalue()


def test_the_commands_of_the_page_give_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    for name, body in re.findall(r"as\s+`(\w+\.json)`.*?```json\n(.*?)```", text, re.DOTALL):
        Path(name).write_text(body, encoding="utf-8")
    sessions = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    commands = [part for session in sessions for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]]
    assert len(commands) >= 8
    for part in commands:
        line, _, shown = part.partition("\n")
        program, verb, *arguments = shlex.split(line)
        assert (program, verb) == ("echoc", "trees")
        assert echoc(*arguments).output == shown, line
