"""Adapters of wires as the runtime applies them, and texts through membranes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echoc.errors import ArtifactError, DeviceError, RequestError
from echoc.membranes.compound import Membrane, compile, read
from echoc.membranes.compound.places import places_of
from echoc.runtime.compound import CompoundProgram, _check_wiring, plain
from echoc.runtime.compound_wires import adapter


@pytest.mark.parametrize(
    ("step", "given", "wanted"),
    [
        ({"kind": "only", "objects": ["a"]}, {"a": 2, "b": 1}, {"a": 2}),
        ({"kind": "only", "objects": ["a"]}, {"b": 1}, None),
        ({"kind": "rename", "names": {"a": "c", "b": "c"}}, {"a": 2, "b": 1, "d": 1}, {"c": 3, "d": 1}),
        ({"kind": "prompt", "texts": {"a": "{object}: {count} {x}", "b": "no"}}, {"a": 2}, "a: 2 {x}"),
        ({"kind": "prompt", "texts": {"a": "one", "b": "two"}}, {"b": 1, "a": 1}, "two\none"),
        ({"kind": "contains", "objects": {"said": "", "loud": "!"}}, "oh", {"said": 1}),
        ({"kind": "contains", "objects": {"loud": "!"}}, "oh", None),
        ({"kind": "template", "text": "<{text}>{text}"}, "{text}", "<{text}>{text}"),
    ],
)  # fmt: skip
def test_adapters(step: dict[str, Any], given: Any, wanted: Any) -> None:
    assert adapter(step)(given) == wanted


def test_edges_remember() -> None:
    rising = adapter({"kind": "threshold", "above": 1.0, "edge": "rising", "objects": ["a", "b"]})
    falling = adapter({"kind": "threshold", "above": 1.0, "edge": "falling", "objects": ["a", "b"]})
    series = [[0, 2], [2, 2], [2, 1], [0, np.nan], [2, 5]]
    found = [(rising(np.array(x, float)), falling(np.array(x, float))) for x in series]
    assert found == [({"b": 1}, None), ({"a": 1}, None), (None, {"b": 1}), (None, {"a": 1}), ({"a": 1, "b": 1}, None)]


def test_what_is_no_number_of_objects() -> None:
    whole = adapter({"kind": "round", "objects": ["a", "b"]})
    assert whole(np.array([2.5, -3.0])) == {"a": 2}
    assert whole(np.array([0.4, 0.0])) is None
    for bad in (np.nan, np.inf, 1e19):
        with pytest.raises(DeviceError, match="no number of objects b"):
            whole(np.array([1.0, bad]))


def test_texts_go_through_membranes(tmp_path: Path) -> None:
    top = Membrane("top", {"a": "text", "b": "text", "o": "objects x y"}, {"t": "text", "seen": "objects word any"})
    inner = top.add("inner", {"a": "text"}, {"t": "text"})
    inner.wire("a", "t", template="[{text}]")
    top.wire("a", "inner.a", template="a: {text}")
    top.wire("inner.t", "t")
    top.wire("b", "t")
    top.wire("b", "seen", contains={"word": "word", "any": ""})
    top.wire("o", "t", only=["x"], prompt={"x": "{count} x"})
    top.wire("o", "nothing", only=["y"])
    run = CompoundProgram(compile(top, output=tmp_path / "t.echo")).create()
    assert run.step({"a": "1", "b": "a word"}) == {"t": "[a: 1]\na word", "seen": {"word": 1, "any": 1}}
    assert run.step({"b": "no"}) == {"t": "no", "seen": {"any": 1}}
    assert run.step({"o": {"x": 3, "y": 2}}) == {"t": "3 x"}
    assert run.step({"o": {"y": 2}}) == {}


def test_a_membrane_of_its_own_is_a_topology(tmp_path: Path) -> None:
    text = 'in.go = "objects a"\nout.gone = "objects b"\n'
    text += "pli = \"@model<transition> def main() { @mu = []'1; [a]'1 --> b []'1; }\""
    root = read(tmp_path / "one.membrane.toml", text=text)
    assert root.name == "one"
    run = CompoundProgram(compile(root, output=tmp_path / "one.echo")).create()
    assert run.step({"go": {"a": 3}}) == {"gone": {"b": 3}}


def test_damaged_wiring(tmp_path: Path) -> None:
    top = Membrane("top", {"a": "text"}, {"t": "text"})
    top.wire("a", "t", template="{text}")
    artifact = compile(top, output=tmp_path / "t.echo")
    good = json.dumps(artifact.manifest.raw["compound"])
    _check_wiring(json.loads(good))
    for route in ({"from": [0, 0]}, {"to": [0, 0]}, {"to": [-1, 1]}, {"from": [-1, -1]}, {"to": [-2, 0]}):
        bad = json.loads(good)
        bad["routes"][0] |= route
        with pytest.raises((ValueError, IndexError)):
            _check_wiring(bad)
    with pytest.raises(ArtifactError, match="a wire asks for"):
        adapter({"kind": "shout"})


def test_places_of_keys() -> None:
    text = """a = 1
b.c = '''
d = 4
'''
[e]   # x = [
  f = [ "]", # ]
    2 ]
g = { h = 1,
 }
[["i"]]
j = "\\\\\\"["
[[i]]
j = ""
[i.k]
l = 3
"""
    assert places_of(text) == {
        ("a",): (1, 1), ("b",): (2, 1), ("b", "c"): (2, 1), ("e",): (5, 1), ("e", "f"): (6, 3), ("e", "g"): (8, 1),
        ("i", 0): (10, 1), ("i", 0, "j"): (11, 1), ("i", 1): (12, 1), ("i", 1, "j"): (13, 1), ("i", 1, "k"): (14, 1),
        ("i", 1, "k", "l"): (15, 1),
    }  # fmt: skip


def test_a_tensor_that_gets_large_becomes_a_text(tmp_path: Path) -> None:
    top = Membrane("top", {"u": "f64[2]"}, {"t": "text", "n": "i64[1]"})
    top.wire(
        "u", "t", channels=[1], threshold={"above": 0.5, "objects": ["hot"], "edge": "rising"}, prompt={"hot": "!"}
    )
    top.wire("u", "n", channels=[0], round={"objects": ["a"]}, counts=["a"])
    run = CompoundProgram(compile(top, output=tmp_path / "t.echo")).create()
    assert run.step({"u": [0, 0.2]}) == {}
    outputs = run.step({"u": [2.6, 0.7]})
    assert json.dumps({name: plain(value) for name, value in sorted(outputs.items())}) == '{"n": [3], "t": "!"}'
    assert run.step({"u": [0, 0.7]}) == {}


def test_an_artifact_whose_membranes_are_not_valid(tmp_path: Path) -> None:
    top = Membrane("top", {"x": "objects a"})
    top.add("p", {"x": "objects a"}, pli="@model<transition> def main() { @mu = []'1; [a --> a]'1; }")
    top.wire("x", "p.x")
    program = CompoundProgram(compile(top, output=tmp_path / "t.echo"))
    program.wiring["membranes"][0]["options"].clear()
    with pytest.raises(ArtifactError, match="a membrane is not valid"):
        program.create()
    for seed in (-1, 1 << 64, 1.5, True):
        with pytest.raises(RequestError, match="the seed is"):
            CompoundProgram(program.artifact.path).create(seed=seed)  # type: ignore[arg-type]
