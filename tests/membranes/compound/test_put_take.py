"""Objects that come into a running P system and leave its environment."""

from __future__ import annotations

from pathlib import Path

import pytest

import echoc
from echoc.compiler.ir.systems import program_of
from echoc.compiler.systems import compile_system
from echoc.errors import RequestError
from echoc.membranes.plingua import read
from echoc.runtime.population import PopulationLimit
from echoc.runtime.systems import SystemProgram

DIVIDING = """@model<membrane_division>
def main() {
  @mu = [ [ ]'2 ]'1;
  @ms(2) = a, k*3;
  [a]'2 --> [b]'2 [c]'2;
  [x --> y*2]'2;
  [d]'2 --> e;
  [z]'1 --> []'1 z;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> SystemProgram:
    folder = tmp_path_factory.mktemp("put")
    return SystemProgram(echoc.compile(read("dividing.pli", text=DIVIDING), output=folder / "p.echo"))


def contents(run: object) -> dict[int, dict[str, int]]:
    return {m["id"]: m["objects"] for m in run.membranes()}  # type: ignore[attr-defined]


def test_parts_of_a_division_share_pages_but_not_what_comes_in(program: SystemProgram) -> None:
    run = program.create()
    assert run.advance().steps == 1
    assert run.halted
    (one, other) = sorted(i for i in contents(run) if i != 0)
    run.put(one, {"x": 2, "k": 1})
    assert not run.halted
    before = contents(run)
    assert before[one] in ({"b": 1, "k": 4, "x": 2}, {"c": 1, "k": 4, "x": 2})
    assert before[other]["k"] == 3
    run.advance()
    assert contents(run)[one]["y"] == 4
    assert contents(run)[other] == before[other]


def test_what_leaves_is_taken_once(program: SystemProgram) -> None:
    run = program.create()
    run.put(0, {"z": 2})
    run.put(-1, {"z": 1})
    run.advance()
    assert run.take(["z", "e"]) == {"z": 3}
    assert run.take(["z"]) == {}
    assert run.environment() == {}


def test_a_membrane_that_has_dissolved_takes_nothing(program: SystemProgram) -> None:
    run = program.create()
    run.put(1, {"d": 1})
    run.advance()
    gone = 1
    while gone in contents(run):
        gone += 1
    with pytest.raises(RequestError, match=f"membrane {gone} takes no .*no membrane with this id"):
        run.put(gone, {"x": 1})


def test_what_does_not_fit_changes_nothing(program: SystemProgram) -> None:
    run = program.create()
    before = contents(run)
    with pytest.raises(PopulationLimit, match=r"passes 2\^63 - 1; the run stands as before"):
        run.put(1, {"x": 1, "k": (1 << 63) - 1})
    for bad in ({"nothing": 1}, {"x": -1}, {"x": 1 << 63}):
        with pytest.raises(RequestError):
            run.put(1, bad)
    with pytest.raises(RequestError, match="no object"):
        run.take(["nothing"])
    assert contents(run) == before


def test_pages_are_given_back(program: SystemProgram) -> None:
    run = program.create()
    run.advance()
    held = run.memory()["pages"]
    for _ in range(1000):
        run.put(0, {"z": 1})
        run.advance()
        run.take(["z"])
    assert run.memory()["pages"] <= held + 4


def test_incoming_objects_change_no_start(tmp_path: Path) -> None:
    """Kernels reckon with them; the run begins as without them."""
    for model, rules in (("transition", "[a, c --> b]'1;"), ("probabilistic", "[a, c --> b]'1 :: 1.0;")):
        system = read("in.pli", text=f"@model<{model}> def main() {{ @mu = []'1; @ms(1) = c*2; {rules} }}")
        path = tmp_path / f"{model}.echo"
        compile_system(program_of(system), output=path, incoming=[(0, "a"), (0, "c")])
        run = SystemProgram(path).create()
        assert run.membranes()[0]["objects"] == {"c": 2}
        run.advance(3)
        assert run.membranes()[0]["objects"] == {"c": 2}
        run.put(0, {"a": 5})
        run.advance(3)
        assert run.membranes()[0]["objects"] == {"a": 3, "b": 2}
