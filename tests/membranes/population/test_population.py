"""Compiled populations against the interpreter, step by step: their choice is checked, applied there, and compared."""

from __future__ import annotations

import pytest
from random_systems import random_system

from echoc.compiler.ir import oracle
from echoc.compiler.ir.algebra import Cell, Group, Inner, Result, Rule, Send, System, Target, bag
from echoc.compiler.ir.oracle import Application, Configuration, Membrane
from echoc.compiler.targets.cpu.rewriting.population import Schedule, build, generate
from echoc.runtime.population import Population, PopulationBatch

FAMILIES = ("transition", "active", "tissue", "spiking", "kernel")


def compiled(system: System, threads: int = 2, unroll: int = 16) -> Population:
    generated = generate(system, Schedule(unroll))
    return PopulationBatch(build(generated), generated.layout, num_threads=threads, max_bytes=64 << 20)[0]


def configuration(population: Population, before: Configuration) -> dict[str, object]:
    """What the population holds, in the interpreter's terms but for ids."""
    cells = {}
    for m in population.membranes():
        cells[m["id"]] = Membrane(m["id"], m["label"], m["charge"], m["parent"], m["objects"], m.get("closed", 0))
    links = frozenset(population.links())
    return Configuration(cells, links, population.environment(), before.step, 0.0, 0)


def follow(system: System, seed: int, steps: int, unroll: int = 16) -> int:
    """Steps both; returns how many steps were taken."""
    population = compiled(system, unroll=unroll)
    population.start(seed=seed)
    current = oracle.start(system)
    for done in range(steps):
        outcome = population.advance(1, record=True)
        if outcome.halted:
            assert oracle.halted(system, current), f"it halts after {done} steps, and rules apply:\n{current}"
            return done
        applied = [Application(a.rule, a.members, a.times) for a in population.applied()]
        oracle.check(system, current, applied)
        current = oracle.apply(system, current, applied)
        found = configuration(population, current)
        assert found.canonical() == current.canonical(), f"after {applied}:\n{found}\nwanted\n{current}"
        assert len(found.links) == len(current.links)
    return steps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_every_step_is_a_step_of_the_interpreter(family: str, seed: int) -> None:
    follow(random_system(seed, family), seed, 8)


def rules_of(system: System, unroll: int) -> set[str]:
    return {s["rules"] for s in generate(system, Schedule(unroll)).layout["schedules"]}


@pytest.mark.parametrize("unroll", [0, 16])
def test_unrolled_rules_do_what_tables_do(unroll: int) -> None:
    rules = (
        Rule("1", bag(["a", "b"]), bag({"c": 2})),
        Rule("1", bag({"c": 3}), bag({"a": 1, "d": 1}), send=(Send(Target.OUT, bag({"e": 2})),)),
        Rule("1", bag(["d"]), bag(["b"])),
        Rule("2", bag({"x": 2}), bag(["x"]), send=(Send(Target.OUT, bag(["c"])),)),
    )
    cells = (Cell("1", None, bag({"a": 9, "b": 7})), Cell("2", 0, bag({"x": 13})))
    system = System("t", cells, rules, (Group((0, 1, 2, 3)),))
    assert rules_of(system, unroll) == ({"unrolled"} if unroll else {"tabled"})
    assert follow(system, 1, 12, unroll) > 4


def test_threads_do_not_show_where_membranes_compete() -> None:
    """Hundreds of membranes want a few objects of the skin, which it exchanges with the environment."""
    rules = (
        Rule("1", bag(["x"]), bag(["y"]), inner=(Inner("2", None, bag(["a"]), (Result("2", None, bag(["b"])),)),)),
        Rule(
            "1",
            produce=bag(["z"]),
            inner=(
                Inner("2", None, bag({"a": 2}), (Result("2", None, bag(["c"])),)),
                Inner("3", None, bag(["m"]), (Result("3"),)),
            ),
        ),
        Rule(None, bag(["e"]), bag(["f"]), inner=(Inner("1", None, bag(["y"]), (Result("1", None, bag(["x"])),)),)),
        Rule(None, bag(["f"]), bag(["e"]), inner=(Inner("1", None, bag(["y"]), (Result("1", None, bag(["z"])),)),)),
        Rule("2", bag(["b"]), bag(["a"]), send=(Send(Target.OUT, bag(["x"])),)),
    )
    cells = [Cell("1", None, bag({"x": 150, "y": 20})), *(Cell("2", 0, bag({"a": 3})) for _ in range(700))]
    cells.append(Cell("3", 0, bag({"m": 200})))
    system = System("t", tuple(cells), rules, (Group(tuple(range(5))),), environment=bag({"e": 40}))
    generated = generate(system)
    library, ends = build(generated), []
    for threads in (1, 2, 5):
        population = PopulationBatch(library, generated.layout, num_threads=threads, max_bytes=64 << 20)[0]
        population.start(seed=9)
        population.advance(6)
        ends.append((population.membranes(), population.environment()))
    assert ends[0] == ends[1] == ends[2]
    assert ends[0][1] not in ({}, {"e": 40})


def test_what_has_to_be_chosen_is_not_unrolled() -> None:
    rules = (Rule("1", bag(["a"]), bag(["b"])), Rule("1", bag(["a"]), bag(["c"])))
    system = System("t", (Cell("1", None, bag({"a": 9})),), rules, (Group((0, 1)),))
    assert rules_of(system, 16) == {"tabled"}
    assert follow(system, 1, 12) == 1


@pytest.mark.parametrize("count", [5, 20])
def test_a_rule_may_bind_many_membranes(count: int) -> None:
    """Objects move on in all inner membranes at once; a rule of three of them wants the same objects."""
    labels = [f"m{i}" for i in range(count)]
    inner = tuple(
        Inner(label, None, bag({"a": 1}), (Result(label, None, bag({"b": 1, "c": i % 2})),))
        for i, label in enumerate(labels)
    )
    some = tuple(Inner(label, None, bag({"a": 1}), (Result(label, None, bag(["d"])),)) for label in labels[:3])
    rules = (
        Rule("0", bag(["t"]), bag({"u": 1}), inner=inner),
        Rule("0", bag(["t"]), bag({"v": 1}), inner=some),
        Rule("0", bag(["u"]), bag(["t"])),
    )
    cells = [Cell("0", None, bag({"t": 4}))]
    cells += [Cell(label, 0, bag({"a": 3 + i % 3})) for i, label in enumerate(labels)]
    cells += [Cell("m0", 0, bag({"a": 2}))]  # two that the rules may choose between
    system = System("t", tuple(cells), rules, (Group((0, 1, 2)),))
    assert max(follow(system, seed, 12) for seed in range(3)) > 1


def test_kernels_of_every_level_run_alike() -> None:
    system = random_system(5, "active")
    ends = []
    for level in ("native", "x86-64-v3", "x86-64-v2"):
        generated = generate(system)
        population = PopulationBatch(build(generated, level), generated.layout, num_threads=1, max_bytes=64 << 20)[0]
        population.start(seed=2)
        population.advance(6)
        ends.append((population.membranes(), population.environment()))
    assert ends[0] == ends[1] == ends[2]
