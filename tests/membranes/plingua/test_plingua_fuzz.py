"""Whatever the source, there is a system or a CompileError with a place."""

import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plingua_examples import EVERY

from echoc.compiler.ir.algebra import System
from echoc.errors import CompileError
from echoc.membranes.plingua import Limits, PLinguaError, parse, read, show
from echoc.membranes.plingua.lexer import KEYWORDS, SIGNS
from echoc.membranes.validate import problems

SMALL = Limits(steps=5_000, rules=500, cells=500, calls=100)
WORDS = [*sorted(KEYWORDS), *SIGNS, "@mu", "@ms", "@d", "@model", "@include", "a", "b{1}", "1", "2.5", '"a"', "main"]
ENDS = ["", "}", "; }", "]'1; }", "[", "(", "{", "'", '"', "/*", "\0", "\n"]


def outcome(source: str) -> System | PLinguaError:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read("fuzz.pli", text=source, limits=SMALL)
        except PLinguaError as error:
            return error


def attempt(source: str) -> None:
    found = outcome(source)
    if isinstance(found, PLinguaError):
        assert found.diagnostics
        assert all(d.message and d.where.file for d in found.diagnostics)
        return
    assert problems(found) == []
    try:
        text = show(found)
    except CompileError:
        return
    parse(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=60), st.sampled_from(["", " "]))
def test_words_in_any_order(words: list[str], between: str) -> None:
    attempt(between.join(words))
    attempt("@model<transition>def main(){@mu=[[]'2]'1;" + between.join(words))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    attempt(text)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.pli"
    path.write_bytes(data)
    with pytest.raises(PLinguaError):
        read(path, limits=SMALL)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_examples(name: str, data: st.DataObject) -> None:
    generator = random.Random(data.draw(st.integers(0, 1 << 30)))
    source = EVERY[name]
    for _ in range(generator.randint(1, 5)):
        at = generator.randrange(len(source) + 1)
        end = min(len(source), at + generator.choice([0, 0, 1, 4, 30]))
        source = source[:at] + generator.choice(["", " ", *WORDS, *ENDS]) + source[end:]
    attempt(source)


@pytest.mark.parametrize("name", EVERY)
def test_every_beginning_of_an_example(name: str) -> None:
    source = EVERY[name]
    for end in range(0, len(source), 7):
        attempt(source[:end])
