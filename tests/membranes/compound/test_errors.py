"""Every mistake that a topology can have is a compile error, in its place, that says what to do."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from echoc.compiler.ir.systems import system_of
from echoc.errors import CompileError
from echoc.membranes.compound import Membrane, TopologyError, compile, read
from echoc.membranes.compound.compiling import check_wires, resolve, routes
from echoc.membranes.reservoirs import ESN

SYSTEM = '''pli = """
@model<transition>
def main() { @mu = [ [ ]'2 ]'1; [a]'1 --> b []'1; [b --> a, c]'1; }
"""
'''
HEAD = 'name = "top"\nin.x = "objects a"\nout.y = "objects b"\n'
PLAIN = HEAD + '[membranes.p]\nin.x = "objects a"\nout.y = "objects b"\n' + SYSTEM
WIRES = '[[wires]]\nfrom = "x"\nto = "p.x"\n[[wires]]\nfrom = "p.y"\nto = "y"\n'
NESTED = f"""
name = "top"
in.x = "objects a"
out.y = "objects b"
[membranes.outer]
in.x = "objects a"
out.y = "objects b"
[[membranes.outer.wires]]
from = "x"
to = "inner.x"
[[membranes.outer.wires]]
from = "inner.y"
to = "y"
[membranes.outer.membranes.inner]
in.x = "objects a"
out.y = "objects b"
{SYSTEM}
"""
TENSORS = """
name = "top"
in.u = "f64[2]"
out.y = "f64[2]"
[membranes.r]
in.u = "f64[2]"
out.x = "f64[5]"
reservoir = { units = 5, inputs = 2, connectivity = 1 }
"""


def wire(source: str, target: str, more: str = "") -> str:
    return f'[[wires]]\nfrom = "{source}"\nto = "{target}"\n{more}\n'


def check(text: str, folder: Path) -> None:
    """Everything that is checked before a compiler runs."""
    root = read(folder / "t.toml", text=text)
    joints = check_wires(root)
    routes(root, joints)
    for _, membrane in root.walk():
        if membrane.kind:
            resolve(membrane)


def test_what_is_right_passes(tmp_path: Path) -> None:
    check(PLAIN + WIRES, tmp_path)
    check(NESTED + wire("x", "outer.x") + wire("outer.y", "y"), tmp_path)


FOUND = [
    # boundaries
    (NESTED + wire("x", "outer.inner.x"),
     r"t\.toml:22:1: .*crosses two boundaries, of inner and of outer.*declare in\.x on outer"),
    (NESTED + wire("outer.inner.y", "y"), r"crosses two boundaries.*declare out\.y on outer, wire it inside outer"),
    (NESTED + wire("x", "inner.x"), r"inner\.x crosses two boundaries, of inner and of outer"),
    (NESTED.replace('to = "y"', 'to = "other.x"') + '[membranes.other]\nin.x = "objects b"\n' + SYSTEM,
     r"other is not in outer but in top: the wire crosses the boundary of outer; declare out\.x on outer"),
    (PLAIN.replace('out.y = "objects b"\n' + SYSTEM, SYSTEM) + wire("x", "p.x"), r"nothing feeds y"),
    (PLAIN + WIRES.replace('"p.y"', '"p.z"'), r"p has no out port 'z'; its out ports: y"),
    (PLAIN + WIRES.replace('"p.x"', '"p.y"'), r"p\.y is an out port"),
    (PLAIN + WIRES.replace('"p.x"', '"q.x"'), r"top has no membrane 'q'; its membranes: p"),
    (PLAIN + WIRES.replace('"x"', '"y"'), r"y is an out port"),
    # objects that no port declares
    (PLAIN.replace("[a]'1 --> b []'1", "[a]'1 --> c []'1") + WIRES,
     r"a rule of p \(.*t\.toml:9:\d+\) sends c out of the skin, and no out port declares it"),
    (PLAIN.replace('in.x = "objects a"\nout.y = "objects b"\n[', 'in.x = "objects a c"\nout.y = "objects b"\n[')
     + WIRES,
     r"the object c crosses into p\.x, which does not declare it"),
    (PLAIN.replace('out.y = "objects b"\npli', 'out.y = "objects b c"\npli') + WIRES, r"the object c crosses into y"),
    (PLAIN.replace('out.y = "objects b"\npli', 'out.y = "objects b c"\npli') + WIRES + 'only = ["b"]\n',
     r"no wire takes the object c of p\.y: it would vanish"),
    (PLAIN + WIRES + wire("p.y", "nothing"), r"two wires take the object b of p\.y, to y and nothing"),
    (PLAIN.replace('in.x = "objects a"\nout.y = "objects b"\npli', 'in.x = "objects a q"\nout.y = "objects b"\npli')
     + WIRES,
     r"port x declares q, an object that the P system in p does not have"),
    # what would vanish, what nothing feeds
    (PLAIN + wire("x", "p.x"), r"nothing feeds y|nothing reads p\.y"),
    (PLAIN + wire("p.y", "y"), r"nothing reads x: what comes there would vanish"),
    (PLAIN + WIRES + '[membranes.q]\nin.x = "objects a"\n' + SYSTEM, r"nothing feeds q\.x"),
    (PLAIN.replace('in.x = "objects a"\nout.y = "objects b"\npli', 'in.step = "objects a"\nout.y = "objects b"\npli')
     + WIRES.replace("p.x", "p.step"), r"a port named step of a P system, whose program has one; rename it"),
    # types
    (TENSORS + wire("u", "r.u") + wire("r.x", "y"), r"f64\[5\] goes to y, which takes f64\[2\]; channels chooses"),
    (TENSORS.replace('out.y = "f64[2]"', 'out.y = "objects a"') + wire("u", "r.u") + wire("r.x", "y"),
     r"threshold or round makes objects"),
    (TENSORS.replace('out.y = "f64[2]"', 'out.y = "text"') + wire("u", "r.u") + wire("r.x", "y"),
     r"there is no adapter for that"),
    (TENSORS.replace('u = "f64[2]"\nout.x', 'u = "f64[3]"\nout.x') + wire("u", "r.u"),
     r"f64\[2\] goes to r\.u, which takes f64\[3\]"),
    (TENSORS.replace("inputs = 2", "inputs = 3") + wire("u", "r.u") + wire("r.x", "y", "channels = [0, 1]"),
     r"port u is declared f64\[2\]; the reservoir in r has f64\[3\]"),
    (TENSORS.replace("out.x", "out.z") + wire("u", "r.u") + wire("r.z", "y", "channels = [0, 1]"),
     r"has no out port 'z'; it has in\.u = f64\[2\], out\.x"),
    (TENSORS + wire("u", "r.u") + wire("r.x", "y", "channels = [0, 5]"),
     r"channels is \[0, 5\]; wanted a list of numbers from 0 to 4"),
    (TENSORS + wire("u", "r.u") + wire("u", "r.u") + wire("r.x", "y", "channels = [0, 1]"),
     r"r\.u is a tensor with two sources, u and u"),
    (TENSORS + wire("u", "r.u", 'prompt = { a = "t" }'), r"prompt takes objects; the wire carries f64\[2\]"),
    (TENSORS + wire("u", "r.u", 'cast = "i64"'), r"cast is 'i64'"),
    (TENSORS + wire("u", "r.u", "threshold = { above = nan, objects = [\"a\"] }"), r"above is nan"),
    (TENSORS + wire("u", "r.u", 'threshold = { above = 1, objects = ["a"] }'),
     r"1 objects for a tensor f64\[2\]; wanted one for each channel"),
    (TENSORS + wire("u", "r.u", 'threshold = { above = 1, over = 2, objects = ["a"] }'),
     r"threshold has the key 'over'"),
    (TENSORS + wire("u", "r.u", 'cast = "f32"\nround = { objects = ["a", "b"] }'),
     r"cast takes tensor; the wire carries objects a b"),
    (PLAIN + WIRES + 'counts = ["a"]\n', r"the wire carries no object a"),
    (PLAIN + WIRES + 'prompt = { b = 3 }\n', r"prompt maps 'b' to 3"),
    # keys and values
    ("colour = 1\n" + PLAIN + WIRES, r"t\.toml:1:1: unknown key 'colour'; a membrane has name"),
    (PLAIN + WIRES + "weight = 1\n", r"unknown key 'weight'; a wire has from, to, copy"),
    (PLAIN + "[[wires]]\nfrom = \"x\"\n", r"a wire without 'to'"),
    (PLAIN + "[[wires]]\nfrom = 3\nto = \"p.x\"\n", r"from is 3"),
    (PLAIN.replace('"objects a"', '"things a"', 1) + WIRES, r"t\.toml:2:1: unknown type 'things a'"),
    (PLAIN.replace('"objects a"', '"objects a a"', 1) + WIRES, r"the object a is listed twice"),
    (TENSORS.replace("f64[2]", "f64[0]"), r"a tensor of 0 numbers"),
    (TENSORS.replace("f64[2]", "f64[999999999]"), r"a tensor of 999999999 numbers"),
    (TENSORS.replace("f64[2]", "f64[99999999999999999999]"), r"unknown type"),
    ("steps = 0\n" + PLAIN + WIRES, r"steps is 0"),
    ("steps = 99999999999999999999\n" + PLAIN + WIRES, r"steps is 99999999999999999999"),
    (PLAIN + 'reservoir = { units = 3 }\n' + WIRES, r"two contents, pli and reservoir"),
    (PLAIN + '[membranes.p.membranes.q]\n' + WIRES, r"p holds a pli and a membrane q"),
    (PLAIN.replace("name = \"top\"", "name = \"to p\"") + WIRES, r"a membrane is named 'to p'"),
    (PLAIN.replace("in.x = \"objects a\"", "in.nothing = \"objects a\"", 1) + WIRES, r"a port named 'nothing'"),
    ('name = "t"\n[membranes.p]\nname = "q"\n', r"the table's own key names the membrane"),
    ('name = "t"\nwires = 3\n', r"wires is 3; wanted \[\[wires\]\]"),
    ('name = "t"\nmembranes = 3\n', r"found 3; wanted a table"),
    ('name = "t"\n[membranes.p]\nsystem = "no.pli"\n', r"its system cannot be used: .*no file .*no\.pli"),
    ('name = "t"\n[membranes.p]\nsystem = 3\n', r"the system is 3; wanted a path"),
    ('name = "t"\n[membranes.p]\nsystem = "a\\u0000b"\n', r"wanted a path"),
    ('name = "t"\n[membranes.p]\npli = "@model<transition> def main() { @mu = []\'1; [a -->; }"\n',
     r"t\.toml:3:\d+: "),
    ('name = "t"\n[membranes.p]\nsystem = { file = "s.pli", inputs = 3 }\n', r"system has the key 'inputs'"),
    ('name = "t"\n[membranes.p]\nsystem = { file = "s.pli", parameters = { n = "a" } }\n', r"wanted a table of finite"),
    ('name = "t"\n[membranes.p]\nsystem = { file = "s.pli", seed = -1 }\n', r"seed is -1"),
    ('name = "t"\n[membranes.p]\nsystem = { file = "s.pli", include_paths = 3 }\n', r"include_paths is 3"),
    ('name = "t"\n[membranes.p]\npli = { file = "s.pli" }\n', r"pli is .*; wanted the text of a P system"),
    ('name = "t"\n[membranes.p]\nmodel = "no"\n', r"there is no model at .*no; wanted a folder"),
    ('name = "t"\n[membranes.p]\nmodel = { path = "no", colour = 3 }\n', r"model has the key 'colour'"),
    ('name = "t"\n[membranes.p]\nartifact = "no.echo"\n', r"there is no file .*no\.echo"),
    ('name = "t"\n[membranes.p]\nreservoir = { units = 5, size = 3 }\n', r"reservoir has the key 'size'"),
    ('name = "t"\n[membranes.p]\nreservoir = { units = 0 }\n', r"units is 0; wanted 1 to"),
    ('name = "t"\n[membranes.p]\nreservoir = { inputs = 1 }\n', r"a reservoir of no size"),
    ('name = "t"\n[membranes.p]\nreservoir = { units = 5, leak = 7 }\n', r"its reservoir cannot be used: .*leak"),
    ('name = "t"\n[membranes.p]\nreservoir = { tree = { units = 5, children = 3 } }\n', r"tree has the children 3"),
    ('name = "t"\n[membranes.p]\nreservoir = { tree = { units = 5, channels = [0, 9] } }\n',
     r"hears 9 channels from 0 on; there are 1"),
    ('name = "t"\n[membranes.p]\nreservoir = { units = 5, connectivity = 1, readout = "no.npz" }\n',
     r"cannot read the readout .*no\.npz"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FOUND)
def test_mistakes(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=message):
        check(text, tmp_path)


def test_circles_without_a_content(tmp_path: Path) -> None:
    text = """
name = "t"
[membranes.p]
in.x = "text"
out.y = "text"
[[membranes.p.wires]]
from = "x"
to = "y"
"""
    with pytest.raises(TopologyError, match=r"run in a circle through (p\.x|y) without a content on the way"):
        check(text + wire("p.y", "p.x"), tmp_path)
    entered = text.replace('name = "t"', 'name = "t"\nin.x = "text"')
    with pytest.raises(TopologyError, match=r"run in a circle"):
        check(entered + wire("x", "p.x") + wire("p.y", "p.x"), tmp_path)


@pytest.mark.parametrize(
    "text", ["", "= 3", "a = [", "[" * 50_000, "a = " + "[" * 50_000, "a = " + "9" * 5000, "a." * 50_000 + "b = 1",
             "\x00",
             "name = 'a'\n" + "".join(f"[membranes{'.a.membranes' * n}.a]\n" for n in range(70))],
)  # fmt: skip
def test_no_text_is_a_crash(text: str, tmp_path: Path) -> None:
    try:
        check(text, tmp_path)
    except CompileError as error:
        assert "t.toml" in str(error)  # noqa: PT017
    else:
        assert text == ""


def test_syntax_errors_have_a_place(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"t\.toml:2:5: Invalid value\n  a = \n      \^"):
        read(tmp_path / "t.toml", text="b = 1\na = \n")


def test_readouts_without_pickle(tmp_path: Path) -> None:
    text = 'name = "t"\n[membranes.p]\nin.u = "f64[1]"\nout.y = "f64[1]"\n'
    text += 'reservoir = { units = 5, connectivity = 1, readout = "r.npz" }\n'
    (membrane,) = read(tmp_path / "t.toml", text=text).children.values()
    for bad in (np.array([{}], object), np.zeros((1, 6)), np.full((1, 7), np.nan), np.zeros(7)):
        np.savez(tmp_path / "r.npz", readout=bad)
        with pytest.raises(TopologyError, match="the readout"):
            resolve(membrane)
    with zipfile.ZipFile(tmp_path / "r.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readout.npy", bytes(5 << 20))
        archive.infolist()[0].file_size = (1 << 30) + 1  # what the list of contents says
    with pytest.raises(TopologyError, match="it holds more than a gigabyte"):
        resolve(membrane)
    (tmp_path / "r.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(TopologyError, match="cannot read the readout"):
        resolve(membrane)
    np.savez(tmp_path / "r.npz", readout=np.zeros((1, 7)))
    assert resolve(membrane).kind == "tensors"


def test_routes_do_not_explode() -> None:
    """Thirty membranes in a row, each of which doubles what goes through it."""
    top = Membrane("top", {"x": "text"}, {"y": "text"})
    before = "x"
    for i in range(30):
        pair = top.add(f"p{i}", {"x": "text"}, {"y": "text", "z": "text"})
        pair.wire("x", "y")
        pair.wire("x", "z")
        for end in [before] if i == 0 else [f"p{i - 1}.y", f"p{i - 1}.z"]:
            top.wire(end, f"p{i}.x")
    top.wire("p29.y", "y")
    top.wire("p29.z", "y")
    with pytest.raises(TopologyError, match="more than 262144 routes"):
        routes(top, check_wires(top))


def test_made_in_python_the_path_is_the_place(tmp_path: Path) -> None:
    top = Membrane("top", {"u": "f64[1]"}, {"y": "f64[4]"})
    top.add("ear", {"u": "f64[2]"}, {"x": "f64[4]"}, reservoir=ESN(4, 1, connectivity=1.0))
    top.wire("u", "ear.u")
    top.wire("ear.x", "y")
    with pytest.raises(TopologyError, match=r"top: u -> ear\.u: f64\[1\] goes to ear\.u, which takes f64\[2\]"):
        compile(top, output=tmp_path / "t.echo")
    with pytest.raises(TopologyError, match=r"top/ear: top has two membranes named ear"):
        top.add("ear")
    with pytest.raises(TopologyError, match=r"unknown key 'colour'"):
        top.add("eye", colour="red")
    assert not (tmp_path / "t.echo").exists()


def test_topologies_from_other_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "inner.toml").write_text(PLAIN.replace(SYSTEM, 'system = "s.pli"\n') + WIRES)
    (tmp_path / "deep" / "s.pli").write_text(SYSTEM.split('"""')[1].lstrip())
    outer = HEAD + '[membranes.p]\nin.x = "objects a"\nout.y = "objects b"\ntopology = "deep/inner.toml"\n' + WIRES
    check(outer, tmp_path)
    assert [path for path, _ in read(tmp_path / "t.toml", text=outer).walk()] == [(), ("p",), ("p", "p")]
    for change, message in (
        (
            ('"objects b"\ntopology', '"objects a"\ntopology'),
            r"the port y is not declared alike here and in deep/inner",
        ),
        (("deep/inner", "deep/other"), r"t\.toml:7:1: the topology is 'deep/other\.toml'; wanted the path of a file"),
        (("topology =", "steps = 2\ntopology ="), r"a topology and steps in one membrane"),
    ):
        with pytest.raises(TopologyError, match=message):
            check(outer.replace(*change), tmp_path)


def test_files_in_a_circle(tmp_path: Path) -> None:
    for name in ("a", "b"):
        twice = "".join(f'[membranes.{m}]\ntopology = "{"ab"[name == "a"]}.toml"\n' for m in ("p", "q"))
        (tmp_path / f"{name}.toml").write_text(twice)
    with pytest.raises(TopologyError, match="without circles of files"):
        read(tmp_path / "a.toml")
    for i in range(25):
        twice = "".join(f'[membranes.{m}]\ntopology = "{i + 1}.toml"\n' for m in ("p", "q")) if i < 24 else ""
        (tmp_path / f"{i}.toml").write_text(twice)
    with pytest.raises(TopologyError, match="more than 1000 topologies"):
        read(tmp_path / "0.toml")


def test_wires_do_not_carry_without_bounds() -> None:
    names = [f"a{i}" for i in range(3000)]
    top = Membrane("top", {"x": {"objects": names}}, {"y": {"objects": names[::-1]}})
    for _ in range(1000):
        top.wire("x", "y", copy=True)
    with pytest.raises(TopologyError, match="more than 2097152 objects together"):
        check_wires(top)


def test_parameters_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "s.pli").write_text(
        "@model<transition>\nn = 1;\ndef main() { @mu = []'1; @ms(1) = a*n; [a --> b]'1; }\n"
    )
    text = (
        'name = "t"\n[membranes.p]\nout.n = { counts = ["a"] }\nsystem = { file = "s.pli", parameters = { n = 7 } }\n'
    )
    (membrane,) = read(tmp_path / "t.toml", text=text).children.values()
    program = resolve(membrane).program
    assert program is not None
    assert system_of(program).cells[0].objects == (("a", 7),)
