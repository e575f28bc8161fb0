from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_machines import CONTENDED, FREE, SHARED, reply

from echoc.bench.sampling import (
    Lane,
    Sample,
    SamplingPlan,
    clean_seconds,
    clean_states,
    count_clean,
    discard_counts,
    judge,
    lanes_lacking,
    lost_shares,
    state_ratios,
    take_samples,
)
from echoc.bench.states import Best, BestKnown, CoreState, Reading, classify


@pytest.mark.parametrize(
    ("one", "team", "threads", "cpu_share", "state"),
    [
        (100.0, 198.0, 2, 1.0, "free"),
        (100.0, 105.0, 2, 1.0, "shared-core"),
        (100.0, 198.0, 2, 0.5, "contended"),
        (100.0, 100.0, 1, 1.0, "free"),
    ],
)
def test_state_of_the_cores(one: float, team: float, threads: int, cpu_share: float, state: str) -> None:
    assert classify(Reading(team / one, cpu_share, line_ns=99.0), threads, Best()).state == state


@pytest.mark.parametrize(
    ("read", "line_ns", "state"),
    [(60e9, 160.0, "free"), (45e9, 160.0, "free"), (30e9, 160.0, "slow-reads"), (60e9, 0.0, "contended"),
     (39e9, 28.0, "one-complex"), (58e9, 28.0, "free")],
)  # fmt: skip
def test_reads_and_lines_tell_where_the_cores_are(read: float, line_ns: float, state: str) -> None:
    found = classify(Reading(2.0, 1.0, read, line_ns), 2, Best(60e9, 165.0))
    assert (found.state, found.read_share) == (state, pytest.approx(read / 60e9))


def test_the_best_reading_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "best.json"
    known = BestKnown(path)
    known.learn(Reading(2.0, 0.5, 90e9, 160.0), 2)  # disturbed
    known.learn(Reading(2.0, 1.0, 90e9, 0.0), 2)  # one of the pair was late
    assert not path.exists()
    for read in (50e9, 60e9, 40e9):
        known.learn(Reading(2.0, 1.0, read, 160.0), 2)
    assert BestKnown(path).best == Best(60e9, 160.0)
    path.write_text('{"read": "much"}')
    assert BestKnown(path).best == Best()
    assert [file.name for file in path.parent.iterdir()] == ["best.json"]


def test_an_undisturbed_sample_is_kept() -> None:
    assert judge(reply(), FREE, FREE, threads=2, cpus=2) == (None, "free")


def test_a_state_is_recorded_and_kept() -> None:
    assert judge(reply(), SHARED, SHARED, threads=2, cpus=2) == (None, "shared-core")
    assert judge(reply(), FREE, SHARED, threads=2, cpus=2) == (None, "changed")


@pytest.mark.parametrize(
    ("run_delay", "foreign", "steal", "before", "reason"),
    [
        (0.2, 0.2, 0.0, FREE, "waited for a core"),
        (0.0, 0.2, 0.0, FREE, "other processes busy"),
        (0.0, 0.0, 0.1, FREE, "stolen by the hypervisor"),
        (0.0, 0.0, 0.0, CONTENDED, "cores busy beside the sample"),
    ],
)
def test_reasons_to_discard(run_delay: float, foreign: float, steal: float, before: CoreState, reason: str) -> None:
    found, state = judge(reply(1.0, run_delay, foreign, steal), before, FREE, threads=2, cpus=2)
    assert (found, state) == (reason, "contended")


def test_an_engine_that_delays_itself_is_kept() -> None:
    assert judge(reply(run_delay=0.5), FREE, FREE, threads=2, cpus=2)[0] is None


def test_two_ticks_of_the_system_clock_are_no_evidence() -> None:
    assert judge(reply(0.1, run_delay=0.01, foreign=0.02), FREE, FREE, threads=2, cpus=2)[0] is None


def test_work_on_other_cpus_does_not_disturb() -> None:
    assert judge(reply(foreign=0.5), FREE, FREE, threads=2, cpus=8)[0] is None


def test_lost_shares_are_of_the_time_there_was() -> None:
    assert lost_shares(reply(2.0, run_delay=0.4, foreign=0.8, steal=0.2), 2, 2) == pytest.approx((0.1, 0.2, 0.05))


def states(*names: CoreState) -> Iterator[CoreState]:
    yield from names
    while True:
        yield FREE


def test_lanes_run_in_turn_and_the_order_turns() -> None:
    order: list[str] = []

    def lane(name: str) -> Lane:
        return Lane(name, lambda: order.append(name) or reply())

    plan = SamplingPlan(rounds=2, max_rounds=6, settle_seconds=0)
    taken = take_samples([lane("a"), lane("b")], plan, lambda _patience, _wait: FREE, 2, 2)
    assert order == ["a", "b", "b", "a"]
    assert [count_clean(samples) for samples in taken.values()] == [2, 2]


def test_discarded_samples_are_tried_again_and_counted() -> None:
    seen = states(CONTENDED, FREE, FREE, FREE)
    plan = SamplingPlan(rounds=2, max_rounds=6, settle_seconds=0)
    samples = take_samples([Lane("a", reply)], plan, lambda _patience, _wait: next(seen), 2, 2)["a"]
    assert [sample.discarded is None for sample in samples] == [False, True, True]
    assert discard_counts(samples) == {"cores busy beside the sample": 1}
    assert clean_seconds(samples, "free") == [1.0, 1.0]


def test_retries_are_bounded() -> None:
    plan = SamplingPlan(rounds=2, max_rounds=5, settle_seconds=0)
    samples = take_samples([Lane("a", reply)], plan, lambda _patience, _wait: CONTENDED, 2, 2)["a"]
    assert (len(samples), count_clean(samples), clean_states(samples)) == (5, 0, [])


def test_the_share_others_may_take_is_an_option() -> None:
    disturbed = reply(run_delay=0.2, foreign=0.2)
    assert judge(disturbed, FREE, FREE, threads=2, cpus=2, max_lost=0.25)[0] is None
    assert judge(disturbed, FREE, FREE, threads=2, cpus=2, max_lost=0.05)[0] == "waited for a core"


def sample(number: int, state: str = "free", seconds: float = 1.0, discarded: str | None = None) -> Sample:
    return Sample(number, seconds, state, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, discarded)


def test_lanes_end_with_samples_of_one_state() -> None:
    one = CoreState("one-complex", 2.0, 1.0)
    seen = iter([FREE, FREE, one, one, FREE, FREE, *[one] * 20])
    order: list[str] = []
    lanes = [Lane(name, lambda name=name: order.append(name) or reply()) for name in ("a", "b")]
    plan = SamplingPlan(rounds=1, max_rounds=4, settle_seconds=0)
    taken = take_samples(lanes, plan, lambda _patience, _wait: next(seen), 2, 2)
    assert order == ["a", "b", "b"]
    assert [[sample.state for sample in samples] for samples in taken.values()] == [["free"], ["one-complex", "free"]]


def test_a_wanted_state_is_tried_for_and_earlier_samples_count() -> None:
    taken = {"a": [sample(0), sample(1, "one-complex")], "b": [sample(0, "one-complex")]}
    assert lanes_lacking(taken, 1) == []
    assert lanes_lacking(taken, 1, "free") == ["b"]
    assert lanes_lacking({"a": [sample(0, discarded="busy")]}, 1) == ["a"]
    plan = SamplingPlan(rounds=1, max_rounds=2, settle_seconds=0)
    more = take_samples(
        [Lane("a", reply), Lane("b", reply)], plan, lambda _p, _w: FREE, 2, 2, taken=taken, wanted=lambda: "free"
    )
    assert [[(s.round, s.state) for s in samples] for samples in more.values()] == [
        [(0, "free"), (1, "one-complex")],
        [(0, "one-complex"), (2, "free")],
    ]


def test_ratios_pair_rounds_of_one_state() -> None:
    ours = [sample(0, seconds=1.0), sample(1, seconds=2.0), sample(2, "one-complex", 9.0)]
    theirs = [sample(0, seconds=3.0), sample(1, seconds=8.0), sample(2, seconds=1.0, discarded="busy")]
    assert state_ratios(ours, theirs, "free") == [3.0, 4.0]
    assert state_ratios(ours, theirs, "one-complex") == []
    assert state_ratios(ours, [sample(5, seconds=4.0)], "free") == [4.0]
    states = [sample(0, "changed"), sample(1, "changed"), sample(2, "one-complex"), sample(3)]
    assert clean_states(states) == ["free", "one-complex", "changed"]
