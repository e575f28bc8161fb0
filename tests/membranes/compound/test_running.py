"""Compound systems run: what arrives when, who is visited, what the parts would have done by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import echoc
from echoc.compiler.ir.text import parse, show
from echoc.errors import ArtifactError, DeviceError, RequestError
from echoc.membranes.compound import Membrane, compile
from echoc.membranes.plingua import read as read_plingua
from echoc.membranes.reservoirs import ESN
from echoc.runtime.compound import CompoundProgram
from echoc.runtime.systems import SystemProgram

Compiled = Callable[[str], CompoundProgram]

FIRST = "@model<transition>\ndef main() { @mu = []'1; @ms(1) = s; [s --> t, a*2]'1; [a]'1 --> b []'1; [t --> s]'1; }\n"
SECOND = "@model<transition>\ndef main() { @mu = []'1; [b*3]'1 --> c [d]'1; [d*2 --> e]'1; }\n"
PAIR = f"""
name = "pair"
out.made = "objects c"
[membranes.first]
out.gone = "objects b"
pli = '''{FIRST}'''
[membranes.second]
in.come = "objects b"
out.made = "objects c"
out.held = {{ counts = ["b", "d", "e"] }}
pli = '''{SECOND}'''
[[wires]]
from = "first.gone"
to = "second.come"
[[wires]]
from = "second.made"
to = "made"
[[wires]]
from = "second.held"
to = "nothing"
"""
RANDOM = """
name = "random"
in.go = "objects a"
out.left = "objects x"
out.right = "objects y"
[membranes.p]
in.go = "objects a"
out.left = "objects x"
out.right = "objects y"
pli = "@model<transition> def main() { @mu = []'1; [a]'1 --> x []'1; [a]'1 --> y []'1; }"
[[wires]]
from = "go"
to = "p.go"
[[wires]]
from = "p.left"
to = "left"
[[wires]]
from = "p.right"
to = "right"
"""


def test_two_systems_are_their_parts_stepped_by_hand(compiled: Compiled, tmp_path: Path) -> None:
    run = compiled(PAIR).create(seed=3)
    parts = []
    for name, text in (("first.pli", FIRST), ("second.pli", SECOND)):
        path = echoc.compile(read_plingua(tmp_path / name, text=text), output=tmp_path / f"{name}.echo")
        parts.append(SystemProgram(path).create(seed=3, run=len(parts)))
    first, second = parts
    on_the_way: dict[str, int] = {}
    total = 0
    for _ in range(20):
        if on_the_way:
            second.put(0, on_the_way)
        first.advance(1)
        if not second.halted:
            second.advance(1)
        on_the_way = first.take(["b"])
        made = second.take(["c"])
        outputs = run.step()
        assert outputs == ({"made": made} if made else {})
        assert run.content("second").live.membranes() == second.membranes()  # type: ignore[attr-defined]
        assert run.content("first").live.membranes() == first.membranes()  # type: ignore[attr-defined]
        total += made.get("c", 0)
    assert total == 6


def test_what_is_written_in_a_step_is_read_in_the_next(compiled: Compiled) -> None:
    run = compiled(PAIR).create()
    seen: list[tuple[int, str, str]] = []
    run.on_crossing = lambda step, membrane, port, value: seen.append((step, membrane, port))
    for _ in range(4):
        run.step()
    assert [s for s in seen if s[2] == "gone"] == [(2, "first", "gone"), (4, "first", "gone")]
    held = [s for s in seen if s[2] == "held"]
    assert held == [(1, "second", "held"), (3, "second", "held")]  # the two b of step 2 are there in step 3


def test_boundaries_take_no_time(compiled: Compiled) -> None:
    """A membrane within two others gives what it gives without them, in the same steps."""
    deep = RANDOM.replace("membranes.p", "membranes.o.membranes.i.membranes.p")
    for outer, inner in (("o", "i"), ("o.membranes.i", "p")):
        ports = 'in.go = "objects a"\nout.left = "objects x"\nout.right = "objects y"\n'
        wires = "".join(
            f'[[membranes.{outer}.wires]]\nfrom = "{a}"\nto = "{b}"\n'
            for a, b in (("go", f"{inner}.go"), (f"{inner}.left", "left"), (f"{inner}.right", "right"))
        )
        deep += f"[membranes.{outer}]\n{ports}{wires}"
    deep = deep.replace("p.go", "o.go", 1).replace('"p.left"', '"o.left"', 1).replace('"p.right"', '"o.right"', 1)
    plain, nested = compiled(RANDOM).create(seed=5), compiled(deep).create(seed=5)
    assert nested.program.paths == ["o/i/p"]
    for t in range(6):
        given = {"go": {"a": 10 + t}}
        assert plain.step(given) == nested.step(given)


def test_seeds(compiled: Compiled) -> None:
    def draw(seed: int) -> list[tuple[int, dict[str, object]]]:
        run = compiled(RANDOM).create(seed=seed)
        return run.run({"go": [{"a": 1000}] * 5}, steps=7)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    run = compiled(RANDOM).create(seed=2)
    run.step({"go": ["a", "a"]})
    run.reset(1)
    assert run.run({"go": [{"a": 1000}] * 5}, steps=7) == draw(1)
    for _, outputs in draw(1):
        assert outputs["left"]["x"] + outputs["right"]["y"] == 1000  # type: ignore[index]


def test_idle_membranes_are_not_visited(compiled: Compiled) -> None:
    run = compiled(RANDOM).create()
    for _ in range(10):
        run.step()
    assert run.idle
    assert run.activity() == {"p": 1}
    run.step({"go": {"a": 1}})
    assert not run.idle
    run.step()
    assert run.idle
    assert run.activity() == {"p": 3}
    assert run.steps == 12


def test_inputs_that_are_not_declared_do_not_vanish(compiled: Compiled) -> None:
    run = compiled(RANDOM).create()
    for given, message in (
        ({"gone": {"a": 1}}, "declares no in port 'gone'; it has go"),
        ({"go": {"a": 1, "b": 1}}, "declares no object 'b'; it takes a"),
        ({"go": {"a": -1}}, "gets -1 of a"),
        ({"go": {"a": 1 << 63}}, "wanted a whole number"),
        ({"go": {"a": True}}, "gets True of a"),
        ({"go": "a"}, "wanted objects"),
        ({"go": 3}, "wanted objects"),
    ):
        with pytest.raises(RequestError, match=message):
            run.step(given)  # type: ignore[arg-type]
    assert run.steps == 0
    assert run.step({"go": {}}) == {}


def test_a_membrane_that_fails_ends_the_run(compiled: Compiled) -> None:
    run = compiled(
        RANDOM.replace("[a]'1 --> x []'1; [a]'1 --> y []'1;", "[a, x, y --> a]'1; [a, y]'1 --> x, y []'1;")
    ).create()
    most = {"go": {"a": (1 << 63) - 1}}
    run.step(most)
    with pytest.raises(DeviceError, match=r"step 2, membrane p: membrane 0 takes no .*passes 2\^63 - 1"):
        run.step(most)
    with pytest.raises(DeviceError, match="the run has ended: step 2, membrane p"):
        run.step()
    run.reset()
    assert run.step(most) == {}


@pytest.fixture(scope="module")
def reservoir(tmp_path_factory: pytest.TempPathFactory) -> tuple[ESN, CompoundProgram]:
    """A reservoir whose two outputs are rounded to objects, counted, and shown."""
    rng = np.random.default_rng(4)
    model = ESN(12, 2, seed=3, connectivity=0.5)
    u = rng.standard_normal((200, 2))
    model.fit(u, np.stack([3 * np.tanh(u[:, 0]), u[:, 1]], axis=1), washout=10)
    top = Membrane("top", {"u": "f64[2]"}, {"y": "f64[2]", "first": "f32[1]", "n": "f64[2]", "up": "objects up"})
    inner = top.add(Membrane("ear", {"u": "f64[2]"}, {"y": "f64[2]"}, reservoir=model))
    assert top.children["ear"] is inner
    top.wire("u", "ear.u")
    top.wire("ear.y", "y")
    top.wire("ear.y", "first", channels=[0], cast="f32")
    top.wire("ear.y", "up", channels=[1], threshold={"above": 0.0, "objects": ["up"], "edge": "rising"})
    top.wire("ear.y", "p.x", round={"objects": ["a", "b"]})
    top.add("p", {"x": "objects a b"}, {"y": "objects a b"},
            pli="@model<transition> def main() { @mu = []'1; [a]'1 --> a []'1; [b]'1 --> b []'1; }")  # fmt: skip
    top.wire("p.y", "n", rename={"b": "c"}, counts=["c", "a"])
    return model, CompoundProgram(compile(top, output=tmp_path_factory.mktemp("ear") / "top.echo"))


def test_a_reservoir_and_every_adapter_of_tensors(reservoir: tuple[ESN, CompoundProgram]) -> None:
    model, program = reservoir
    u = np.random.default_rng(5).standard_normal((40, 2))
    wanted = model.predict(u)
    run = program.create()
    before, counts = False, np.zeros(2)
    for t in range(40):
        outputs = run.step({"u": u[t]})
        np.testing.assert_allclose(outputs["y"], wanted[t], rtol=1e-9, atol=1e-12)
        assert outputs["first"].dtype == np.float32
        assert outputs["first"] == np.float32(outputs["y"][0])
        rises = bool(outputs["y"][1] > 0) and not before
        assert ("up" in outputs) == rises
        before = bool(outputs["y"][1] > 0)
        if counts.any():
            assert outputs["n"].tolist() == counts.tolist()
        else:
            assert "n" not in outputs
        a, b = (max(0, round(float(x))) for x in outputs["y"])
        counts = np.array([b, a])


def test_runs_of_a_program_share_no_state(reservoir: tuple[ESN, CompoundProgram]) -> None:
    model, program = reservoir
    u = np.random.default_rng(6).standard_normal((10, 2))
    wanted = model.predict(u)
    one, other = program.create(), program.create()
    for t in range(10):
        other.step({"u": [9.0, -9.0]})
        np.testing.assert_allclose(one.step({"u": u[t]})["y"], wanted[t], rtol=1e-9, atol=1e-12)
    one.reset()
    np.testing.assert_allclose(one.step({"u": u[0]})["y"], wanted[0], rtol=1e-9, atol=1e-12)
    for bad, message in (
        ([1.0], r"shape \[1\], wanted \[2\]"),
        ([1, np.nan], "NaN"),
        (["a", "b"], "wants f64"),
        (None, "wants f64"),
    ):
        with pytest.raises(RequestError, match=message):
            one.step({"u": bad})


@pytest.mark.parametrize("model", ["probabilistic", "stochastic"])
def test_objects_come_into_systems_whose_membranes_stay(model: str, compiled: Compiled) -> None:
    """What only comes from outside is in no start configuration, yet its rules are compiled."""
    rule = {"probabilistic": "[a --> b]'1 :: 1.0;", "stochastic": "[a --> b]'1 :: 2.0;"}[model]
    text = f"""
name = "stay"
in.go = "objects a"
out.n = "i64[2]"
[membranes.p]
in.go = {{ objects = ["a"], into = "1" }}
out.n = {{ counts = ["a", "b"], of = "1" }}
pli = "@model<{model}> def main() {{ @mu = []'1; @ms(1) = c; {rule} }}"
[[wires]]
from = "go"
to = "p.go"
[[wires]]
from = "p.n"
to = "n"
"""
    run = compiled(text).create(seed=1)
    assert run.step()["n"].tolist() == [0, 0]
    assert run.idle
    shown = [run.step({"go": {"a": 5}})["n"].tolist()]
    while not run.idle:
        shown.append(run.step().get("n", np.array(shown[-1])).tolist())
    assert shown[-1] == [0, 5]
    assert all(a + b == 5 for a, b in shown)


def test_the_program_in_the_artifact(compiled: Compiled) -> None:
    artifact = compiled(PAIR).artifact
    text = artifact.text("program.eir")
    assert text is not None
    program = parse(text)
    assert show(program) == text
    skin = program.skin
    assert [(p.direction, p.name) for p in skin.ports][:2] == [("out", "made"), ("in", "first.gone")]
    assert {c.name: [p.name for p in c.ports if p.name not in ("seed", "step", "applied")] for c in skin.children} == {
        "first": ["gone"], "second": ["come", "made", "held"],
    }  # fmt: skip
    assert dict(skin.rule("step").outputs)["second.come"].op == "port"
    artifact.check_hashes()
    assert sorted(m for m in artifact.members if m.endswith(".echo")) == [
        "membranes/0-first.echo", "membranes/1-second.echo",
    ]  # fmt: skip


def test_the_artifact_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "p.echo"
    echoc.compile(read_plingua("p.pli", text=SECOND), output=path)
    with pytest.raises(ArtifactError, match="holds no topology"):
        CompoundProgram(path)


def test_equal_contents_are_compiled_once_and_echoc_takes_topologies(tmp_path: Path) -> None:
    top = Membrane("row", {"x": "objects a"}, {"y": "objects a"})
    for i in range(5):
        top.add(f"p{i}", {"x": "objects a"}, {"y": "objects a"},
                pli="@model<transition>\ndef main() { @mu = []'1; [a]'1 --> a []'1; }")  # fmt: skip
        top.wire(f"p{i - 1}.y" if i else "x", f"p{i}.x")
    top.wire("p4.y", "y")
    artifact = echoc.compile(top, output=tmp_path / "row.echo")
    assert [m for m in artifact.members if m.endswith(".echo")] == ["membranes/0-p0.echo"]
    run = echoc.load(artifact).create()
    assert run.run({"x": [{"a": 2}]}, steps=20) == [(5, {"y": {"a": 2}})]
    assert run.steps == 20


def test_outputs_are_the_callers_own(tmp_path: Path) -> None:
    """What the caller does to an output reaches no membrane that got the same value."""
    top = Membrane("top", {"u": "f64[2]", "o": "objects a"}, {"y": "f64[2]", "same": "objects a", "n": "i64[1]"})
    top.add("p", {"x": "objects a"}, {"n": {"counts": ["a"], "of": "1"}},
            pli="@model<transition> def main() { @mu = []'1; [a, b --> a]'1; }")  # fmt: skip
    top.wire("u", "y")
    top.wire("o", "same", copy=True)
    top.wire("o", "p.x", copy=True)
    top.wire("p.n", "n")
    run = CompoundProgram(compile(top, output=tmp_path / "t.echo")).create()
    given = np.array([1.0, 2.0])
    objects = {"a": 2}
    outputs = run.step({"u": given, "o": objects})
    outputs["y"][:] = 9
    outputs["same"]["a"] = 9
    assert given.tolist() == [1, 2]
    assert objects == {"a": 2}
    assert outputs["n"].tolist() == [2]
