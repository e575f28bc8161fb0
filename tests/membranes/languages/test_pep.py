"""PeP files: what is read, what the interpreter makes of it, and mistakes with their place."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoc.compiler.ir.expression import evaluate
from echoc.errors import CompileError
from echoc.membranes import numerical_steps as numerical
from echoc.membranes.numerical import NumericalSystem
from echoc.membranes.pep import read
from echoc.membranes.source import SourceError

TANKS = """
tanks = {
    H = {room, tank};           # two membranes
    structure = [room [tank ]tank ]room;
    room = {
        var = {heat, loss};
        E = {switch};
        E0 = (3);
        pr = {2*heat + loss [switch -> ] 1|heat + 3|level};
        pr = {heat * 0 + 1 [level -> ] 1|loss};
        var0 = (4, ~1.5);
    };
    tank = {
        var = {level, spare};
        pr = {level^2 - 1 -> 1|level + 1|heat};
        var0 = (2);
    }
}
"""


def one(formula: str, x: float = 0.5) -> float:
    """The value of a formula of one variable."""
    system = read("one.pep", text=f"p = {{ m = {{ var = {{x}}; pr = {{{formula} -> 1|x}}; var0 = ({x}); }}; }}")
    return evaluate(system.programs[0].function, {"x": x})


def test_a_file() -> None:
    system = read("tanks.pep", text=TANKS)
    assert system.name == "tanks"
    assert system.membranes == (("room", None), ("tank", "room"))
    assert [(v.name, v.membrane, v.value) for v in system.variables] == [
        ("heat", "room", 4.0), ("loss", "room", -1.5), ("switch", "room", 3.0), ("level", "tank", 2.0),
        ("spare", "tank", 0.0),
    ]  # fmt: skip
    assert [(p.membrane, p.enzyme, p.shares) for p in system.programs] == [
        ("room", "switch", ((1.0, "heat"), (3.0, "level"))),
        ("room", "level", ((1.0, "loss"),)),
        ("tank", None, ((1.0, "level"), (1.0, "heat"))),
    ]
    assert not system.one_program
    assert system.programs[0].where.line == 9


def test_a_trajectory() -> None:
    """Step 1: switch 3 > min(4, 1.5), so 6.5 is dealt out 1:3; level 2 is not more than 4, so its program rests."""
    system = read("tanks.pep", text=TANKS)
    first = numerical.run(system, 1).values
    assert dict(first) == {"heat": 1.625 + 1.5, "loss": 0.0, "switch": 3.0, "level": 4.875 + 1.5, "spare": 0.0}
    second = numerical.run(system, 2).values
    produced, squared = 2 * 3.125, 6.375**2 - 1
    assert second["heat"] == pytest.approx(produced / 4 + squared / 2, rel=1e-15)
    assert second["loss"] == 1.0


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("2 + 3 * x", 3.5), ("(2 + 3) * x", 2.5), ("7 - 2 - 1", 4), ("8 / 4 / 2", 1), ("2 ^ 3 ^ 2", 64),
        ("-x ^ 2", -0.25), ("~x ^ 2", 0.25), ("2 ^ ~x ^ 2", 0.5), ("1 == 2 != 2", 0), ("0 < 5 > 4", 1),
        ("2 ^ -1", 0.5), ("~3 + 1", -2), ("1 + 1 == 2", 1), ("1 != 1", 0), ("2 * 3 > 2 + 1", 1),
        ("x <= 0.5", 1), ("x >= 1", 0), ("1 < x", 0), ("sqrt(x + 3.5)", 2), ("abs(~x)", 0.5), ("log2(8)", 3),
        ("log10(1000)", 3), ("asin(1)", math.pi / 2), ("acos(~1)", math.pi), ("asind(x)", 30), ("acosd(x)", 60),
        ("tand(45)", 1), ("cot(x)", 1 / math.tan(0.5)), ("acotd(1)", 45), ("atan2((~1) (~1))", -0.75 * math.pi),
        ("atan2d(1, 0)", 90), ("atan2(0, ~2)", math.pi), ("min(x, 2) + max(x, 2)", 2.5), ("1.5e1 + .5", 15.5),
    ],
)  # fmt: skip
def test_formulas(formula: str, value: float) -> None:
    assert one(formula) == pytest.approx(value, rel=1e-14)


def test_an_enzyme_is_held_against_the_least_value_with_its_sign() -> None:
    """-1 > -3, so that x and y are read; a program that reads nothing runs whatever its enzyme is."""
    text = """p = { m = { var = {x, y, z}; E = {e}; pr = {x + y [e -> ] 1|z}; pr = {7 [e -> ] 1|y};
        pr = {z + y [e -> ] 1|x}; var0 = (-3, 5, 2); E0 = (-1); }; }"""
    values = numerical.run(read("p", text=text), 1).values
    assert dict(values) == {"x": 0.0, "y": 7.0, "z": 4.0, "e": -1.0}


def test_one_of_several_programs_is_chosen() -> None:
    system = read("p", text="p = { m = { var = {x, y}; pr = {1 -> 1|x}; pr = {1 -> 1|y}; }; }")
    assert system.one_program
    end = numerical.run(system, 20, seed=3).values
    assert end["x"] + end["y"] == 20 and 0 < end["x"] < 20


BLOCK = "p = {{ m = {{ var = {{x}}; {} }}; }}"


@pytest.mark.parametrize(
    ("source", "line", "column", "words"),
    [
        (BLOCK.format("pr = {x -> 1|y};"), 1, 37, "y is not a variable"),
        (BLOCK.format("pr = {y -> 1|x};"), 1, 30, "y is not a variable"),
        (BLOCK.format("pr = {x [e -> ] 1|x};"), 1, 33, "e is not a variable"),
        (BLOCK.format("pr = {x + -> 1|x};"), 1, 34, "expected a number"),
        (BLOCK.format("pr = {x -> 0|x};"), 1, 35, "add up to 0.0"),
        (BLOCK.format("pr = {foo(x) -> 1|x};"), 1, 30, "the function foo is not known"),
        (BLOCK.format("pr = {min(x) -> 1|x};"), 1, 35, "2 arguments of min"),
        (BLOCK.format("pr = {x -> 1|x;"), 1, 38, "expected '}'"),
        (BLOCK.format("var0 = (1, 2);"), 1, 39, "var0 has 2 values"),
        (BLOCK.format("var0 = (1e999);"), 1, 32, "too large"),
        (BLOCK.format("var = {x};"), 1, 31, "x is already a variable of m"),
        (BLOCK.format("rule = 1;"), 1, 24, "'var', 'E', 'pr'"),
        ("p = {\nH = {a, b};\nstructure = [a [b ]a ]b;\n}", 3, 20, "opened last"),
        ("p = {\nH = {a, b};\nstructure = [a ]a [b ]b;\n}", 3, 20, "a second skin"),
        ("p = {\nH = {a, b};\nstructure = [a ]a;\n}", 1, 1, "the membrane b is not in the structure"),
        ("p = {\nH = {a};\nstructure = [a ]a;\nb = { };\n}", 4, 1, "b is not in H"),
        ("p = { a = { }; b = { }; }", 1, 1, "has no structure"),
        ("p = { m = { } } }", 1, 17, "the end of the file"),
        ("p = {\n  $", 2, 3, "unexpected character '$'"),
        (BLOCK.format("pr = {" + "(" * 5000 + "x -> 1|x};"), 1, 91, "more than 60 parentheses"),
        (BLOCK.format("pr = {" + "x+" * 5000 + "x -> 1|x};"), 1, 433, "nested more than 200"),
        (BLOCK.format("pr = {" + "-" * 5000 + "x -> 1|x};"), 1, 91, "more than 60 parentheses"),
        (BLOCK.format("pr = {" + "asin(" * 20 + "x" + ")" * 20 + " -> 1|x};"), 1, 141, "more than 100000 parts"),
        ("p = { structure = " + "[a " * 2 + "];", 1, 23, "stands here twice"),
    ],
)
def test_mistakes_are_shown_in_their_place(source: str, line: int, column: int, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        read("p.pep", text=source)
    error = caught.value
    assert words in str(error), str(error)
    assert (error.line, error.column) == (line, column), str(error)


PIECES = [
    "p",
    "=",
    "{",
    "}",
    "H",
    "structure",
    "m",
    "var",
    "pr",
    "x",
    "->",
    "1",
    "|",
    "1|x",
    "+",
    ";",
    "[",
    "]",
    "[m",
    "]m",
    ",",
    "(",
    ")",
    "E",
    "E0",
    "var0",
    "~",
    "^",
    "1e400",
    "#",
    "\n",
    "\0",
    "m = {",
    "pr = {",
    "var = {x};",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25), st.booleans())
def test_any_text_is_read_or_refused(pieces: list[str], begun: bool) -> None:
    source = ("p = { m = { var = {x}; " if begun else "") + " ".join(pieces)
    try:
        system = read("p.pep", text=source)
    except CompileError:
        return
    assert isinstance(system, NumericalSystem)
    assert len(numerical.run(system, 1).values) == len(system.variables)
