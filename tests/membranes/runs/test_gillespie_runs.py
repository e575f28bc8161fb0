"""Chemical systems: moments with closed forms, the stationary and transient laws that the direct method must give."""

from __future__ import annotations

import numpy as np
import pytest
from static_systems import compile_all, one

from echoc.compiler.ir.algebra import Cell, Group, Mode, Rule, Send, System, Target, bag
from echoc.compiler.ir.expression import Expression, call, name, number
from echoc.compiler.targets.cpu.rewriting import gillespie
from echoc.compiler.targets.cpu.rewriting.runs import generate
from echoc.errors import CompileError, DeviceError, RequestError
from echoc.runtime.runs import Runs

RUNS = 10000


def react(consume: dict[str, int], produce: dict[str, int], rate: float | Expression, label: str = "1") -> Rule:
    return Rule(label, bag(consume), bag(produce), rate=rate)


def ranges(found: np.ndarray, mean: float, sd: float) -> tuple[float, float]:
    """How far mean and standard deviation are off, in the normalised units of the stochastic SBML test suite (DSMTS):
    sqrt(n) (m - mean) / sd and sqrt(n / 2) (s^2 / sd^2 - 1)."""
    n = len(found)
    return n**0.5 * (found.mean() - mean) / sd, (n / 2) ** 0.5 * (found.var() / sd**2 - 1)


def birth_death(birth: float, death: float, start: int, t: float) -> tuple[float, float]:
    """Mean and standard deviation of the linear birth-death process (Bailey 1964, section 8.6)."""
    growth = birth - death
    mean = start * np.exp(growth * t)
    variance = start * (birth + death) / growth * np.exp(growth * t) * (np.exp(growth * t) - 1)
    return mean, variance**0.5


def immigration_death(rate: float, death: float, t: float) -> tuple[float, float]:
    """From nothing: Poisson with mean rate / death (1 - exp(-death t))."""
    mean = rate / death * (1 - np.exp(-death * t))
    return mean, mean**0.5


def dimers(k1: float, k2: float, total: int, t: float) -> tuple[float, float]:
    """2 P <-> P2 from `total` P: the master equation for the number of dimers, solved by its matrix exponential."""
    size = total // 2 + 1
    generator = np.zeros((size, size))
    for d in range(size):
        p = total - 2 * d
        up, down = k1 * p * (p - 1) / 2, k2 * d
        if d + 1 < size:
            generator[d + 1, d] += up
        if d:
            generator[d - 1, d] += down
        generator[d, d] -= (up if d + 1 < size else 0) + down
    # exp(A t) by scaling and squaring of its Taylor series
    step = generator * t / 2**20
    power = np.eye(size) + step + step @ step / 2
    for _ in range(20):
        power = power @ power
    law = power[:, 0]
    number_of = np.arange(size)
    mean = float(law @ number_of)
    return mean, float(law @ number_of**2 - mean**2) ** 0.5


def spread_out(rules: list[Rule], start: dict[str, int]) -> System:
    """The same system with as many membranes again that do the same: too large for straight-line code."""
    copies = gillespie.STRAIGHT
    cells = (Cell("0", None), *(Cell("1", 0, bag(start)) for _ in range(copies)))
    return System("test", cells, tuple(rules), (Group(tuple(range(len(rules)))),), Mode.GILLESPIE)


BIRTH_DEATH = [react({"X": 1}, {"X": 2}, 0.1), react({"X": 1}, {}, 0.11)]
IMMIGRATION = [react({}, {"X": 1}, 1.0), react({"X": 1}, {}, call("mul", number(0.1), name("X")))]
DIMERS = [react({"P": 2}, {"P2": 1}, 0.01), react({"P2": 1}, {"P": 2}, 0.1)]


@pytest.fixture(scope="module")
def compiled() -> dict[str, Runs]:
    systems = {}
    for key, rules, start in (
        ("birth", BIRTH_DEATH, {"X": 100}),
        ("immigration", IMMIGRATION, {}),
        ("dimers", DIMERS, {"P": 60}),
    ):
        systems[key] = one(Mode.GILLESPIE, rules, start)
        systems[key + " large"] = spread_out(rules, start)
    return dict(zip(systems, compile_all(list(systems.values())), strict=True))


@pytest.mark.parametrize("size", ["", " large"])
@pytest.mark.parametrize("case", ["birth", "immigration", "dimers"])
def test_moments_have_their_closed_forms(compiled: dict[str, Runs], case: str, size: str) -> None:
    runs = compiled[case + size]
    cells = [i for i, entry in enumerate(runs.cells) if entry["label"] == "1"]
    assert len(cells) == (gillespie.STRAIGHT if size else 1)
    obj, law = {
        "birth": ("X", lambda t: birth_death(0.1, 0.11, 100, t)),
        "immigration": ("X", lambda t: immigration_death(1.0, 0.1, t)),
        "dimers": ("P2", lambda t: dimers(0.01, 0.1, 60, t)),
    }[case]
    times = [2.0, 10.0, 25.0]
    places = [runs.place(cell, obj) for cell in cells]
    batch = runs.start(RUNS // len(cells), seed=2)
    records = batch.advance(times=times, record=[p for p in places if p is not None])
    for i, t in enumerate(times):
        mean, sd = ranges(records[:, i].ravel(), *law(t))
        assert abs(mean) < 3 and abs(sd) < 5, f"at {t}"


def test_stops_do_not_change_a_run(compiled: dict[str, Runs]) -> None:
    for case in ("birth", "birth large"):
        runs = compiled[case]
        whole, parts = runs.start(3, seed=8), runs.start(3, seed=8)
        records = whole.advance(times=np.linspace(0, 10, 11), until=10.0)
        for i in range(11):
            assert (parts.advance(times=[float(i)])[:, 0] == records[:, i]).all()
        assert (whole.counts == parts.counts).all() and (whole.time == parts.time).all()
        by_events = runs.start(3, seed=8)
        for _ in range(int(whole.steps.max())):
            by_events.advance(1, until=10.0)
        assert (by_events.counts == whole.counts).all() and (by_events.steps == whole.steps).all()


def test_every_nth_event_is_recorded(compiled: dict[str, Runs]) -> None:
    for case in ("dimers", "dimers large"):
        runs = compiled[case]
        records = runs.start(2, seed=4).advance(30, every=10)
        steps = runs.start(2, seed=4)
        for i in range(3):
            steps.advance(10)
            assert (records[:, i] == steps.counts).all()
        assert records.shape == (2, 3, runs.size)


def test_records_that_a_run_does_not_reach_are_marked(compiled: dict[str, Runs]) -> None:
    for case in ("immigration", "immigration large"):
        by_events = compiled[case].start(5, seed=1)
        records = by_events.advance(1000, every=1, until=3.0)
        for row, steps in enumerate(by_events.steps):
            assert 0 < steps < 1000
            assert (records[row, :steps] >= 0).all() and (records[row, steps:] == -1).all()
        by_time = compiled[case].start(5, seed=1)
        records = by_time.advance(2, times=[0.0, 1e6])
        assert (records[:, 0] == 0).all() and (records[:, 1] == -1).all() and (by_time.steps == 2).all()


def test_extinction_halts_and_fills_the_records() -> None:
    (runs,) = compile_all([one(Mode.GILLESPIE, [react({"X": 1}, {}, 1.0)], {"X": 5})])
    batch = runs.start(50, seed=1)
    records = batch.advance(times=[0.0, 1000.0])
    assert (records[:, 0] == 5).all() and (records[:, 1] == 0).all()
    assert batch.halted.all() and (batch.steps == 5).all() and (batch.time < 1000).all()


def test_products_go_out_and_in() -> None:
    cells = (Cell("0", None, bag({"a": 1000})), Cell("1", 0), Cell("1", 0))
    rules = (
        Rule("0", bag("a"), send=(Send(Target.IN, bag("b"), "1"),), rate=1.0),
        Rule("1", bag("b"), send=(Send(Target.OUT, bag("c")),), rate=2.0),
        Rule("0", bag("c"), send=(Send(Target.OUT, bag("d")),), rate=2.0),
    )
    (runs,) = compile_all([System("test", cells, rules, (Group((0, 1, 2)),), Mode.GILLESPIE)])
    batch = runs.start(100, seed=1)
    applied = batch.advance(until=0.5, record=[])
    assert applied.shape == (100, 0, 0)
    left = batch.counts[:, runs.place("0", "a")]
    assert abs(ranges(left, 1000 * np.exp(-0.5), (1000 * np.exp(-0.5) * (1 - np.exp(-0.5))) ** 0.5)[0]) < 4
    first, second = batch.counts[:, runs.place(1, "b")], batch.counts[:, runs.place(2, "b")]
    assert abs(first.mean() - second.mean()) < 0.1 * first.mean() and first.mean() > 50
    assert (batch.counts.sum(axis=1) == 1000).all()
    batch.advance(until=100.0)
    assert (batch.counts[:, runs.place("environment", "d")] == 1000).all() and batch.halted.all()


@pytest.mark.parametrize("copies", [1, 20])
def test_overflow_and_bad_rates_are_loud(copies: int) -> None:
    idle = [react({f"o{i}": 1}, {}, 0.0) for i in range(copies)]
    start = {f"o{i}": 1 for i in range(copies)}
    full = one(Mode.GILLESPIE, [react({}, {"X": 1}, 1.0), *idle], {"X": (1 << 63) - 3, **start})
    law = call("sub", number(2.5), name("X"))
    negative = one(Mode.GILLESPIE, [react({}, {"X": 1}, law), *idle], {"X": 0, **start})
    nothing = one(Mode.GILLESPIE, [react({}, {"X": 1}, call("div", number(0), name("X"))), *idle], {"X": 0, **start})
    overflow, below, nan = (runs.start(seed=1) for runs in compile_all([full, negative, nothing]))
    with pytest.raises(DeviceError, match=r"step 3: the count of X in membrane 1 would pass"):
        overflow.advance(10)
    assert overflow.steps[0] == 2 and overflow.counts.max() == (1 << 63) - 1
    with pytest.raises(DeviceError, match=r"step 4: the propensity of \[#\]'1 --> \[X\]'1 at .* in membrane 1"):
        below.advance(10)
    assert below.counts[0, below.runs.place("1", "X")] == 3
    with pytest.raises(DeviceError, match="step 1: the propensity"):
        nan.advance(10)


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf"), None, name("nobody")])
def test_bad_rates_are_refused(rate: float | Expression | None) -> None:
    with pytest.raises(CompileError, match="mode gillespie does not have that"):
        generate(one(Mode.GILLESPIE, [Rule("1", bag("a"), rate=rate)], {"a": 1}))


def test_bad_requests_are_refused(compiled: dict[str, Runs]) -> None:
    batch = compiled["birth"].start()
    for call_it, what in (
        (lambda: batch.advance(), "or `until`"),
        (lambda: batch.advance(until=float("nan")), "NaN"),
        (lambda: batch.advance(times=[2.0, 1.0]), "ascending"),
        (lambda: batch.advance(every=2, until=1.0), "number of steps"),
    ):
        with pytest.raises(RequestError, match=what):
            call_it()


@pytest.mark.parametrize("idle", [0, 20])
def test_promoters_and_inhibitors_are_looked_at_after_every_event(idle: int) -> None:
    rules = [
        react({"a": 1}, {"c": 1}, 1.0),
        Rule("1", bag("b"), bag("d"), promoters=bag("c"), rate=1.0),
        Rule("1", bag("e"), bag("f"), inhibitors=bag("a"), rate=1.0),
        *(react({f"o{i}": 1}, {}, 0.0) for i in range(idle)),
    ]
    start = {"a": 1, "b": 1, "e": 1, **{f"o{i}": 1 for i in range(idle)}}
    (runs,) = compile_all([one(Mode.GILLESPIE, rules, start)])
    batch = runs.start(20, seed=3)
    records = batch.advance(10, every=1, record=[p for o in "acdf" if (p := runs.place("1", o)) is not None])
    assert (records[:, 0] == [0, 1, 0, 0]).all()
    assert (records[:, -1] == [0, 1, 1, 1]).all() and (batch.steps == 3).all()
