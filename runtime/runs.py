"""Many independent runs of a compiled system whose membranes stay: population dynamics and chemical systems.

    runs = Runs(library, layout)
    batch = runs.start(1000, seed=1)
    batch.advance(steps=42)                     # population dynamics
    batch.counts[:, runs.place("1", "a")]       # [runs]

Run i of a batch is a function of the seed and of i alone: it comes out the same whatever else is in the batch, on how
many threads, and in how many calls it is advanced.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from echoc import _native
from echoc.errors import ArtifactError, DeviceError, RequestError
from echoc.runtime.device_runs import DeviceRuns, Sizes
from echoc.runtime.devices.cpu import default_num_threads
from echoc.runtime.libraries import open_library

Counts = npt.NDArray[np.int64]
Times = npt.NDArray[np.float64]
MAX_RUN = 1 << 48
_SLICE = 0.25  # seconds between two looks at signals


class Runs:
    """A compiled system: its kernel and what the vector of counts means (the layout, see the generator).

    Args:
        library: the shared library with the kernel, or what puts it on a device.
    Raises: ArtifactError for a layout that is not one, DeviceError when the system does not load the library.
    """

    def __init__(self, library: bytes | memoryview | Callable[[Sizes], DeviceRuns], layout: Mapping[str, Any]) -> None:
        try:
            self.mode = str(layout["mode"])
            self.size = int(layout["size"])
            self.cells: Sequence[Mapping[str, Any]] = layout["cells"]
            self.rules = [str(rule) for rule in layout["rules"]]
            self.instances = [tuple(int(i) for i in row) for row in layout["instances"]]
            self._charges = np.array([int(cell["charge"]) for cell in self.cells], np.int8)
            self._initial = np.zeros(self.size, np.int64)
            for place, count in layout["initial"]:
                self._initial[place] = count
            self._names = {int(p): (c, o) for c, cell in enumerate(self.cells) for o, p in cell["objects"].items()}
            self.events = [(str(name), int(cell)) for name, cell in layout.get("events", ())]
            entry, scratch = str(layout["entry"]), int(layout["scratch_bytes"])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise ArtifactError(f"the layout of the runs is not valid: {error!r}; compile the system again") from None
        sizes = Sizes(self.size, len(self.cells), len(self.instances), scratch)
        self.kernel = library(sizes) if callable(library) else HostRuns(library, entry, sizes)

    def place(self, cell: int | str, obj: str) -> int | None:
        """Where the vector holds an object of a cell (an index, or the label of the only such cell); None where the
        cell can never hold it. Raises RequestError for a cell that is not there or not the only one."""
        index = cell if isinstance(cell, int) else self.find(cell)
        if not 0 <= index < len(self.cells):
            raise RequestError(f"there is no cell {index}; wanted 0 to {len(self.cells) - 1}")
        found = self.cells[index]["objects"].get(obj)
        return None if found is None else int(found)

    def find(self, label: str) -> int:
        """The index of the only cell with a label. Raises RequestError."""
        found = [i for i, c in enumerate(self.cells) if label in (c["label"], c["name"])]
        if len(found) != 1:
            known = ", ".join(dict.fromkeys(str(c["label"]) for c in self.cells))
            what = "no cell has" if not found else f"{len(found)} cells have"
            raise RequestError(f"{what} the label {label!r}; known: {known}. A cell's index names one of several")
        return found[0]

    def start(
        self, runs: int = 1, *, seed: int = 0, first: int = 0, counts: Counts | None = None, threads: int | None = None
    ) -> Batch:
        """Runs number first to first + runs - 1 at the start configuration, or at `counts` [size] or [runs, size].

        Raises: RequestError for numbers out of range.
        """
        if runs < 1 or first < 0 or first + runs > MAX_RUN:
            raise RequestError(f"runs {first} to {first + runs - 1} were asked for; wanted at least one, below 2^48")
        if not 0 <= seed < 1 << 64:
            raise RequestError(f"the seed is {seed}; wanted 0 to 2^64 - 1")
        if threads is not None and threads < 1:
            raise RequestError(f"{threads} threads were asked for; wanted at least one")
        start = self._initial if counts is None else np.asarray(counts)
        if start.dtype != np.int64 or start.shape not in ((self.size,), (runs, self.size)):
            raise RequestError(
                f"the counts are {start.dtype}{list(start.shape)}; wanted int64[{self.size}] or [{runs}, {self.size}]"
            )
        if (start < 0).any():
            raise RequestError("a start count is negative; wanted 0 or more")
        if runs * (8 * self.size + 9 * len(self.cells) + 64) > _memory():
            raise RequestError(f"no memory for {runs} runs of {self.size} counts; ask for fewer runs")
        return Batch(self, runs, seed, first, start, threads or default_num_threads())

    def where(self, place: int) -> str:
        """A place as text: the object and its membrane."""
        cell, obj = self._names[place]
        entry = self.cells[cell]
        return f"{obj} in membrane {entry['name'] or entry['label']}"


class Batch:
    """Runs side by side. The arrays are the state; row i is run `first + i`.

    counts: int64 [runs, size]. charges: int8 [runs, cells]. steps: int64 [runs], steps (events) taken.
    time: float64 [runs], of the last event (mode gillespie), else the steps.
    halted: bool [runs], whether nothing is applicable any more.
    applications: int64 [runs, instances], how often each was applied in the last step, where it was asked for.
    """

    def __init__(self, runs: Runs, count: int, seed: int, first: int, counts: Counts, threads: int) -> None:
        self.runs, self.seed, self.threads = runs, seed, threads
        self.counts: Counts = np.array(np.broadcast_to(counts, (count, runs.size)), np.int64, order="C")
        self.charges = np.array(np.broadcast_to(runs._charges, (count, len(runs.cells))), np.int8, order="C")
        self.time: Times = np.zeros(count)
        self.steps = np.zeros(count, np.int64)
        self.index = np.arange(first, first + count, dtype=np.uint64)
        self.halts = np.zeros(count, np.int32)
        self.applications: Counts | None = None
        self.memory: object = None  # of a device

    @property
    def halted(self) -> npt.NDArray[np.bool_]:
        return self.halts.astype(np.bool_)

    def wake(self, row: int) -> None:
        """A run whose counts were changed from outside may go on."""
        self.halts[row] = 0

    def halt(self, rows: npt.NDArray[np.bool_]) -> None:
        """Marks runs, all of them told, as those to which nothing applies."""
        self.halts[:] = rows

    def __len__(self) -> int:
        return len(self.counts)

    def advance(
        self,
        steps: int | None = None,
        *,
        until: float | None = None,
        record: Iterable[int] | None = None,
        every: int = 0,
        times: npt.ArrayLike | None = None,
        applications: bool = False,
    ) -> Counts:
        """Takes steps in every run that has not halted, at most `steps` (events, in mode gillespie) each.

        Args:
            until: (mode gillespie) take no event later than this; with it, `steps` may be None: as many as it takes.
            record: places of the vector to record, default all.
            every: record after each `every`-th step since the start of the run.
            times: (mode gillespie) record at these times, ascending; replaces `every`. `until` defaults to the last.
            applications: keep how often each instance was applied in the last step.

        Returns: int64 [runs, records, places], the records. A run that halts stays as it is; -1 where a run did not
            come as far as the record. Without `every` and `times`, no records.
        Raises: RequestError for bad arguments; DeviceError for a count beyond 2^63 - 1 or a rate that is no rate: the
            run stands at the start of its failing step, the others somewhere on their way.
        """
        plan = Plan(self, steps, until, record, every, times)
        if applications:
            self.applications = np.zeros((len(self), len(self.runs.instances)), np.int64)
        turn = self.runs.kernel.turn(self, plan, applications)
        try:
            for part in plan.slices(turn.piece):
                turn.advance(part)
                if plan.error.any():
                    break
        except KeyboardInterrupt:
            turn.finish()
            raise
        turn.finish()
        if plan.error.any():
            self._fail(plan.error, plan.where)
        return plan.records

    def _fail(self, error: npt.NDArray[np.int32], where: npt.NDArray[np.int64]) -> None:
        row = int(np.flatnonzero(error)[0])
        runs, place = self.runs, int(where[row])
        step, others = int(self.steps[row]) + 1, int(np.count_nonzero(error)) - 1
        start = f"run {int(self.index[row])}, step {step}: "
        end = f" ({others} more runs failed)" if others else ""
        if error[row] == 1:
            raise DeviceError(f"{start}the count of {runs.where(place)} would pass 2^63 - 1{end}; start from less")
        if error[row] in (3, 4):
            name, cell_index = runs.events[place]
            what = "sets a count to what is none" if error[row] == 3 else "happens, or waits, without end"
            raise DeviceError(
                f"{start}the event {name} in membrane {runs.cells[cell_index]['label']} {what}{end}; an event must set "
                "whole numbers from 0 on after a delay from 0 on, and not set itself off again and again"
            )
        rule = runs.rules[runs.instances[place][0]]
        cell = runs.cells[runs.instances[place][1]]["label"]
        raise DeviceError(
            f"{start}the propensity of {rule} in membrane {cell} is negative, infinite or NaN{end}; a rate law must be "
            "0 or more for all counts that occur"
        )


class Turn(Protocol):
    """One call of `Batch.advance` on a device. `piece`: steps of its first slice."""

    piece: int

    def advance(self, steps: int) -> None:
        """Steps in every run; `steps` and `halts` of the batch, `error`, `where` and `done` of the plan are told."""

    def finish(self) -> None:
        """Behind it all arrays are."""


class HostRuns:
    """A compiled system in a shared library. Raises DeviceError when the system does not load it."""

    def __init__(self, library: bytes | memoryview, entry: str, sizes: Sizes) -> None:
        try:
            with open_library(library) as path:
                self.native = _native.RunKernel(
                    path, entry, sizes.places, sizes.cells, sizes.instances, sizes.scratch_bytes
                )
        except (RuntimeError, ValueError, OSError) as error:
            raise DeviceError(f"the system does not load the compiled runs: {error}; compile on this machine") from None

    def turn(self, batch: Batch, plan: Plan, applications: bool) -> Turn:
        """Begins an advance."""
        return _HostTurn(self.native, batch, plan, applications)


class _HostTurn:
    def __init__(self, native: _native.RunKernel, batch: Batch, plan: Plan, applications: bool) -> None:
        self.native, self.batch, self.plan, self.applications = native, batch, plan, applications
        self.piece = max(1, 4096 // len(batch))

    def advance(self, steps: int) -> None:
        batch, plan = self.batch, self.plan
        self.native.advance(
            counts=batch.counts, charges=batch.charges, time=batch.time, step=batch.steps, index=batch.index,
            seed=batch.seed, steps=steps, until=plan.until, recorded=plan.recorded, every=plan.every,
            times=plan.times, records=plan.records, records_done=plan.done,
            applications=batch.applications if self.applications else None, halted=batch.halts, error=plan.error,
            where=plan.where, num_threads=batch.threads,
        )  # fmt: skip

    def finish(self) -> None:
        pass


class Plan:
    """The checked arguments of one call of `Batch.advance`, and its records."""

    def __init__(
        self, batch: Batch, steps: int | None, until: float | None, record: Iterable[int] | None, every: int,
        times: npt.ArrayLike | None,
    ) -> None:  # fmt: skip
        timed = batch.runs.mode == "gillespie"
        if not timed and (until is not None or times is not None):
            raise RequestError(f"`until` and `times` are for mode gillespie; this system is in mode {batch.runs.mode}")
        self.batch, self.every = batch, 0 if times is not None else every
        self.times = None if times is None else np.array(times, np.float64, ndmin=1)
        if self.times is not None:
            if self.times.ndim != 1 or not np.isfinite(self.times).all() or (np.diff(self.times) < 0).any():
                raise RequestError("the times to record at must be finite and ascending")
            if until is None and steps is None and len(self.times):
                until = float(self.times[-1])
        if until is not None and math.isnan(until):
            raise RequestError("`until` is NaN; wanted a time")
        if steps is None and (until is None or until == math.inf):
            raise RequestError("wanted a number of steps" + (", or `until`" if timed else ""))
        if steps is not None and not 0 <= steps < 1 << 62:
            raise RequestError(f"{steps} steps were asked for; wanted 0 or more, below 2^62")
        if every < 0:
            raise RequestError(f"records every {every} steps were asked for; wanted 1 or more, or 0 for none")
        if every and steps is None:
            raise RequestError("records by steps need a number of steps")
        self.steps, self.until = steps, math.inf if until is None else until
        self.recorded = np.arange(batch.runs.size, dtype=np.int32)
        if record is not None:
            chosen = list(record)
            bad = next((p for p in chosen if not 0 <= p < batch.runs.size), None)
            if bad is not None:
                raise RequestError(f"place {bad} was asked for; wanted 0 to {batch.runs.size - 1}")
            self.recorded = np.array(chosen, np.int32)
        self.records = self._allocate()
        self.done, self.where = np.zeros(len(batch), np.int64), np.zeros(len(batch), np.int64)
        self.error = np.zeros(len(batch), np.int32)

    def _allocate(self) -> Counts:
        count = 0
        if self.times is not None:
            count = len(self.times)
        elif self.every and self.steps:
            taken = np.unique(self.batch.steps)
            numbers = (taken + self.steps) // self.every - taken // self.every
            count = int(numbers.max())
        shape = (len(self.batch), count, len(self.recorded))
        if math.prod(shape) * 8 > _memory():
            raise RequestError(f"no memory for records of shape {list(shape)}; record less")
        return np.full(shape, -1, np.int64)

    def slices(self, piece: int) -> Iterable[int]:
        """Steps for one call of the kernel after another, so that an interrupt is seen between them."""
        batch, left = self.batch, self.steps
        while left is None or left > 0:
            part = piece if left is None else min(piece, left)
            before, begin = batch.steps.copy(), time.perf_counter()
            yield part
            if time.perf_counter() - begin < _SLICE:
                piece *= 2
            elif piece > 1:
                piece //= 2
            left = None if left is None else left - part
            if (batch.steps - before < part).all():
                return


def _memory() -> int:
    """Bytes of memory that this machine has: more is refused before the system lends what it does not have."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
