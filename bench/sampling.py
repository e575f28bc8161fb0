"""Taking samples, and refusing those in which the process did not have the cores to itself."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from echoc.bench.process import Reply
from echoc.bench.states import CoreState

MAX_LOST = 0.03  # of the machine's CPU time taken by others, or of threads * wall time spent waiting for a core
STEAL_SHARE = 1 / 3  # of that for what the hypervisor takes of the machine's CPU time
FOREIGN_FLOOR_SECONDS = 0.02  # /proc/stat counts in ticks of 10 ms


@dataclass(frozen=True)
class Sample:
    """One timed run: round, seconds, state of the cores around it (states.CORE_STATES) with the multiply-adds of all
    threads over those of one, the bytes/s that the probes read and the nanoseconds of a cache line between the cores,
    shares lost to others, and why it was refused."""

    round: int
    seconds: float
    state: str
    scaling: float
    read: float
    line_ns: float
    run_delay: float
    foreign: float
    steal: float
    discarded: str | None

    def as_dict(self) -> dict[str, float | str | int | None]:
        """Plain values for the report."""
        return asdict(self)


def judge(
    reply: Reply,
    before: CoreState,
    after: CoreState,
    threads: int,
    cpus: int,
    max_lost: float = MAX_LOST,
    beside: int = 0,
) -> tuple[str | None, str]:
    """Why a sample must be refused (None if it need not be) and the state of the cores it was taken in.

    Run delay counts only where somebody else was busy: an engine with more threads than cores delays itself, and
    that is its own affair. Foreign time counts against a process that uses all CPUs even when the run delay does
    not show it, and never for less than two ticks of the counter. `beside` busy processes of ours on a core each are
    meant to be there: run delay tells nothing then, and their cores are no foreign time.
    """
    run_delay, foreign, steal = lost_shares(reply, threads, cpus)
    if beside:
        run_delay, foreign = 0.0, max(0.0, foreign - beside / cpus)
    wall = reply.seconds
    foreign_seen = foreign * cpus * wall > FOREIGN_FLOOR_SECONDS
    reason = None
    if steal > max_lost * STEAL_SHARE and steal * cpus * wall > FOREIGN_FLOOR_SECONDS:
        reason = "stolen by the hypervisor"
    elif run_delay > max_lost and foreign_seen:
        reason = "waited for a core"
    elif foreign > max_lost and foreign_seen and threads >= cpus:
        reason = "other processes busy"
    elif "contended" in (before.state, after.state):
        reason = "cores busy beside the sample"
    if reason:
        return reason, "contended"
    return None, before.state if before.state == after.state else "changed"


def lost_shares(reply: Reply, threads: int, cpus: int) -> tuple[float, float, float]:
    """Run delay (of threads * wall), foreign time and steal (of cpus * wall) of a sample, each as a share."""
    wall = max(reply.seconds, 1e-9)
    usage = reply.usage
    foreign = max(0.0, usage.get("machine_busy", 0.0) - usage.get("cpu", 0.0))
    return (
        usage.get("run_delay", 0.0) / (threads * wall),
        foreign / (cpus * wall),
        usage.get("machine_steal", 0.0) / (cpus * wall),
    )


@dataclass(frozen=True)
class Lane:
    """An engine's way to run the workload once, and how many busy processes of ours are beside it meanwhile."""

    name: str
    run: Callable[[], Reply]
    engine: str = ""
    beside: int = 0


@dataclass(frozen=True)
class SamplingPlan:
    """How many clean rounds are wanted, how many may be tried, and how long to wait for free cores before each.

    `patience_seconds`: while others have the cores. `wait_seconds`: while the cores are not free in another way, before
    one sample; `wait_total`: before all samples of a run. `max_lost`: share of the cores that others may take before a
    sample is refused. `settle_seconds`: pause after a sample, so that an engine's spinning threads park before the
    next probe.
    """

    rounds: int = 5
    max_rounds: int = 15
    patience_seconds: float = 2.0
    max_lost: float = MAX_LOST
    settle_seconds: float = 0.05
    wait_seconds: float = 0.0
    wait_total: float = 600.0


def take_samples(
    lanes: Sequence[Lane],
    plan: SamplingPlan,
    probe: Callable[[float, float], CoreState],
    threads: int,
    cpus: int,
    on_sample: Callable[[str, Sample], None] = lambda _name, _sample: None,
    taken: dict[str, list[Sample]] | None = None,
    wanted: Callable[[], str | None] = lambda: None,
) -> dict[str, list[Sample]]:
    """Runs lanes in turn (A B, B A, A B ...) until each has `rounds` clean samples of one state of the cores, the same
    for all, or `max_rounds` are spent. A lane that has them already is left out of the round.

    `probe(patience, wait)` waits up to that many seconds for free cores and says what it saw. The order turns every
    round, so that no lane always runs on the warmer machine. Every sample is kept, refused ones with their reason.
    `taken`: samples by lane that count too; new ones are added to it, also before an error. `wanted`: the state to end
    with, None for any.
    """
    samples = {lane.name: [] for lane in lanes} if taken is None else taken
    first = 1 + max((sample.round for taken in samples.values() for sample in taken), default=-1)
    for index in range(first, first + plan.max_rounds):
        lacking = lanes_lacking(samples, plan.rounds, wanted())
        if not lacking:
            break
        for lane in lanes if index % 2 == 0 else reversed(lanes):
            if lane.name not in lacking:
                continue
            before = probe(plan.patience_seconds, plan.wait_seconds)
            reply = lane.run()
            time.sleep(plan.settle_seconds)
            after = probe(0.0, 0.0)
            reason, state = judge(reply, before, after, threads, cpus, plan.max_lost, lane.beside)
            shares = lost_shares(reply, threads, cpus)
            scaling, read = min(before.scaling, after.scaling), min(before.read, after.read)
            line = max(before.line_ns, after.line_ns)
            sample = Sample(index, reply.seconds, state, scaling, read, line, *shares, reason)
            samples[lane.name].append(sample)
            on_sample(lane.name, sample)
    return samples


def lanes_lacking(samples: Mapping[str, Sequence[Sample]], rounds: int, wanted: str | None = None) -> list[str]:
    """The lanes that have fewer than `rounds` clean samples in the wanted state; None is the state that all lanes
    together are nearest to having them in, and 'free' wins a tie."""

    def have(state: str) -> int:
        return sum(min(count_clean(taken, state), rounds) for taken in samples.values())

    states = {sample.state for taken in samples.values() for sample in taken if sample.discarded is None}
    nearest = max(sorted(states), key=lambda state: (have(state), state == "free"), default="free")
    return [name for name, taken in samples.items() if count_clean(taken, wanted or nearest) < rounds]


def count_clean(samples: Sequence[Sample], state: str | None = None) -> int:
    """Samples that were not refused, of one state or of all."""
    return len(clean_seconds(samples, state))


def clean_seconds(samples: Sequence[Sample], state: str | None = None) -> list[float]:
    """Seconds of the samples that were not refused, of one state or of all, in the order they were taken."""
    return [sample.seconds for sample in samples if sample.discarded is None and state in (None, sample.state)]


def clean_states(samples: Sequence[Sample]) -> list[str]:
    """The states that clean samples were taken in: 'free' first, 'changed' last, else those with most samples first."""
    counts = Counter(sample.state for sample in samples if sample.discarded is None)
    return sorted(counts, key=lambda state: (state != "free", state == "changed", -counts[state], state))


def discard_counts(samples: Sequence[Sample]) -> dict[str, int]:
    """How many samples were refused, by reason."""
    return dict(Counter(sample.discarded for sample in samples if sample.discarded is not None))


def state_ratios(ours: Sequence[Sample], theirs: Sequence[Sample], state: str) -> list[float]:
    """Seconds of theirs over ours, above 1 where ours is faster, of clean samples of one state: round by round, which
    cancels what changes slowly (clocks, neighbours), or in their order where they have no round in common."""
    a, b = (
        {sample.round: sample.seconds for sample in samples if sample.discarded is None and sample.state == state}
        for samples in (ours, theirs)
    )
    both = sorted(a.keys() & b.keys())
    if len(both) == min(len(a), len(b)):
        return [b[index] / a[index] for index in both]
    return [second / first for first, second in zip(a.values(), b.values(), strict=False)]


def least_disturbed(samples: Sequence[Sample]) -> float | None:
    """Median seconds of all samples, clean or not; only for reports that say so. None without samples."""
    return statistics.median(sample.seconds for sample in samples) if samples else None
