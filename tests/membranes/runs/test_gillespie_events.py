"""Events of chemical systems: when they happen, what they set, and their laws."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from static_systems import compile_all, one
from test_static_oracle import follow

from echoc.compiler.ir import oracle
from echoc.compiler.ir.algebra import Cell, Event, Group, Mode, Rule, System, bag
from echoc.compiler.ir.expression import TIME, Expression, call, evaluate, name, number
from echoc.compiler.ir.moments import solve
from echoc.compiler.ir.systems import program_of, system_of
from echoc.compiler.ir.text import parse, show
from echoc.errors import CompileError, DeviceError
from echoc.membranes.validate import validate

NOW = name(TIME)
X = name("X")
DECAY = Rule("1", bag("X"), rate=0.5)
BIRTH = Rule("1", (), bag("X"), rate=2.0)


def system(rules: list[Rule], start: dict[str, int], *events: Event) -> System:
    made = one(Mode.GILLESPIE, rules, start)
    return validate(System("test", made.cells, made.rules, made.groups if rules else (), Mode.GILLESPIE, events=events))


def at(time: float, value: float, **options: object) -> Event:
    """X becomes `value` at a time."""
    return Event("1", call("le", number(time), NOW), (("X", number(value)),), **options)  # type: ignore[arg-type]


def test_a_moment_splits_the_waiting_time() -> None:
    """Decay from 40 up to t = 1, from 30 afterwards: binomial both times, and exactly 30 at the moment itself."""
    (runs,) = compile_all([system([DECAY], {"X": 40}, at(1.0, 30))])
    records = runs.start(4000, seed=1).advance(times=[0.999999, 1.0, 2.0], record=[0])[:, :, 0]
    assert (records[:, 1] == 30).all()
    for found, start in ((records[:, 0], 40), (records[:, 2], 30)):
        kept = math.exp(-0.5)
        assert abs(found.mean() - start * kept) < 4 * math.sqrt(start * kept * (1 - kept) / len(found))
        assert abs(found.var() / (start * kept * (1 - kept)) - 1) < 4 * math.sqrt(2 / len(found))


def test_a_state_is_seen_as_soon_as_it_is_reached() -> None:
    """Births that are set back to 0 above 4 walk round a ring of five states: uniform in the long run."""
    reset = Event("1", call("lt", number(4), X), (("X", number(0)),))
    (runs,) = compile_all([system([BIRTH], {"X": 0}, reset)])
    batch = runs.start(4000, seed=2)
    batch.advance(until=20.0)
    share = np.bincount(batch.counts[:, 0], minlength=5) / 4000
    assert len(share) == 5 and (abs(share - 0.2) < 4 * math.sqrt(0.16 / 4000)).all()


TRIGGERS = [  # an event, and what X is at 0.5 and at 3.5
    (at(0.0, 7, holds=False), 7, 7), (at(0.0, 7), 1, 1), (at(3.0, 7), 1, 7),
    (Event("1", call("lt", number(3), NOW), (("X", number(7)),)), 1, 7),
    (Event("1", call("eq", NOW, number(3)), (("X", number(7)),)), 1, 7),
    (Event("1", call("lt", call("mul", number(2), NOW), number(6)), (("X", number(7)),), holds=False), 7, 7),
    (Event("1", call("not", call("lt", NOW, number(3))), (("X", call("mul", NOW, number(2))),)), 1, 6),
    (Event("1", call("le", X, NOW), (("X", call("add", X, number(1))),)), 1, 4),
    (Event("1", call("le", call("mul", X, NOW), number(-1)), (("X", number(9)),)), 1, 1),
]  # fmt: skip


def test_triggers_of_time() -> None:
    """X is 1 and nothing but the event changes it, compiled and interpreted."""
    systems = [system([], {"X": 1}, event) for event, _, _ in TRIGGERS]
    for made, runs, (event, first, later) in zip(systems, compile_all(systems), TRIGGERS, strict=True):
        records = runs.start(seed=1).advance(times=[0.5, 3.5], record=[0])
        assert records[0, :, 0].tolist() == [first, later], event
        configuration = oracle.start(made)
        while not oracle.halted(made, configuration):
            after = oracle.step(made, configuration, 1)
            if after.time > 3.5:
                break
            configuration = after
        assert configuration.cells[0].objects.get("X", 0) == later, event


def test_events_due_together() -> None:
    """In their order; values of when they turned unless late; dropped where no longer true and not persistent."""
    there = call("le", number(1), NOW)
    one_more = (("Y", call("add", name("X"), number(1))),)
    systems, wanted = [], (4, 11, 0)
    for early, persistent in ((True, True), (False, True), (True, False)):
        second = Event("1", call("and", there, call("lt", X, number(5))), one_more, early=early, persistent=persistent)
        systems.append(system([], {"X": 3}, Event("1", there, (("X", number(10)),)), second))
    for made, runs, y in zip(systems, compile_all(systems), wanted, strict=True):
        batch = runs.start(seed=1)
        batch.advance(until=2.0)
        assert [batch.counts[0, runs.place("1", o)] for o in "XY"] == [10, y]
        assert oracle.run(made, 1, 0).cells[0].objects.get("Y", 0) == y


def test_a_delay_ends_when_it_ends() -> None:
    """X is 1 up to t = 2; Y is 5 from t = 3 on, by what X was or is."""
    turned, plus = call("le", number(1), NOW), call("add", X, number(4))
    off = call("and", turned, call("lt", NOW, number(2.5)))
    options: list[tuple[dict[str, object], int]] = [
        ({}, 5), ({"early": False}, 6), ({"persistent": False, "trigger": off}, 0), ({"trigger": off}, 5),
        ({"delay": call("mul", number(2), X)}, 5), ({"delay": call("add", NOW, X)}, 5),
    ]  # fmt: skip
    plain: dict[str, object] = {"trigger": turned, "assignments": (("Y", plus),), "delay": number(2)}
    systems = [system([], {"X": 1}, Event("1", **(plain | given)), at(2.0, 2)) for given, _ in options]  # type: ignore[arg-type]
    for made, runs, (given, y) in zip(systems, compile_all(systems), options, strict=True):
        places = [runs.place("1", o) for o in "XY"]
        found = runs.start(seed=1).advance(times=[1.9, 2.9, 3.0, 9.0], record=[p for p in places if p is not None])
        assert found[0, :, 0].tolist() == [1, 2, 2, 2] and found[0, :, 1].tolist() == [0, 0, y, y], given
        assert oracle.run(made, 9, 0).cells[0].objects.get("Y", 0) == y


def test_delayed_resets_have_their_law() -> None:
    """Births at the rate 2; half a unit after the first one all are gone: empty half of the time in the long run."""
    reset = Event("1", call("le", number(1), X), (("X", number(0)),), delay=number(0.5))
    (runs,) = compile_all([system([BIRTH], {"X": 0}, reset)])
    batch = runs.start(4000, seed=2)
    batch.advance(until=30.0)
    assert abs((batch.counts[:, 0] == 0).mean() - 0.5) < 4 * math.sqrt(0.25 / 4000)


def test_an_event_may_wait_many_times_but_not_too_many() -> None:
    """A trigger that follows a count up and down turns at each birth of an odd one, long before the delay is over."""
    half = call("floor", call("div", X, number(2)))
    odd = call("lt", call("mul", number(2), half), X)
    systems = [
        system([BIRTH], {"X": 0}, Event("1", call("and", odd, call("lt", X, number(2 * most))), (("Y", X),),
                                        delay=number(1e3)))
        for most in (60, 200)
    ]  # fmt: skip
    few, many = compile_all(systems)
    records = few.start(seed=1).advance(times=[900.0, 2000.0], record=[few.place("1", "Y") or 0])
    assert records[0, :, 0].tolist() == [0, 119]
    with pytest.raises(DeviceError, match="waits, without end"):
        many.start(seed=1).advance(until=900.0)


def test_values_that_are_no_counts_and_events_without_end_are_loud() -> None:
    endless = Event("1", call("eq", X, number(1)), (("X", number(0)),), holds=False)
    back = Event("1", call("eq", X, number(0)), (("X", number(1)),), holds=False)
    cases: list[tuple[list[Event], str]] = [
        ([at(1.0, 2.5)], "sets a count to what is none"), ([at(1.0, -1)], "sets a count"),
        ([at(1.0, 2.0**63)], "sets a count"), ([at(1.0, math.nan)], "sets a count"), ([endless, back], "without end"),
        ([at(1.0, 2, delay=number(-1))], "after a delay from 0 on"), ([at(1.0, 2, delay=number(math.inf))], "a delay"),
    ]  # fmt: skip
    systems = [system([], {"X": 1}, *events) for events, _ in cases]
    for made, runs, (_, what) in zip(systems, compile_all(systems), cases, strict=True):
        batch = runs.start(seed=1)
        with pytest.raises(DeviceError, match=what):
            batch.advance(until=2.0)
        assert batch.counts[0].tolist()[:1] == [1] and batch.steps[0] == 0
        with pytest.raises(oracle.StepError):
            oracle.run(made, 1, 0)


def test_what_cannot_be_solved_or_found_is_refused() -> None:
    for trigger, words in (
        (call("lt", call("sin", NOW), X), "linear in it"), (NOW, "linear in it"),
        (call("lt", call("mul", NOW, NOW), X), "linear in it"), (call("lt", name("q"), X), "no object of the system"),
    ):  # fmt: skip
        with pytest.raises(CompileError, match=words):
            system([DECAY], {"X": 1}, Event("1", trigger))
    with pytest.raises(CompileError, match="which no membrane has"):
        system([DECAY], {"X": 1}, Event("2", NOW))
    with pytest.raises(CompileError, match="mode gillespie"):
        validate(System("t", (Cell("1"),), (), (), events=(Event("1", number(1)),)))


def random_trigger(rng: random.Random, depth: int = 2) -> Expression:
    if depth and rng.random() < 0.5:
        op = rng.choice(("and", "or", "not"))
        return call(op, *(random_trigger(rng, depth - 1) for _ in range(1 if op == "not" else 2)))
    count = name(rng.choice("abc"))
    if rng.random() < 0.4:
        return call(rng.choice(("lt", "le", "eq")), count, number(rng.randint(0, 8)))
    slope = rng.choice((number(rng.choice((-0.75, 0.5, 1.0, 3.0))), call("sub", count, number(2))))
    side = call("add", call("mul", slope, NOW), rng.choice((number(0.3), count)))
    sides = (side, number(rng.choice((0.25, 1.0, 2.5))))
    return call(rng.choice(("lt", "le", "eq")), *(sides if rng.random() < 0.5 else sides[::-1]))


def random_system(seed: int) -> System:
    rng = random.Random(f"events/{seed}")
    cells = (Cell("1", None, bag({"a": 5, "b": 3})), Cell("2", 0, bag({"b": 4})), Cell("2", 0, bag({"c": 2})))
    rules = [
        Rule(rng.choice("12"), bag(rng.choice("abc")) if rng.random() < 0.8 else (), bag(rng.choice("abc")), rate=0.5)
        for _ in range(rng.randint(1, 4))
    ]
    events = []
    for _ in range(rng.randint(1, 3)):
        values = [call("add", name(rng.choice("abc")), number(1)), number(rng.randint(0, 6)),
                  call("floor", call("add", NOW, name("a")))]  # fmt: skip
        sets = tuple((o, rng.choice(values)) for o in rng.sample("abc", rng.randint(1, 2)))
        flags = [rng.random() < 0.5 for _ in range(3)]
        delay = rng.choice((None, None, number(0.4), call("div", name("a"), number(4))))
        events.append(Event(rng.choice("12"), random_trigger(rng), sets, *flags, delay=delay))
    extra = Rule("1", bag("none"), bag(("a", "b", "c")), rate=0.0)
    group = (Group(tuple(range(len(rules) + 1))),)
    return validate(System("t", cells, (*rules, extra), group, Mode.GILLESPIE, events=tuple(events)))


def test_random_systems_step_as_the_interpreter_does() -> None:
    seeds = []
    for seed in range(60):
        try:
            oracle.run(random_system(seed), 14, 0)
        except oracle.StepError:
            continue  # events without end
        seeds.append(seed)
    assert len(seeds) > 30
    systems = [random_system(seed) for seed in seeds]
    compared = sum(follow(s, runs) for s, runs in zip(systems, compile_all(systems), strict=True))
    assert compared > 4 * len(seeds)


def test_stops_do_not_change_a_run_with_events() -> None:
    made = system([DECAY, BIRTH], {"X": 9}, at(1.5, 20), Event("1", call("lt", X, number(3)), (("X", number(12)),)))
    (runs,) = compile_all([made])
    whole, parts = runs.start(5, seed=8), runs.start(5, seed=8)
    records = whole.advance(times=np.linspace(0, 10, 21), record=[0])
    for i, time in enumerate(np.linspace(0, 10, 21)):
        assert (parts.advance(times=[time], record=[0])[:, 0] == records[:, i]).all()
    assert (whole.counts == parts.counts).all() and (whole.time == parts.time).all()


def test_solved_triggers_are_what_they_were() -> None:
    rng, compared = random.Random(5), 0
    for _ in range(400):
        trigger = random_trigger(rng)
        solved, turns = solve(trigger)
        counts = {o: float(rng.randint(0, 6)) for o in "abc"}
        moments = [evaluate(t.moment, counts) for t in turns]
        for time in (rng.uniform(0, 4) for _ in range(5)):
            if all(not abs(time - m) < 1e-9 for m in moments):
                assert evaluate(solved, {**counts, TIME: time}) == evaluate(trigger, {**counts, TIME: time})
                compared += 1
    assert compared > 1000


def test_events_are_part_of_the_program() -> None:
    for seed in range(10):
        made = random_system(seed)
        program = program_of(made)
        assert system_of(parse(show(program))) == made
