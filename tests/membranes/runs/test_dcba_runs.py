"""Population dynamics: distribution among blocks, probabilities, charges, environments; and the face of runs."""

from __future__ import annotations

import numpy as np
import pytest
from static_systems import compile_all, one

from echoc.compiler.ir.algebra import (
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
    Where,
    bag,
)
from echoc.compiler.ir.oracle import run as interpret
from echoc.compiler.targets.cpu.rewriting.runs import build, generate
from echoc.errors import ArtifactError, CompileError, DeviceError, RequestError
from echoc.runtime.runs import Runs


def split(consume: str, chances: dict[str, float], label: str = "1") -> list[Rule]:
    """A block: one of the products for every `consume`."""
    return [Rule(label, bag([consume]), bag([o]), probability=p) for o, p in chances.items()]


def competing() -> System:
    rules = [
        Rule("1", bag({"a": 1}), bag("x"), probability=1.0),
        Rule("1", bag({"a": 2, "b": 1}), bag("y"), probability=0.75),
        Rule("1", bag({"a": 2, "b": 1}), bag("z"), probability=0.25),
        Rule("1", bag({"b": 3, "c": 1}), bag({"a": 1, "c": 1})),
    ]
    return one(Mode.DCBA, rules, {"a": 40, "b": 33, "c": 4})


def quarrelling() -> System:
    """Two blocks that ask for different charges: one of them gets its way, at random."""
    rules = [
        Rule("1", bag("a"), bag("x"), charge=0, new_charge=1),
        Rule("1", bag("b"), bag("y"), charge=0, new_charge=-1),
        Rule("1", bag("c"), bag("z"), charge=1, new_charge=0),
    ]
    return one(Mode.DCBA, rules, {"a": 5, "b": 3, "c": 2})


def guarded() -> System:
    """One block whose rules have guards of their own."""
    rules = [
        Rule("1", bag("a"), bag("x"), probability=0.5, guard=Guard("ge", "g", 1)),
        Rule("1", bag("a"), bag("y"), probability=0.25),
        Rule("1", bag("a"), bag("z"), probability=0.5, guard=Guard("eq", "g", 0)),
        Rule("1", bag("g"), bag({"a": 6})),
    ]
    return one(Mode.DCBA, rules, {"a": 30, "g": 1})


def travelling() -> System:
    """Two environments: what is in one moves to the other or stays."""
    cells = (Cell("p", None), Cell("e1", 0, bag({"a": 30})), Cell("e2", 0, bag({"a": 10})), Cell("h", 1), Cell("h", 2))

    def move(source: str, to: str, p: float) -> Rule:
        here, there = Inner(source, 0, bag("a"), (Result(source, 0),)), Inner(to, 0, (), (Result(to, 0, bag("b")),))
        return Rule(None, inner=(here, there), probability=p)

    rules = (
        move("e1", "e2", 0.3),
        Rule(None, inner=(Inner("e1", 0, bag("a"), (Result("e1", 0, bag("b")),)),), probability=0.7),
        move("e2", "e1", 0.9),
        Rule(None, inner=(Inner("e2", 0, bag("a"), (Result("e2", 0, bag("b")),)),), probability=0.1),
        Rule(None, bag("b"), inner=(Inner("h", 0, (), (Result("h", 0, bag("c")),)),)),
    )
    return System("test", cells, rules, (Group(tuple(range(5))),), Mode.DCBA)


def scarce() -> System:
    """Too little for the distribution, which rounds down: the order of the maximality phase decides, at random."""
    rules = [Rule("1", bag({"a": 3}), bag(o), new_charge=c) for o, c in (("x", None), ("y", 0))]
    return one(Mode.DCBA, rules, {"a": 4})


def unlike() -> System:
    """Blocks under different conditions that hold together compete as others do."""
    rules = [
        Rule("1", bag("a"), bag("x"), charge=0, new_charge=0),
        Rule("1", bag("a"), bag("y"), promoters=bag("p")),
        Rule("1", bag("a"), bag("z"), charge=1),
        Rule("1", bag("q"), bag("p"), charge=1, new_charge=1),
        Rule("1", bag("r"), bag("r"), charge=0, new_charge=1, guard=Guard("ge", "x", 1)),
    ]
    return one(Mode.DCBA, rules, {"a": 31, "p": 1, "q": 1, "r": 1})


MAKERS = (competing, quarrelling, guarded, travelling, scarce, unlike)


@pytest.fixture(scope="module")
def compiled() -> dict[str, Runs]:
    return dict(zip([m.__name__ for m in MAKERS], compile_all([m() for m in MAKERS]), strict=True))


@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
def test_moments_agree_with_the_interpreter(compiled: dict[str, Runs], maker: object) -> None:
    system, runs = maker(), compiled[maker.__name__]  # type: ignore[operator,attr-defined]
    steps, few, many = 2, 150, 20000
    batch = runs.start(many, seed=3)
    batch.advance(steps)
    ends = [interpret(system, steps, seed) for seed in range(few)]
    assert runs.size > 2
    for cell, entry in enumerate(runs.cells[:-1]):
        for obj, place in entry["objects"].items():
            expected = np.array([end.cells[cell].objects.get(obj, 0) for end in ends], float)
            found = batch.counts[:, place]
            # 4.5 standard errors of the smaller sample; both have a deterministic place now and then
            margin = 4.5 * max(expected.std(), found.std()) / few**0.5
            assert abs(found.mean() - expected.mean()) <= margin, f"{obj} in {entry['label']}"
            assert found.std() == pytest.approx(expected.std(), rel=0.3, abs=0.1), f"{obj} in {entry['label']}"


def test_a_block_is_multinomial() -> None:
    chances = {"x": 0.6, "y": 0.3, "z": 0.1}
    (runs,) = compile_all([one(Mode.DCBA, split("a", chances), {"a": 1000})])
    batch = runs.start(20000, seed=9)
    batch.advance(1)
    for obj, p in chances.items():
        found = batch.counts[:, runs.place("1", obj)]
        deviation = (1000 * p * (1 - p)) ** 0.5
        assert abs(found.mean() - 1000 * p) < 4 * deviation / 20000**0.5
        assert found.std() == pytest.approx(deviation, rel=0.03)
    x, y = batch.counts[:, runs.place("1", "x")], batch.counts[:, runs.place("1", "y")]
    assert np.cov(x, y)[0, 1] == pytest.approx(-1000 * 0.6 * 0.3, rel=0.05)


def test_a_run_does_not_depend_on_the_others(compiled: dict[str, Runs]) -> None:
    runs = compiled["competing"]
    whole = runs.start(40, seed=5, threads=2)
    records = whole.advance(3, every=1)
    alone = runs.start(1, seed=5, first=17, threads=1)
    for step in range(3):
        assert (alone.advance(1, every=1)[0, 0] == records[17, step]).all()
    assert (alone.counts[0] == whole.counts[17]).all()
    assert (runs.start(40, seed=6).counts == runs.start(40, seed=5).counts).all()
    other = runs.start(40, seed=6)
    other.advance(3)
    assert (other.counts != whole.counts).any()


def test_what_has_halted_stays(compiled: dict[str, Runs]) -> None:
    runs = compiled["travelling"]
    batch = runs.start(3)
    c = [entry["objects"]["c"] for entry in runs.cells if entry["label"] == "h"]
    records = batch.advance(9, every=2, record=c)
    assert records.shape == (3, 4, 2)
    assert batch.halted.all() and (batch.steps == 2).all()
    assert (records.sum(axis=2) == 40).all()
    assert (records == batch.counts[:, None, c]).all()
    assert batch.advance(0).shape == (3, 0, runs.size)


def test_overflow_is_loud_and_leaves_the_step_undone() -> None:
    (runs,) = compile_all([one(Mode.DCBA, [Rule("1", bag("a"), bag({"a": 2}))], {"a": 3})])
    batch = runs.start()
    with pytest.raises(DeviceError, match=r"step 62: the count of a in membrane 1 would pass 2\^63 - 1"):
        batch.advance(100)
    assert batch.steps[0] == 61 and batch.counts[0, 0] == 3 << 61


def test_a_system_where_nothing_applies_halts_at_once() -> None:
    (runs,) = compile_all([one(Mode.DCBA, [Rule("1", bag("b"), bag("a"))], {"a": 3})])
    batch = runs.start(2)
    batch.advance(5)
    assert batch.halted.all() and (batch.steps == 0).all() and (batch.counts == 3).all()


REFUSED = {
    "divides or separates": Rule(None, inner=(Inner("1", None, bag("a"), (Result("1"), Result("1"))),)),
    "dissolves the membrane": Rule(None, inner=(Inner("1", None, bag("a")),)),
    "dissolves its membrane": Rule("1", bag("a"), dissolve=True),
    "changes the label": Rule(None, inner=(Inner("1", None, bag("a"), (Result("2"),)),)),
    "has a delay": Rule("1", bag("a"), delay=1),
    "has a priority": Rule("1", bag("a"), priority=1),
    "changes links": Rule("1", bag("a"), link="1"),
    "sends along links": Rule("1", bag("a"), send=(Send(Target.LINKED, bag("a"), "1"),)),
    "consumes nothing": Rule("1", (), bag("a")),
    "has the probability nan": Rule("1", bag("a"), probability=float("nan")),
    "has the probability -0.5": Rule("1", bag("a"), probability=-0.5),
    "has a rate": Rule("1", bag("a"), rate=1.0),
    "wanted 0 to 2\\^63 - 1": Rule("1", bag("a"), bag({"b": 1 << 63})),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_meaning_is_refused_with_its_place(what: str) -> None:
    rule = REFUSED[what]
    placed = Rule(**{f: getattr(rule, f) for f in rule.__slots__} | {"where": Where("model.pli", 7, 3)})
    with pytest.raises(CompileError, match=what) as caught:
        generate(one(Mode.DCBA, [placed], {"a": 1}))
    assert "model.pli:7:3" in str(caught.value) and "-->" in str(caught.value)


def test_other_modes_are_refused() -> None:
    with pytest.raises(CompileError, match="mode parallel, wanted dcba and gillespie"):
        generate(one(Mode.PARALLEL, [Rule("1", bag("a"))], {"a": 1}))


def test_bad_requests_are_refused(compiled: dict[str, Runs]) -> None:
    runs = compiled["competing"]
    batch = runs.start(2)
    for call, what in (
        (lambda: runs.start(0), "at least one"),
        (lambda: runs.start(1 << 40), "no memory"),
        (lambda: batch.advance(1 << 40, every=1), "no memory"),
        (lambda: runs.start(seed=-1), "seed"),
        (lambda: runs.start(threads=0), "threads"),
        (lambda: runs.start(counts=np.zeros(2, np.int64)), "counts"),
        (lambda: runs.start(counts=np.full(runs.size, -1)), "negative"),
        (lambda: runs.place("9", "a"), "no cell has the label '9'; known: 1, environment"),
        (lambda: batch.advance(), "number of steps"),
        (lambda: batch.advance(-1), "-1 steps"),
        (lambda: batch.advance(1, every=-2), "every -2"),
        (lambda: batch.advance(1, until=3.0), "for mode gillespie"),
        (lambda: batch.advance(1, every=1, record=[99]), "place 99"),
    ):
        with pytest.raises(RequestError, match=what):
            call()
    assert (batch.steps == 0).all()


def test_foreign_libraries_and_layouts_are_refused() -> None:
    generated = generate(competing())
    with pytest.raises(DeviceError, match="does not load"):
        Runs(b"no library", generated.layout)
    with pytest.raises(ArtifactError, match="layout"):
        Runs(build(generated), {k: v for k, v in generated.layout.items() if k != "cells"})
    with pytest.raises(DeviceError, match="no kernel named other"):
        Runs(build(generated), {**generated.layout, "entry": "other"})


def test_the_source_begins_with_the_rules() -> None:
    (source,) = generate(competing()).sources.values()
    assert source.startswith("// [a]'1 --> [x]'1 :: 1.0\n// [a*2, b]'1 --> [y]'1 :: 0.75\n")


def test_names_cannot_break_out_of_comments() -> None:
    rule = Rule("1", bag(["a\\"]), bag(["b\nint x;"]))
    generated = generate(one(Mode.DCBA, [rule], {"a\\": 2}))
    runs = Runs(build(generated), generated.layout)
    batch = runs.start()
    batch.advance(1)
    assert batch.counts[0, runs.place("1", "b\nint x;")] == 2
