"""Readers of membranes to throw sources at: how each is called, its words, and small sources to mutate."""

from __future__ import annotations

import io
import json
import random
import re
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


@dataclass(frozen=True, slots=True)
class Language:
    """How to read one language. `words` are tokens to mix, `seeds` sources to mutate; `change` keeps a source well
    formed and changes what it says."""

    read: Callable[[str], object]
    words: Sequence[str]
    seeds: Sequence[str]
    change: Callable[[str, random.Random], str] | None = None


NUMBERS = ("0", "-1", "1", "2.5", "63", "9223372036854775807", "1e308", "1e-320", "-1e400", "9" * 20, "", "x")
VALUES = (0, -1, 1, 2**63, 10**400, 1e300, 0.5, "1/3", "sqrt(5)", None, [], {})


def change_xml(source: str, generator: random.Random) -> str:
    """Elements cut, copied, moved and renamed, attributes and texts exchanged."""
    root = ElementTree.fromstring(source)
    for _ in range(generator.randint(1, 4)):
        elements = list(root.iter())
        one, other = generator.choice(elements), generator.choice(elements)
        kind = generator.randrange(7)
        if kind < 3 and len(one):
            child = generator.choice(list(one))
            if kind != 1:
                one.remove(child)
            if kind:
                (other if other not in list(child.iter()) else one).insert(generator.randint(0, 2), deepcopy(child))
        elif kind == 3:
            one.tag = other.tag
        elif kind == 4:
            one.text = generator.choice((other.text, *NUMBERS))
        elif one.attrib:
            key = generator.choice(list(one.attrib))
            values = list(other.attrib.values()) or ["true"]
            one.attrib[key] = generator.choice((generator.choice(values), "false", *NUMBERS))
            if kind == 6:
                del one.attrib[key]
    return ElementTree.tostring(root, encoding="unicode")


def change_lines(source: str, generator: random.Random) -> str:
    """Lines cut, copied and moved, quoted words and numbers exchanged."""
    lines = source.split("\n")
    for _ in range(generator.randint(1, 4)):
        at, to = generator.randrange(len(lines)), generator.randrange(len(lines))
        kind = generator.randrange(5)
        if kind < 2:
            taken = lines[at] if kind else lines.pop(at)
            lines.insert(to, taken)
        elif kind == 2 and len(lines) > 1:
            del lines[at]
        else:
            words = re.findall(r'"[^"]*"|[A-Za-z_]+|[0-9.]+', lines[at])
            others = re.findall(r'"[^"]*"|[0-9.]+', source) + list(NUMBERS[:-2])
            if words:
                lines[at] = lines[at].replace(generator.choice(words), generator.choice(others), 1)
    return "\n".join(lines)


def change_json(source: str, generator: random.Random) -> str:
    """Values of JSON lines exchanged, cut and copied."""
    documents = [json.loads(line) for line in source.splitlines()]
    for _ in range(generator.randint(1, 4)):
        holders: list[Any] = []
        stack: list[Any] = [documents]
        while stack:
            value = stack.pop()
            if isinstance(value, dict | list) and value:
                holders.append(value)
                stack += value.values() if isinstance(value, dict) else value
        if not holders:
            break
        holder, other = generator.choice(holders), generator.choice(holders)
        key = generator.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        part = generator.choice(list(other.values()) if isinstance(other, dict) else other)
        new = generator.choice((other, part, generator.choice(VALUES)))
        if generator.random() < 0.2:
            del holder[key]
        else:
            holder[key] = deepcopy(new)
    return "\n".join(json.dumps(d) for d in documents) + "\n"


def sbml() -> Language:
    """Models of several levels with all that is read, made of the words of one."""
    from echoc.compiler.targets.cpu.rewriting.runs import generate
    from echoc.membranes.sbml import read, values

    def attempt_sbml(source: str) -> None:
        system = read("fuzz.xml", text=source)
        values("fuzz.xml", text=source)
        generate(system)

    math = '<math xmlns="http://www.w3.org/1998/Math/MathML">%s</math>'
    time_ = '<csymbol encoding="text" definitionURL="http://www.sbml.org/sbml/symbols/time">t</csymbol>'
    law = math % "<apply><times/><ci>k</ci><ci>A</ci></apply>"
    function = math % "<lambda><bvar><ci>x</ci></bvar><apply><power/><ci>x</ci><cn>2</cn></apply></lambda>"
    trigger = (
        math % f"<apply><and/><apply><geq/>{time_}<cn>2</cn></apply><apply><gt/><ci>A</ci><cn>3</cn></apply></apply>"
    )
    twice = math % "<apply><times/><cn>2</cn><apply><ci>f</ci><ci>A</ci></apply></apply>"
    reaction = f"""<listOfReactions><reaction id="r" reversible="false">
<listOfReactants><speciesReference species="A" stoichiometry="2" constant="true"/></listOfReactants>
<listOfProducts><speciesReference species="B" stoichiometry="1" constant="true"/></listOfProducts>
<kineticLaw>{law}</kineticLaw></reaction></listOfReactions>"""
    whole = f"""<sbml xmlns="http://www.sbml.org/sbml/level3/version2/core" level="3" version="2"><model id="m">
<listOfFunctionDefinitions><functionDefinition id="f">{function}</functionDefinition></listOfFunctionDefinitions>
<listOfCompartments><compartment id="c" spatialDimensions="3" size="2" constant="true"/></listOfCompartments>
<listOfSpecies><species id="A" compartment="c" initialAmount="9" hasOnlySubstanceUnits="true" constant="false"
boundaryCondition="false"/><species id="B" compartment="c" initialConcentration="3" hasOnlySubstanceUnits="false"
constant="false" boundaryCondition="false"/></listOfSpecies>
<listOfParameters><parameter id="k" value="0.5" constant="true"/><parameter id="y" constant="false"/></listOfParameters>
<listOfInitialAssignments><initialAssignment symbol="k">{math % "<cn>3</cn>"}</initialAssignment>
</listOfInitialAssignments><listOfRules><assignmentRule variable="y">{twice}</assignmentRule></listOfRules>
{reaction}
<listOfEvents><event id="e" useValuesFromTriggerTime="true"><trigger initialValue="false" persistent="true">{trigger}
</trigger><delay>{math % "<ci>k</ci>"}</delay><listOfEventAssignments>
<eventAssignment variable="A">{math % "<cn>7</cn>"}</eventAssignment>
</listOfEventAssignments></event></listOfEvents></model></sbml>"""
    old = f"""<sbml xmlns="http://www.sbml.org/sbml/level2/version4" level="2" version="4"><model id="m">
<listOfCompartments><compartment id="c" size="1" outside="d"/><compartment id="d"/></listOfCompartments>
<listOfSpecies><species id="A" compartment="c" initialAmount="9" hasOnlySubstanceUnits="true"/>
<species id="B" compartment="d" initialAmount="1"/></listOfSpecies>
<listOfParameters><parameter id="k" value="2"/></listOfParameters>
{reaction.replace(' constant="true"', "")}</model></sbml>"""
    words = [
        "<apply>",
        "</apply>",
        "<ci>A</ci>",
        "<ci>y</ci>",
        "<ci>k</ci>",
        "<cn>",
        "</cn>",
        time_,
        law,
        trigger,
        twice,
        reaction,
    ]
    words += [
        f"<{op}/>"
        for op in [
            "plus",
            "minus",
            "times",
            "divide",
            "power",
            "root",
            "ln",
            "exp",
            "and",
            "or",
            "not",
            "xor",
            "eq",
            "lt",
            "gt",
            "leq",
            "min",
            "max",
        ]
    ]
    words += [
        '"A"',
        '"k"',
        '"c"',
        '"y"',
        "<piecewise>",
        "<piece>",
        "</piece>",
        "<delay>",
        "</delay>",
        "<rateRule",
        "&amp;",
    ]
    words += [
        'outside="c"',
        'constant="false"',
        "INF",
        "-0",
        "NaN",
        '<cn type="rational">1<sep/>0</cn>',
        'reversible="true"',
    ]
    return Language(attempt_sbml, words, [whole, old], change_xml)


def topology() -> Language:
    """Everything that is checked before a compiler runs; files that a topology names are not there."""
    from echoc.membranes.compound import read
    from echoc.membranes.compound.compiling import check_wires, resolve, routes

    folder = Path(tempfile.mkdtemp(prefix="echoc-fuzz-"))

    def attempt_topology(source: str) -> None:
        root = read(folder / "fuzz.toml", text=source)
        if not root.kind:
            routes(root, check_wires(root))
        for _, membrane in root.walk():
            small = (
                membrane.kind != "reservoir" or "units" not in str(membrane.content) or _numbers(membrane.content) < 200
            )
            if membrane.kind and membrane.kind != "model" and small:
                resolve(membrane)

    system = """pli = '''
@model<transition>
def main() { @mu = [ [ ]'2 ]'1; [a]'1 --> b []'1; [b --> a, c]'1; }
'''"""
    seed = f"""name = "top"
in.x = "objects a"
in.u = "f64[2]"
out.y = "objects b"
out.z = "f64[2]"
out.t = {{ counts = ["b"] }}
[membranes.p]
in.x = "objects a"
out.y = "objects b"
steps = 3
{system}
[membranes.q.membranes.r]
in.u = "f64[2]"
out.x = "f64[5]"
reservoir = {{ units = 5, inputs = 2, connectivity = 1, leak = 0.5 }}
[membranes.q]
in.u = "f64[2]"
out.x = "f64[5]"
wires = [{{ from = "u", to = "r.u" }}, {{ from = "r.x", to = "x" }}]
[[wires]]
from = "x"
to = "p.x"
[[wires]]
from = "p.y"
to = "y"
only = ["b"]
copy = true
[[wires]]
from = "p.y"
to = "t"
counts = ["b"]
copy = true
[[wires]]
from = "u"
to = "q.u"
[[wires]]
from = "q.x"
to = "z"
channels = [0, 3]
"""
    tree = """in.u = "f64[2]"
out.x = "f64[12]"
reservoir = { inputs = 2, tree = { units = 4, children = [
    { units = 4, channels = [0, 1] }, { units = 4, channels = [1, 1], leak = 0.3 } ] } }
"""
    words = (
        "name in out steps membranes wires topology reservoir pli system kpl artifact from to only copy counts into of"
    )
    words += (
        " threshold round cast channels contains prompt nothing objects text f64[3] f32[1] i64[2] units tree children"
    )
    listed = [
        *words.split(),
        *[
            "=",
            ".",
            ",",
            "[",
            "]",
            "[[",
            "]]",
            "{",
            "}",
            '"',
            '"""',
            "true",
            "nan",
            "inf",
            "-1",
            "1e400",
            "1979-05-27",
            '"x"',
            '"p.y"',
            '"q.x"',
        ],
        "\n",
    ]
    return Language(attempt_topology, listed, [seed, tree], change_lines)


def _numbers(value: object) -> float:
    """The largest number in tables and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return max(map(_numbers, value), default=0.0)
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 else 0.0
    )


def trace() -> Language:
    from echoc.membranes.view.page import render
    from echoc.membranes.view.reading import Trace
    from echoc.membranes.view.shape import sample, series
    from echoc.membranes.view.text import trace_text

    def attempt_trace(source: str) -> None:
        list(trace_text(Trace(io.StringIO(source))))
        render(Trace(io.StringIO(source)))
        series([sample(frame)[1] for frame in Trace(io.StringIO(source))])

    lines = [
        {"schema": "echoc.trace/1", "name": "t", "model": "m", "seed": 1, "run": 0, "labels": ["1", "2"],
         "objects": ["a", "b"], "rules": ["[a --> b]'1"], "source": ""},
        {"step": 0, "membranes": [{"id": 0, "label": "1", "charge": 0, "parent": None, "objects": {"a": 3}},
                                  {"id": 1, "label": "2", "charge": 1, "parent": 0, "objects": {}, "name": "n"}],
         "environment": {"b": 2}, "links": [[0, 1]]},
        {"step": 1, "time": 0.5, "membranes": [{"id": 0, "label": "1", "charge": 0, "objects": {"b": 3}}],
         "applied": [{"rule": 0, "membranes": [0], "times": 3}]},
        {"step": 2, "counts": {"1": {"membranes": 2, "objects": {"a": 1}}}},
        {"step": 3, "values": {"x": 1.5, "y": "NaN"}},
        {"halted": True, "step": 3, "reason": "no rule applies"},
    ]  # fmt: skip
    texts = [json.dumps(line, separators=(",", ":")) for line in lines]
    words = [
        *texts,
        *[
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            '"',
            '"id"',
            '"parent"',
            '"objects"',
            '"step"',
            '"counts"',
            '"values"',
            "null",
            "true",
            "NaN",
            "Infinity",
            "-1",
            "1e999",
        ],
    ]
    seeds = ["\n".join(texts) + "\n", "\n".join(texts[:3])]
    return Language(attempt_trace, [*words, "\n", "\ud800", '"\\ud800"'], seeds, change_json)


def trees() -> Language:
    """What is said of a tree by `echoc trees`."""
    from echoc.membranes.trees import forms
    from echoc.membranes.trees.counting import rank, unrank
    from echoc.membranes.trees.invariants import density, symmetry

    def attempt_tree(source: str) -> None:
        tree = forms.parse(source)
        for form in forms.Form:
            assert forms.parse(forms.write(tree, form)) == tree
        assert forms.from_nested(forms.to_nested(tree)) == tree
        if len(tree) <= 60:
            assert unrank(len(tree), rank(tree)) == tree
            density(tree), symmetry(tree)

    words = [
        *[
            "[",
            "]",
            "(",
            ")",
            "[]",
            "()",
            "'1",
            "'{1,2}",
            "'a{i}",
            "+",
            "-",
            "0",
            "1",
            "2",
            "3",
            "-1",
            ",",
            ";",
            "x",
            "999999999",
            "1e3",
            "[]'2",
        ],
        "\n",
        " ",
        "\u0663",
    ]
    return Language(
        attempt_tree, words, ["[[]'2+[[]]'3]'1", "1,2,3,3,2", "-1,0,0,1,1", "((),((),()))", "2 -1 1", "0 1 1 2"]
    )


def tableau() -> Language:
    from echoc.membranes.trees.levels import TreeError
    from echoc.membranes.trees.tableau import exact_order, is_symplectic, tableau_of_mapping

    def attempt_tableau(source: str) -> None:
        try:
            document = json.loads(source)
        except (ValueError, RecursionError):
            return
        for tolerance in (None, 1e-9):
            try:
                method = tableau_of_mapping(document, tolerance=tolerance)
                exact_order(method, limit=4, tolerance=tolerance)
                is_symplectic(method, tolerance=tolerance)
            except TreeError:
                if tolerance is not None:
                    raise

    seeds = [
        {"A": [[], ["1/2"], [0, "1/2"], [0, 0, 1]], "b": ["1/6", "1/3", "1/3", "1/6"], "c": [0, "1/2", "1/2", 1]},
        {"A": [["1/4", "1/4 - sqrt(3)/6"], ["1/4 + sqrt(3)/6", "1/4"]], "b": ["1/2", "1/2"], "name": "gauss"},
        {"A": [[0.0, 0.0], [0.5, 0.0]], "b": [0.0, 1.0], "b_hat": [1, 0], "c": [0, 0.5]},
    ]
    words = [
        '"sqrt(',
        ")",
        '"1/',
        "/",
        "*",
        "(",
        "sqrt(2)",
        '"',
        "[",
        "]",
        ",",
        "null",
        "0.1",
        "1e308",
        "-",
        "[[]]",
        "NaN",
        "{",
    ]
    return Language(attempt_tableau, words, [json.dumps(seed) for seed in seeds], change_json)
