from collections.abc import Iterator

import pytest
from bench_machines import CONTENDED, FREE, SHARED, reply

from echoc.bench.probes import CoreState, classify
from echoc.bench.sampling import (
    Lane,
    SamplingPlan,
    by_round,
    count_clean,
    discard_counts,
    judge,
    lost_shares,
    main_state,
    take_samples,
)


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
    assert classify(one, team, threads, cpu_share).state == state


def test_an_undisturbed_sample_is_kept() -> None:
    assert judge(reply(), FREE, FREE, threads=2, cpus=2) == (None, "free")


def test_a_shared_core_is_recorded_and_kept() -> None:
    assert judge(reply(), FREE, SHARED, threads=2, cpus=2) == (None, "shared-core")


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
    taken = take_samples([lane("a"), lane("b")], plan, lambda _patience: FREE, 2, 2)
    assert order == ["a", "b", "b", "a"]
    assert [count_clean(samples) for samples in taken.values()] == [2, 2]


def test_discarded_samples_are_tried_again_and_counted() -> None:
    seen = states(CONTENDED, FREE, FREE, FREE)
    plan = SamplingPlan(rounds=2, max_rounds=6, settle_seconds=0)
    samples = take_samples([Lane("a", reply)], plan, lambda _patience: next(seen), 2, 2)["a"]
    assert [sample.discarded is None for sample in samples] == [False, True, True]
    assert discard_counts(samples) == {"cores busy beside the sample": 1}
    assert by_round(samples, "free", 3) == [None, 1.0, 1.0]


def test_retries_are_bounded() -> None:
    plan = SamplingPlan(rounds=2, max_rounds=5, settle_seconds=0)
    samples = take_samples([Lane("a", reply)], plan, lambda _patience: CONTENDED, 2, 2)["a"]
    assert (len(samples), count_clean(samples), main_state(samples)) == (5, 0, None)


def test_the_share_others_may_take_is_an_option() -> None:
    disturbed = reply(run_delay=0.2, foreign=0.2)
    assert judge(disturbed, FREE, FREE, threads=2, cpus=2, max_lost=0.25)[0] is None
    assert judge(disturbed, FREE, FREE, threads=2, cpus=2, max_lost=0.05)[0] == "waited for a core"
