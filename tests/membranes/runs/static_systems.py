"""Random systems whose membranes stay, and one library for many of them: a compiler start costs more than a kernel."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from echoc.compiler.ir.algebra import (
    Bag,
    Cell,
    Group,
    Guard,
    Inner,
    Mode,
    Result,
    Rule,
    Send,
    System,
    Target,
    bag,
)
from echoc.compiler.ir.expression import call, name, number
from echoc.compiler.targets.cpu.build import build_library
from echoc.compiler.targets.cpu.rewriting.runs import generate
from echoc.runtime.runs import Runs

OBJECTS = ("a", "b", "c", "d", "e")


def compile_all(systems: Sequence[System]) -> list[Runs]:
    generated = [generate(system) for system in systems]
    sources = {name: source for g in generated for name, source in g.sources.items()}
    library = build_library(sources, "native", tiles=False)
    return [Runs(library, g.layout) for g in generated]


def one(mode: Mode, rules: Sequence[Rule], start: dict[str, int]) -> System:
    """A system of one membrane, labelled 1."""
    return System("test", (Cell("1", None, bag(start)),), tuple(rules), (Group(tuple(range(len(rules)))),), mode)


def _bag(rng: random.Random, least: int, most: int) -> Bag:
    return bag([rng.choice(OBJECTS) for _ in range(rng.randint(least, most))])


def _guard(rng: random.Random) -> Guard:
    simple = Guard(rng.choice(("ge", "gt", "le", "lt", "eq", "ne")), rng.choice(OBJECTS), rng.randint(0, 3))
    periodic = Guard("in", rng.choice(OBJECTS), starts=(0, 2), threshold=4, period=3, residues=(0, 1))
    return rng.choice(
        (simple, periodic, Guard("not", parts=(simple,)), Guard(rng.choice(("all", "any")), parts=(simple, periodic)))
    )


def _rule(rng: random.Random, mode: Mode) -> Rule:
    """A rule of one of the shapes: within a membrane, into one, out of one, from one to another, around one."""
    charge = rng.choice((None, 0, 0, 1))
    after = charge if rng.random() < 0.7 else rng.choice((0, 1, -1))
    kind = rng.randrange(5)
    consume = _bag(rng, 1, 2)
    if kind == 0:
        rule = Rule(rng.choice("ehk"), consume, _bag(rng, 0, 3), charge=charge, new_charge=after)
    elif kind == 1:
        label = rng.choice("hk")
        rule = Rule(None, consume, inner=(Inner(label, charge, (), (Result(label, after, _bag(rng, 0, 3)),)),))
    elif kind == 2:
        rule = Rule(rng.choice("ehk"), consume, _bag(rng, 0, 1), send=(Send(Target.OUT, _bag(rng, 1, 2)),))
    elif kind == 3:
        sends = (Send(Target.IN, _bag(rng, 1, 2), rng.choice("hk")),)
        rule = Rule(rng.choice("pe"), consume, _bag(rng, 0, 1), charge=charge, new_charge=after, send=sends)
    else:
        to = Inner("e", 0, (), (Result("e", 0, _bag(rng, 1, 2)),))
        rule = Rule("p", (), inner=(Inner("e", 0, consume, (Result("e", 0),)), to))
    if rng.random() < 0.15:
        rule = replace(rule, guard=_guard(rng))
    if rng.random() < 0.25:
        rule = replace(rule, promoters=bag([rng.choice(OBJECTS)]))
    if rng.random() < 0.25:
        rule = replace(rule, inhibitors=bag({rng.choice(OBJECTS): rng.randint(1, 4)}))
    if mode is Mode.DCBA:
        return replace(rule, probability=rng.choice((None, 0.25, 0.5, 0.5, 1.0, 0.0)))
    return replace(rule, rate=_rate(rng, rule))


def _rate(rng: random.Random, rule: Rule) -> object:
    if rng.random() < 0.7:
        return rng.choice((0.0, 0.5, 1.0, 3.25))
    x = name(rng.choice(OBJECTS))
    return rng.choice(
        (
            call("div", call("mul", number(3), x), call("add", number(2), x)),
            call("where", call("lt", x, number(2)), number(1.5), call("sqrt", x)),
            call("max", call("sub", x, number(1)), number(0)),
        )
    )


def random_system(seed: int, mode: Mode) -> System:
    """Two environments e in the skin p, membranes h and k in each, one of them nested."""
    rng = random.Random(seed)
    cells = [Cell("p", None, _bag(rng, 0, 3))]
    for _ in range(2):
        e = len(cells)
        cells.append(Cell("e", 0, bag({o: rng.randint(0, 20) for o in OBJECTS if rng.random() < 0.7})))
        cells.append(Cell("h", e, bag({o: rng.randint(0, 9) for o in OBJECTS if rng.random() < 0.5}), charge=0))
        cells.append(Cell("h", e, bag({"a": 3}), charge=rng.choice((0, 1))))
        cells.append(Cell("k", e + 1, bag({"b": 2, "c": rng.randint(0, 5)})))
    rules = tuple(_rule(rng, mode) for _ in range(rng.randint(4, 14)))
    return System("test", tuple(cells), rules, (Group(tuple(range(len(rules)))),), mode, environment=bag({"a": 2}))
