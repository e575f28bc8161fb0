"""kP-Lingua: what every construct means, runs by the interpreter, and mistakes with their place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoc.compiler.ir import oracle
from echoc.compiler.ir.algebra import Bound, Guard, Mode, Send, System, Target
from echoc.errors import CompileError
from echoc.membranes.kplingua import read
from echoc.membranes.source import SourceError

FACTORY = """
/* a worker, a store, and */ // the rest
type Worker {
  choice { =2a, b: a -> c . >=3a & !stop | <=0d & (>e | <2f): 2a, b -> [a] [b, 2c] (Store) . }
  max { b -> {} . }
  arbitrary { c -> 2c, d, e (Store), {2f, g} (Store), h . }
  a -> # .
  stop: b -> -(Store) .
  b -> \\-(Store) .
}
type Store { }
w {3a, stop} (Worker) - {} (Store) .
store {2c} (Store), {} (Store) .
*(Store) - w .
"""


def text(source: str) -> System:
    return read("factory.kpl", text=source)


def test_every_construct() -> None:
    system = text(FACTORY)
    assert system.mode is Mode.ORDERED
    assert [(c.label, c.objects, c.name) for c in system.cells] == [
        ("Worker", (("a", 3), ("stop", 1)), "w"),
        ("Store", (), ""),
        ("Store", (("c", 2),), "store"),
        ("Store", (), ""),
    ]
    assert set(system.links) == {(0, 1), (1, 0), (0, 2), (2, 0), (0, 3), (3, 0)}
    assert [(g.rules, g.bound) for g in system.groups] == [
        ((0, 1), Bound.CHOICE),
        ((2,), Bound.MAXIMAL),
        ((3,), Bound.ARBITRARY),
        ((4, 5, 6), Bound.SEQUENCE),
    ]
    both, divides, vanishes, sends, dissolves, links, unlinks = system.rules
    assert both.guard == Guard("all", parts=(Guard("eq", "a", 2), Guard("eq", "b", 1)))
    assert divides.guard is not None and divides.guard.op == "any"
    assert [p.op for p in divides.guard.parts] == ["all", "all"]
    assert divides.guard.parts[1].parts[1] == Guard("any", parts=(Guard("gt", "e", 1), Guard("lt", "f", 2)))
    assert divides.divide == (("Worker", (("a", 1),)), ("Store", (("b", 1), ("c", 2))))
    assert not vanishes.produce
    assert sends.produce == (("c", 2), ("d", 1), ("h", 1))
    assert sends.send == (Send(Target.LINKED, (("e", 1), ("f", 2), ("g", 1)), "Store"),)
    assert dissolves.dissolve
    assert links.guard == Guard("eq", "stop", 1) and links.link == "Store"
    assert unlinks.unlink == "Store"
    assert divides.where.line == 4


def test_tokens_travel_to_the_linked_cell_and_blocks_run_in_order() -> None:
    system = text("""
        type In { choice { >=2a: 2a -> b (Out) . =a: a -> {} . } max { c -> d . d -> e . } }
        x {5a, 2c} (In) - y {} (Out) .
    """)
    first, second, third = (oracle.run(system, n, 0) for n in (1, 2, 3))
    assert dict(first.cells[0].objects) == {"a": 3, "d": 2} and dict(first.cells[1].objects) == {"b": 1}
    assert dict(second.cells[0].objects) == {"a": 1, "e": 2}
    assert dict(third.cells[0].objects) == {"e": 2} and dict(third.cells[1].objects) == {"b": 2}
    assert oracle.halted(system, third)


def test_division_doubles_and_keeps_links() -> None:
    system = text("""
        type Cell { choice { !r1: a -> [a, r1] [x, a, r1] . !r2: a -> [a, r2] [3x, a, r2] . } done -> {} . }
        c {a} (Cell) - {} (Sink) .
    """)
    end = oracle.run(system, None, 4)
    assert sorted(c.objects.get("x", 0) for c in end.cells.values() if c.label == "Cell") == [0, 1, 3, 4]
    assert end.step == 2


@pytest.mark.parametrize(
    ("source", "line", "column", "words"),
    [
        ("type A {\n  a -> b\n}", 3, 1, "expected '.' at the end of the rule"),
        ("type A { a -> b (B) . }", 1, 18, "the type B is not defined"),
        ("type A { }\ntype A { }", 2, 6, "already defined in line 1"),
        ("type A { }\nx {a} (A) .\nx {} (A) .", 3, 1, "the instance x is already declared"),
        ("type A { }\nx {a} (A) - y .", 2, 13, "y is not an instance"),
        ("type A { }\nx {a} (A) .\nx .", 3, 3, "expected '-' and what to link it to"),
        ("type A { }\n*(A) - *(A) .", 2, 1, "no instance of A is declared before"),
        ("type A { >= : a -> b . }", 1, 13, "expected a comparison"),
        ("type A { a & b -> c . }", 1, 16, "expected ':' between the guard and the rule"),
        ("type A { 0a -> b . }", 1, 10, "consumes nothing"),
        ("type A { 99999999999999999999a -> b . }", 1, 10, "too large"),
        ("type A { a -> , . }", 1, 15, "expected an object"),
        ("type A { /* a -> b . }", 1, 10, "'*/'"),
        ("type A { a -> b . } %", 1, 21, "unexpected character '%'"),
        ("type A {", 1, 9, "the end of the file"),
        ("type A { " + "(" * 300, 1, 111, "nested more than"),
    ],
)
def test_mistakes_are_shown_in_their_place(source: str, line: int, column: int, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        text(source)
    error = caught.value
    assert (error.line, error.column) == (line, column), str(error)
    assert words in str(error)
    assert f"factory.kpl:{line}:{column}: " in str(error)
    assert str(error).splitlines()[-1].strip() == "^"


def test_files_that_cannot_be_read(tmp_path: object) -> None:
    with pytest.raises(CompileError, match="cannot read"):
        read(f"{tmp_path}/absent.kpl")
    with pytest.raises(CompileError, match="cannot read"):
        read("a\0b.kpl")


PIECES = [
    "type",
    "A",
    "x",
    "{",
    "}",
    "(A)",
    "(",
    ")",
    "[",
    "]",
    "a",
    "2a",
    "->",
    ".",
    ",",
    "-",
    "\\-",
    "#",
    "*",
    ":",
    "&",
    "|",
    "!",
    ">=",
    "choice",
    "max",
    "\0",
    "//",
    "/*",
    "*/",
    "\n",
    "99999999999999999999",
    "é",
    "\ud800",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_any_text_is_read_or_refused(pieces: list[str]) -> None:
    source = " ".join(pieces)
    try:
        system = text(source)
    except CompileError:
        return
    assert {i for g in system.groups for i in g.rules} == set(range(len(system.rules)))
