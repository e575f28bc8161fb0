"""Taking samples, and refusing those in which the process did not have the cores to itself."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from echoc.bench.probes import CoreState
from echoc.bench.process import Reply

MAX_LOST = 0.03  # of the machine's CPU time taken by others, or of threads * wall time spent waiting for a core
MAX_STEAL = 0.01  # of the machine's CPU time taken by the hypervisor
FOREIGN_FLOOR_SECONDS = 0.02  # /proc/stat counts in ticks of 10 ms


@dataclass(frozen=True)
class Sample:
    """One timed run: round, seconds, state of the cores around it (probes.CORE_STATES) with the multiply-adds of all
    threads over those of one and the bytes/s that the probes read, shares lost to others, and why it was refused."""

    round: int
    seconds: float
    state: str
    scaling: float
    read: float
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
    if steal > MAX_STEAL and steal * cpus * wall > FOREIGN_FLOOR_SECONDS:
        reason = "stolen by the hypervisor"
    elif run_delay > max_lost and foreign_seen:
        reason = "waited for a core"
    elif foreign > max_lost and foreign_seen and threads >= cpus:
        reason = "other processes busy"
    elif "contended" in (before.state, after.state):
        reason = "cores busy beside the sample"
    seen = (before.state, after.state)
    slower = next((name for name in ("shared-core", "slow-reads") if name in seen), "free")
    return reason, "contended" if reason else slower


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
    """One engine's way to run the workload once, and how many busy processes of ours are beside it meanwhile."""

    name: str
    run: Callable[[], Reply]
    beside: int = 0


@dataclass(frozen=True)
class SamplingPlan:
    """How many clean rounds are wanted, how many may be tried, and how long to wait for free cores before each.

    `max_lost`: share of the cores that others may take before a sample is refused. `settle_seconds`: pause after a
    sample, so that an engine's spinning threads park before the next probe.
    """

    rounds: int = 5
    max_rounds: int = 15
    patience_seconds: float = 2.0
    max_lost: float = MAX_LOST
    settle_seconds: float = 0.05


def take_samples(
    lanes: Sequence[Lane],
    plan: SamplingPlan,
    probe: Callable[[float], CoreState],
    threads: int,
    cpus: int,
    on_sample: Callable[[str, Sample], None] = lambda _name, _sample: None,
) -> dict[str, list[Sample]]:
    """Runs all lanes in turn (A B, B A, A B ...) until each has `rounds` clean samples or `max_rounds` are spent.

    `probe(patience)` waits up to that many seconds for free cores and says what it saw. The order turns every round,
    so that no lane always runs on the warmer machine. Every sample is kept, refused ones with their reason.
    """
    samples: dict[str, list[Sample]] = {lane.name: [] for lane in lanes}
    for index in range(plan.max_rounds):
        if all(count_clean(taken) >= plan.rounds for taken in samples.values()):
            break
        for lane in lanes if index % 2 == 0 else list(reversed(lanes)):
            before = probe(plan.patience_seconds)
            reply = lane.run()
            time.sleep(plan.settle_seconds)
            after = probe(0.0)
            reason, state = judge(reply, before, after, threads, cpus, plan.max_lost, lane.beside)
            shares = lost_shares(reply, threads, cpus)
            scaling, read = min(before.scaling, after.scaling), min(before.read, after.read)
            sample = Sample(index, reply.seconds, state, scaling, read, *shares, reason)
            samples[lane.name].append(sample)
            on_sample(lane.name, sample)
    return samples


def count_clean(samples: Sequence[Sample]) -> int:
    """Samples that were not refused."""
    return sum(sample.discarded is None for sample in samples)


def discard_counts(samples: Sequence[Sample]) -> dict[str, int]:
    """How many samples were refused, by reason."""
    return dict(Counter(sample.discarded for sample in samples if sample.discarded is not None))


def main_state(samples: Sequence[Sample]) -> str | None:
    """The core state most clean samples were taken in ('free' wins a tie); None without clean samples."""
    counts = Counter(sample.state for sample in samples if sample.discarded is None)
    return max(counts, key=lambda state: (counts[state], state == "free"), default=None)


def by_round(samples: Sequence[Sample], state: str | None, num_rounds: int) -> list[float | None]:
    """Seconds of the clean samples of one state by round, None where there is none: the input of paired_ratios."""
    seconds: list[float | None] = [None] * num_rounds
    for sample in samples:
        if sample.discarded is None and sample.state == state:
            seconds[sample.round] = sample.seconds
    return seconds


def least_disturbed(samples: Sequence[Sample]) -> float | None:
    """Median seconds of all samples, clean or not; only for reports that say so. None without samples."""
    return statistics.median(sample.seconds for sample in samples) if samples else None
