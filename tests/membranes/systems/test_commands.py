"""`echoc compile` and `echoc run` on membrane systems, typed as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Compiled = Callable[[str], Path]


def echoc(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "echoc", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=300)


def test_compile_then_run(source: Compiled, tmp_path: Path) -> None:
    made = echoc("compile", source("subsets.pli"), "--json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["artifact"] == "subsets.echo"
    shown = echoc("inspect", tmp_path / "subsets.echo")
    assert "parallel, strong priorities" in shown.stdout
    run = echoc("run", tmp_path / "subsets.echo", "--json", "--seed", "4")
    document = json.loads(run.stdout)
    assert (document["halted"], document["environment"], document["num_membranes"]) == (True, {"o": 16}, 17)
    assert document["halting_step"] == document["steps"] > 4
    assert document["membranes"][0]["label"] == "1"


def test_a_trace_the_text_and_the_pictures(compiled: Compiled, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("t.jsonl", "t.svg", "t.html")]
    options = ("--trace", files[0], "--plot", files[1], "--html", files[2], "--text")
    run = echoc("run", compiled("subsets.pli"), *options)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert lines[0]["schema"] == "echoc.trace/1"
    assert lines[1]["step"] == 0
    assert lines[-1] == {"halted": True, "step": lines[-2]["step"], "reason": "no rule applies"}
    assert sum(a["times"] for line in lines[1:-1] for a in line.get("applied", [])) > 15
    assert "]'2" in run.stdout
    assert files[1].read_text().lstrip().startswith("<?xml")
    assert "<html" in files[2].read_text()


def test_runs_are_summed_up(compiled: Compiled) -> None:
    run = echoc("run", compiled("weather.pli"), "--steps", "4", "--runs", "50", "--json")
    document = json.loads(run.stdout)
    assert len(document["runs"]) == 50
    (place,) = [objects for objects in document["summary"]["objects"].values() if "dry" in objects]
    assert 300 < place["dry"]["mean"] < 340  # in the long run 4 of 5 are dry
    shown = echoc("run", compiled("choosing.pli"), "--runs", "3")
    assert "3 runs, 3 halted; steps 1 to 1" in shown.stdout


def test_runs_that_need_more_than_their_share_get_all_of_the_memory(compiled: Compiled) -> None:
    """Two runs have 20 MiB each, which 2^15 membranes do not fit; one after another they do."""
    options = ("--memory", "40M", "--runs", "2", "--json")
    run = echoc("run", compiled("splitting.pli"), "--steps", "15", *options)
    assert run.returncode == 0, run.stderr
    assert [r["num_membranes"] for r in json.loads(run.stdout)["runs"]] == [1 + 2**15] * 2
    run = echoc("run", compiled("splitting.pli"), "--steps", "30", *options)
    assert run.returncode == 1
    assert "2 of 2 runs could not go on; run 0: step 16" in run.stderr
    assert all("fit 40 MiB" in r["error"] for r in json.loads(run.stdout)["runs"])


def test_a_source_runs_without_an_artifact(source: Compiled) -> None:
    run = echoc("run", source("control.pep"), "--steps", "2", "--json")
    assert json.loads(run.stdout)["values"] == {"x": 2.0, "y": 3.5}


def test_runs_of_a_numerical_system_that_chooses(compiled: Compiled, source: Compiled) -> None:
    def run(path: Path, *arguments: str) -> dict[str, Any]:
        return dict(json.loads(echoc("run", path, "--steps", "30", *arguments, "--json").stdout))

    artifact = compiled("coins.pep")
    first, other = run(artifact, "--seed", "3"), run(artifact, "--seed", "5")
    assert first["values"] == run(source("coins.pep"), "--seed", "3")["values"] != other["values"]
    assert first["values"]["y"] + first["values"]["z"] == 30
    many = run(artifact, "--seed", "3", "--runs", "300")
    assert many["runs"][0]["values"] == first["values"]
    found = many["summary"]["values"]
    assert abs(found["x"]["mean"]) < 1.3 and 4.7 < found["x"]["sd"] < 6.3  # of 30 steps: 5.48
    assert 14.4 < found["y"]["mean"] < 15.6 and 2.3 < found["y"]["sd"] < 3.2
    shown = echoc("run", artifact, "--steps", "30", "--runs", "5").stdout
    assert "coins: 5 runs, at step 30" in shown and "sd" in shown


def test_a_numerical_system_without_choices_takes_a_seed_too(compiled: Compiled) -> None:
    path = compiled("control.pep")
    runs = [echoc("run", path, "--steps", "2", "--seed", seed).stdout for seed in ("0", "7")]
    assert runs[0] == runs[1] != ""
    many = json.loads(echoc("run", path, "--steps", "2", "--runs", "3", "--json").stdout)
    assert many["summary"]["values"]["x"] == {"mean": 2.0, "sd": 0.0, "min": 2.0, "max": 2.0}


def test_an_overflow_keeps_the_state_and_fails(compiled: Compiled) -> None:
    run = echoc("run", compiled("doubling.pli"), "--json")
    assert run.returncode == 1
    document = json.loads(run.stdout)
    assert document["steps"] == 62
    assert "passes 2^63 - 1" in document["error"]
    assert run.stderr.startswith("echoc: step 63")
    assert "Traceback" not in run.stderr


def test_too_little_memory_is_said_and_traced(compiled: Compiled, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    run = echoc("run", compiled("splitting.pli"), "--memory", "2M", "--trace", trace)
    assert run.returncode == 1
    assert "fit 2 MiB" in run.stderr
    assert json.loads(trace.read_text().splitlines()[-1])["reason"] == "memory"


@pytest.mark.parametrize(
    ("arguments", "wanted", "code"),
    [
        (("run", "splitting.pli", "--memory", "lots"), "no amount of memory", 2),
        (("run", "weather.pli", "--runs", "2", "--text"), "leave --runs out", 2),
        (("run", "control.pep"), "say how many steps", 2),
        (("run", "control.pep", "--until", "2"), "counts steps", 1),
        (("run", "control.pep", "--steps", "2", "--seed", "-1"), "wanted 0 to 2^64 - 1", 1),
        (("run", "control.pep", "--steps", "2", "--runs", "2", "--text"), "leave --runs out", 2),
        (("run", "doubling.pli", "--until", "3"), "chemical systems", 1),
        (("run", "doubling.pli", "--prompt", "hello"), "takes no prompt", 2),
        (("run", "doubling.pli", "--allow-substochastic"), "has been read", 2),
    ],
)
def test_wrong_usage(compiled: Compiled, arguments: tuple[str, ...], wanted: str, code: int) -> None:
    verb, name, *rest = arguments
    run = echoc(verb, compiled(name), *rest)
    assert run.returncode == code
    assert wanted in " ".join(run.stderr.replace("│", " ").split())


def test_a_mistake_is_shown_in_its_place(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pli"
    wrong.write_text("@model<transition>\ndef main() { @mu = []'1; [a --> b]'7; }\n")
    run = echoc("compile", wrong, cwd=tmp_path)
    assert run.returncode == 1
    assert "wrong.pli:2:" in run.stderr
    assert "^" in run.stderr
    assert list(tmp_path.glob("*.echo")) == []
    assert echoc("compile", tmp_path / "none.pli").returncode == 1


def test_a_topology_runs_along_its_inputs(compiled: Compiled, tmp_path: Path) -> None:
    table = tmp_path / "levels.csv"
    table.write_text("level\n0.9\n0.1\n\n0.7\n0.8\n")
    run = echoc("run", compiled("gate.toml"), "--input", table, "--steps", "8", "--json")
    document = json.loads(run.stdout)
    (only,) = document["outputs"]
    assert only["outputs"] == {"bell": {"ring": 1}}
    assert document["idle"]
    shown = echoc("inspect", compiled("gate.toml"))
    assert "[ mind ]" in shown.stdout
    lines = tmp_path / "levels.jsonl"
    lines.write_text('{"level": [0.9]}\n{"volume": 3}\n')
    wrong = echoc("run", compiled("gate.toml"), "--input", lines)
    assert (wrong.returncode, "no in port 'volume'" in wrong.stderr) == (1, True)
    lines.write_text('{"level": [0.9]}\n[1, 2]\n')
    wrong = echoc("run", compiled("gate.toml"), "--input", lines)
    assert (wrong.returncode, "levels.jsonl:2: found '[1, 2]'" in wrong.stderr) == (1, True)


def test_probabilities_that_fall_short_are_accepted_only_on_demand(tmp_path: Path) -> None:
    source = tmp_path / "half.pli"
    source.write_text(
        "@model<probabilistic>\ndef main() { @mu = [[]'1,9]'0; @ms(1,9) = a*100; [a]'1 --> [b]'1 :: 0.5; }\n"
    )
    made = echoc("run", source, "--steps", 1, cwd=tmp_path)
    assert made.returncode == 1 and made.stdout == ""
    assert "half.pli:2:50: the probability of the only rule with the left side [a]'1 is 0.5" in made.stderr
    ran = echoc("run", source, "--steps", 1, "--allow-substochastic", "--json", cwd=tmp_path)
    counts = json.loads(ran.stdout)["membranes"][1]["objects"]
    assert counts["a"] + counts["b"] == 100 and 20 < counts["a"] < 80
