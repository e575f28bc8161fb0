"""Spiking neural P systems in the words of P-Lingua 4, and regular expressions over one letter."""

import random
import re

import pytest
from plingua_examples import SPIKING

from echoc.compiler.ir.algebra import Bound, Group, Guard, Mode, Send, Target
from echoc.membranes.plingua import read
from echoc.membranes.plingua.spiking import BadExpression, unary_language


def accepts(guard: Guard, count: int) -> bool:
    if count < guard.threshold:
        return count in guard.starts
    return (count - guard.threshold) % guard.period in guard.residues


def lengths(expression: str, most: int = 60) -> list[int]:
    guard = unary_language(expression, "a")
    return [n for n in range(most) if accepts(guard, n)]


@pytest.mark.parametrize(
    "expression",
    [
        "a",
        "",
        "a*",
        "a+",
        "a?",
        "aa(aa)*",
        "a(aa|aaa)*",
        "(aa)*|(aaa)*",
        "a{3}",
        "a{2,}",
        "a{2,4}",
        "(a{3}|a{5})+",
        "((a))",
    ],
)
def test_lengths_are_those_of_the_regular_expression(expression: str) -> None:
    compiled = re.compile(expression)
    assert lengths(expression) == [n for n in range(60) if compiled.fullmatch("a" * n)]


MOST = 40


def test_random_expressions() -> None:
    generator = random.Random(5)

    def sums(first: set[int], second: set[int]) -> set[int]:
        return {a + b for a in first for b in second if a + b < MOST}

    def powers(words: set[int], low: int, high: int) -> set[int]:
        found, power = set(), {0}
        for n in range(high + 1):
            found |= power if n >= low else set()
            power = sums(power, words)
        return found

    def make(depth: int) -> tuple[str, set[int]]:
        """An expression and the lengths of its words, by the definition of its operators."""
        if depth == 0:
            count = generator.randint(1, 3)
            return "a" * count, {count}
        (x, first), (y, second) = make(depth - 1), make(depth - 1)
        kind = generator.randrange(4)
        if kind == 0:
            return f"({x})({y})", sums(first, second)
        if kind == 1:
            return f"({x}|{y})", first | second
        sign, low, high = generator.choice(
            [("*", 0, MOST), ("+", 1, MOST), ("?", 0, 1), ("{2}", 2, 2), ("{1,3}", 1, 3)]
        )
        return f"({x}){sign}", powers(first, low, high)

    for _ in range(100):
        expression, words = make(4)
        assert set(lengths(expression, MOST)) == words, expression


def test_a_number_behind_the_star_repeats() -> None:
    assert lengths("a*2") == [2]
    assert lengths("(a*3)+", 10) == [3, 6, 9]


def test_the_guard_is_in_least_numbers() -> None:
    assert unary_language("aaa(aa)*", "a") == Guard("in", "a", starts=(), threshold=2, period=2, residues=(1,))
    assert unary_language("(aa)*|(aaaa)*", "a").period == 2
    assert unary_language("spike(spike)*", "spike") == Guard("in", "spike", threshold=1, period=1, residues=(0,))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("b", "wanted 'a'"),
        ("(a", r"wanted '\)'"),
        ("a)", "wanted the end"),
        ("*a", "wanted 'a'"),
        ("a{", "wanted a number"),
        ("a{3,2}", "repeats 3 to 2"),
        ("a{1000000}", "states"),
        ("((((a{99}){99}){99}){99}){99}", "states"),
        ("(" * 1000, "deep"),
        ("a{" + "9" * 100 + "}", "times"),
        ("(" + "|".join(f"(a{{{p}}})*" for p in (101, 103, 107, 109, 113)) + ")", "very many steps"),
    ],
)
def test_bad_expressions(expression: str, message: str) -> None:
    with pytest.raises(BadExpression, match=message):
        unary_language(expression, "a")


def test_a_system() -> None:
    found = read("s.pli", text=SPIKING)
    assert [c.label for c in found.cells] == ["a1", "a2", "out", "n{1}", "n{2}"]
    assert [c.parent for c in found.cells] == [None] * 5
    assert found.links == ((0, 1), (1, 0), (0, 2), (1, 2), (3, 4))
    assert found.groups == (Group(tuple(range(6)), Bound.AT_MOST, 1),)
    assert found.mode is Mode.PARALLEL
    spike, forget, delayed, out, one, two = found.rules
    assert spike.send == (Send(Target.SYNAPSES, (("a", 1),)),)
    assert (forget.send, forget.guard, forget.consume) == ((), Guard("eq", "a", 1), (("a", 1),))
    assert delayed.delay == 1
    assert out.send == (Send(Target.SYNAPSES, (("a", 1),)), Send(Target.OUT, (("a", 1),)))
    assert (one.label, one.consume, two.label, two.consume) == ("n{1}", (("a", 2),), "n{2}", (("a", 4),))
