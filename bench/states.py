"""The state of the cores beside a sample: what a probe of some milliseconds saw, its name, and the best seen before."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from echoc.errors import EchoError

MIN_CPU_SHARE = 0.9  # below this a probe thread was waiting for a core
MIN_READ_SHARE = 0.62  # of the best short read: below this memory is slow
MIN_TEAM_RATE = 0.7  # of num_threads times one thread: below this the virtual cores share a physical one
MAX_LINE_SHARE = 0.5  # of a line's time where reads are best: below this the cores have moved together, unless
MIN_READ_TOGETHER = 0.8  # reads are this near to the best all the same

# What the cores were like, by the name that samples and limits carry.
CORE_STATES = {
    "free": "every thread has a physical core and reads are near the best known of this machine",
    "one-complex": "the cores lie together behind one way to memory: lines between them are quick, reads slow",
    "slow-reads": "every thread has a physical core, memory is slow",
    "shared-core": "threads share a physical core",
    "changed": "one of these before, another after",
    "contended": "disturbed by other processes",
}


@dataclass(frozen=True)
class Reading:
    """What one probe measured on all threads.

    `scaling`: their multiply-add rate over one thread's. `cpu_share`: of the wall time, the least of a thread. `read`:
    bytes/s of all together. `line_ns`: nanoseconds that a cache line takes one way between two neighbours, the slowest
    pair; 0 where it is not known (one thread).
    """

    scaling: float
    cpu_share: float
    read: float = 0.0
    line_ns: float = 0.0

    def better(self, other: Reading) -> Reading:
        """The best of both in each figure: disturbance only makes readings worse."""
        lines = [line for line in (self.line_ns, other.line_ns) if line > 0]
        return Reading(
            max(self.scaling, other.scaling),
            max(self.cpu_share, other.cpu_share),
            max(self.read, other.read),
            min(lines, default=0.0),
        )


@dataclass(frozen=True)
class Best:
    """The best short read known of a machine, bytes/s, and the time of a cache line measured beside it, nanoseconds."""

    read: float = 0.0
    line_ns: float = 0.0


@dataclass(frozen=True)
class CoreState:
    """A name of CORE_STATES with the reading it was given for; `read_share`: bytes/s over the best known."""

    state: str
    scaling: float
    cpu_share: float
    read: float = 0.0
    read_share: float = 1.0
    line_ns: float = 0.0


def classify(reading: Reading, threads: int, best: Best) -> CoreState:
    """Names the state of the cores.

    A thread that waited for its core, or a cache line that no neighbour took in time, makes it 'contended'. Threads
    that all ran but were slow together are 'shared-core': virtual cores on one physical core halve the multiply-add
    rate of a team. Reads below the best with full multiply-adds are 'one-complex' where a cache line also takes far
    less time between the cores than where reads are best (the host has put them behind one path to memory), else
    'slow-reads' when far below: neighbours take the memory.
    """
    share = reading.read / best.read if best.read > 0 else 1.0
    if reading.cpu_share < MIN_CPU_SHARE or (threads > 1 and reading.line_ns == 0):
        state = "contended"
    elif threads > 1 and reading.scaling < MIN_TEAM_RATE * threads:
        state = "shared-core"
    elif share < MIN_READ_TOGETHER and 0 < reading.line_ns < MAX_LINE_SHARE * best.line_ns:
        state = "one-complex"
    else:
        state = "free" if share >= MIN_READ_SHARE else "slow-reads"
    return CoreState(state, reading.scaling, reading.cpu_share, reading.read, share, reading.line_ns)


class BestKnown:
    """The best reading of a machine, kept in a file over runs; a file that holds none is written anew."""

    def __init__(self, path: Path) -> None:
        self.path, self.best = path, Best()
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            self.best = Best(float(document["read"]), float(document["line_ns"]))
        except (OSError, ValueError, KeyError, TypeError):
            return

    def learn(self, reading: Reading, threads: int) -> None:
        """Keeps a reading that no other process disturbed, if it is the best so far."""
        undisturbed = reading.cpu_share >= MIN_CPU_SHARE and (reading.line_ns > 0 or threads == 1)
        if not undisturbed or reading.read <= self.best.read:
            return
        self.best = Best(reading.read, reading.line_ns)
        fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(asdict(self.best)), encoding="utf-8")
            os.replace(fresh, self.path)
        except OSError as error:
            raise EchoError(f"cannot keep the best reading of this machine in {self.path}: {error}") from error
