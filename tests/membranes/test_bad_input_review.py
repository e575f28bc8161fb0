"""Bad input through the command line: the place, what was found and wanted, exit code 1, and no output."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from echoc.cli import number_systems, stepping, systems
from echoc.cli.app import app
from echoc.errors import EchoError
from echoc.membranes.reservoirs import ESN

CELL = "@model<transition>\ndef main()\n{\n  @mu = [[]'2]'1;\n  @ms(2) = a;\n  %s\n}\n"
POPULATION = "@model<probabilistic>\ndef main()\n{\n  @mu = [[]'1]'0;\n  [a --> b]'1 :: 0.5;\n  [a --> c]'1 :: %s;\n}\n"
TREE = "num_ps = {\n  H = {1};\n  structure = [1 ]1;\n  1 = { var = {x}; pr = { %s }; var0 = (1); };\n}\n"
SPECIES = '<model id="m">\n<listOfSpecies><species id="s"></listOfSpecies></model>\n'
SBML = '<sbml xmlns="http://www.sbml.org/sbml/level3/version1/core" level="3" version="1">\n' + SPECIES + "</sbml>\n"
TOPOLOGY = """in.signal = "f64[1]"
out.heard = "f64[1]"
[membranes.ear]
in.u = "f64[1]"
out.y = "f64[1]"
reservoir = { units = 30, readout = "ear.npz" }
[[wires]]
from = "signal"
to = "ear.%s"
[[wires]]
from = "ear.y"
to = "heard"
"""

CASES = [
    ("malformed.pli", CELL % "[a --> b'2;", "6:11: found \"'\"; wanted an object, a membrane, an arrow or ']'"),
    ("malformed.kpl", "type A { max { a -> b . } }\na1 {a} (A .\n", "2:11: found '.'; expected ')'"),
    ("malformed.pep", TREE % "2*x + -> 1|x", "4:33: found '->'; expected a number, a variable, a function or '('"),
    ("malformed.xml", SBML, "3:34: this is not XML: mismatched tag"),
    ("malformed.toml", '[membranes.a]\npli = "x\n', "2:9: Illegal character"),
    ("unknown_model.pli", "@model<quantum>\ndef main() {}\n", "1:1: unknown model quantum; known: "),
    ("outside.pli", CELL % "[a]'2 --> [b]'2 [c]'2;", "6:3: the rule [a]'2 --> [b]'2 [c]'2 is outside of the model"),
    ("not_there.pli", CELL % "[a []'7 --> [b]'7]'2;", "6:3: the rule needs a membrane with the label 7, which none"),
    ("start_not_there.pli", CELL % "@ms(7) = a;", "6:3: @ms of the label 7: no membrane has it"),
    ("skin.pli", CELL % "[a --> @d]'1;", "6:3: the rule dissolves 1, the skin; the skin never dissolves"),
    (
        "short.pli",
        POPULATION % "0.4",
        "5:3: the probabilities of the 2 rules with the left side [a]'1 add up to 0.9, 0.1",
    ),
    (
        "above.pli",
        POPULATION % "0.6",
        "5:3: the probabilities of the 2 rules with the left side [a]'1 add up to 1.1, 0.1",
    ),
    ("priorities.pli", CELL % "(1) [a --> b]'2; (2) [a --> b]'2;", "6:20: the same rule has the priority 1 at "),
    ("no_instance.kpl", "type A { max { a -> b . } }\na1 {a} (C) .\n", "1:16: the rule is of the label A, which no"),
    ("no_type.kpl", "type A { max { a -> {b}(B) . } }\na1 {a} (A) .\n", "1:25: the type B is not defined"),
    ("crossing.toml", TOPOLOGY % "v", "7:1: ear has no in port 'v'; its in ports: u"),
]


def ear(folder: Path) -> None:
    """A trained reservoir of thirty units."""
    net = ESN(30, 1, ridge=1e-3, seed=1)
    wave = np.sin(np.arange(200.0))[:, None]
    net.fit(wave[:-1], wave[1:])
    np.savez(folder / "ear.npz", readout=net.readout)


@pytest.mark.parametrize(("name", "text", "wanted"), CASES, ids=[name for name, *_ in CASES])
def test_a_mistake_has_its_place(name: str, text: str, wanted: str, tmp_path: Path) -> None:
    source = tmp_path / name
    source.write_text(text)
    ran = CliRunner().invoke(app, ["compile", str(source), "-o", str(tmp_path / "out.echo")])
    assert (ran.exit_code, ran.stdout) == (1, ""), ran.output
    assert f"echoc: {source}:{wanted}" in ran.stderr
    line = int(wanted.split(":")[0])
    assert f"\n  {text.splitlines()[line - 1]}\n" in ran.stderr
    assert ran.stderr.rstrip().splitlines()[-1].strip() == "^"
    assert not (tmp_path / "out.echo").exists()


def test_a_file_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["compile", str(tmp_path / "none.pli")])
    assert ran.exit_code == 1
    assert ran.stderr == f"echoc: {tmp_path / 'none.pli'}: no file {tmp_path / 'none.pli'}\n"


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("in.jsonl", '{"signal": [0.1]}\n{"signal": [NaN]}\n', "2: input signal holds NaN or infinity"),
        ("in.jsonl", '{"signal": [0.1]}\n{"signal": "x"}\n', "2: input signal wants f64[1]: found 'x'"),
        ("in.jsonl", '{"signal": [0.1]}\n{"noise": [1]}\n', "2: the topology declares no in port 'noise'"),
        ("in.csv", "signal\n0.1\nx\n", "3: found 'x'; wanted a number"),
        ("in.csv", "signal\n0.1\nnan\n", "3: input signal holds NaN or infinity"),
    ],
)
def test_a_signal_that_is_no_number(name: str, text: str, wanted: str, topology: Path, tmp_path: Path) -> None:
    source = tmp_path / name
    source.write_text(text)
    ran = CliRunner().invoke(app, ["run", str(topology), "--input", str(source)])
    assert ran.exit_code == 1
    assert ran.stdout.startswith("step 1: heard = ")
    assert f"echoc: {source}:{wanted}" in ran.stderr


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("topology")
    ear(folder)
    (folder / "ear.toml").write_text(TOPOLOGY % "u")
    made = CliRunner().invoke(app, ["compile", str(folder / "ear.toml"), "-o", str(folder / "ear.echo")])
    assert made.exit_code == 0, made.output
    return folder / "ear.echo"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reservoir_takes_finite_signals_only(bad: float) -> None:
    wave = np.sin(np.arange(30.0))[:, None]
    wave[7] = bad
    with pytest.raises(EchoError, match=r"(?i)nan|finite"):
        ESN(30, 1, seed=1).fit(wave[:-1], wave[1:])


ENDLESS = "@model<transition>\ndef main() { @mu = []'1; @ms(1) = a; [a --> b]'1; [b --> a]'1; }\n"
DECAY = TREE % "x + 1 -> 1|x"


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("endless.pli", ENDLESS, []),
        ("endless.pli", ENDLESS, ["--trace", "t.jsonl"]),
        ("endless.pep", DECAY, ["--steps", "1000000000"]),
    ],
)
def test_ctrl_c_ends_a_run_and_keeps_what_it_came_to(
    name: str, text: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(text)
    artifact = tmp_path / "endless.echo"
    assert CliRunner().invoke(app, ["compile", str(tmp_path / name), "-o", str(artifact)]).exit_code == 0
    original = stepping.stoppable

    @contextmanager
    def pressed() -> Iterator[stepping.Stop]:
        with original() as stop:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            yield stop

    monkeypatch.setattr(systems, "stoppable", pressed)
    monkeypatch.setattr(number_systems, "stoppable", pressed)
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["run", str(artifact), *options])
    assert run.exit_code == 130, run.output
    assert run.stdout.startswith(("endless: at step ", "num_ps: at step "))
    assert "echoc: interrupted at step " in run.stderr
    if options[:1] == ["--trace"]:
        assert (tmp_path / "t.jsonl").read_text().splitlines()[-1].endswith('"reason":"interrupted"}')
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_pieces_get_longer_while_they_are_quick_and_end_at_a_short_one() -> None:
    pieces: list[int] = []
    stepping.in_pieces(lambda n: pieces.append(n) or n, 100, stepping.Stop(), lambda *_: None)
    assert pieces == [1, 2, 4, 8, 16, 32, 37]
    pieces.clear()
    stepping.in_pieces(lambda n: pieces.append(n) or min(n, 3), None, stepping.Stop(), lambda *_: None)
    assert pieces == [1, 2, 4]
