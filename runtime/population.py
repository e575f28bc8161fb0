"""A compiled P system whose membranes come and go: runs side by side, their membranes in pages of one pool.

    batch = PopulationBatch(library, layout, instances=64)
    batch.start(seed=1)                     # run i of the seed is instance i
    batch.advance()                         # until all have halted
    batch[3].membranes()

A membrane that divides forks its pages, one that dissolves releases them; so does a run as a whole. A run is a function
of the seed and of its number: it comes out the same whatever else is in the batch, on any number of threads.

Memory is bounded. Each run, together with its forks, may use an equal share of `max_bytes`; a step that would pass it
leaves that run as it was before the step and says so, and the other runs go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from echoc import _native
from echoc.errors import ArtifactError, DeviceError, RequestError
from echoc.runtime.devices.cpu import default_num_threads
from echoc.runtime.libraries import open_library
from echoc.runtime.memory import available_memory

DONE, HALTED, OUT_OF_PAGES, OUT_OF_CELLS, OVERFLOW, OUT_OF_WORKSPACE = range(6)
_LEAST_BYTES = 1 << 16  # for a run
_DEFAULT_SHARE = 0.5  # of the memory that is available when nothing was asked for
_MOST_STEPS = 1 << 62
_SLICE = 0.2  # seconds between two looks at signals


class PopulationLimit(DeviceError):
    """A step did not fit the memory, or a count passed 2^63 - 1. The run stands where it was before that step.

    out_of_memory: whether more memory would help.
    """

    def __init__(self, message: str, *, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


@dataclass(frozen=True)
class Gpu:
    """A device, and in what blocks of threads a kernel is launched on it. `free_bytes` of its memory were free."""

    driver: _native.GpuDriver
    index: int
    threads: int
    free_bytes: int


@dataclass(frozen=True)
class Outcome:
    """Where a run stands: steps taken since its start, and whether no rule applies any more."""

    steps: int
    halted: bool


@dataclass(frozen=True)
class Applied:
    """A rule (by its number) applied `times` to the membranes `members` (ids; -1 is the environment)."""

    rule: int
    members: tuple[int, ...]
    times: int


class PopulationBatch:
    """A kernel with runs side by side. Not for several threads at once: a second one is refused while a step runs.

    Args:
        library: bytes of the shared library, or of a GPU's image.
        layout: as the generator describes it.
        instances: how many runs. Forks come on top of them.
        num_threads: default: the cores at hand. They share out the runs, and few large runs among them.
        max_bytes: memory for pages and tables of all runs; default: half of what is available.
        gpu: where the library is an image: the device that runs it.
    Raises: ArtifactError for a layout that is not one, DeviceError when the system does not load the library,
        PopulationLimit when the start does not fit.
    """

    def __init__(
        self,
        library: bytes | memoryview,
        layout: Mapping[str, Any],
        *,
        instances: int = 1,
        num_threads: int | None = None,
        max_bytes: int | None = None,
        gpu: Gpu | None = None,
    ) -> None:
        threads = default_num_threads() if num_threads is None else num_threads
        if threads < 1:
            raise DeviceError(f"num_threads is {threads}, wanted 1 or more")
        self.max_bytes = default_max_bytes(gpu) if max_bytes is None else max_bytes
        if self.max_bytes < 1 << 20:
            raise DeviceError(f"{self.max_bytes} bytes are too few for a population, wanted a megabyte or more")
        if not 1 <= instances <= self.max_bytes // _LEAST_BYTES:
            raise RequestError(
                f"{instances} runs were asked for; {self.max_bytes} bytes are enough for 1 to "
                f"{self.max_bytes // _LEAST_BYTES} at once"
            )
        try:
            self.objects = [str(o) for o in layout["objects"]]
            self.numbers = {name: i for i, name in enumerate(self.objects)}
            self.labels = [str(label) for label in layout["labels"]]
            self.rules = [str(rule) for rule in layout["rules"]]
            self.names = [str(cell[3]) for cell in layout["cells"]]
            start = _start_arrays(layout, len(self.objects))
            entry, groups = str(layout["entry"]), int(layout["groups"])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise ArtifactError(f"the layout of the system is not valid: {error!r}; compile it again") from None
        sizes = len(self.objects), groups, len(self.rules), self.max_bytes, instances
        try:
            if gpu is not None:
                self.native = _native.Population.on_device(
                    gpu.driver, gpu.index, bytes(library), entry, gpu.threads, *sizes
                )
            else:
                with open_library(library) as path:
                    self.native = _native.Population(path, entry, threads, *sizes)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise DeviceError(f"the system does not load the kernels: {error}; compile it again") from None
        try:
            status = self.native.load(*start)
        except ValueError as error:
            raise ArtifactError(f"the start configuration is not valid: {error}; compile the system again") from None
        if status != DONE:
            raise self._no_room()
        self.share, self.num_instances = self.max_bytes // instances, instances
        self.errors: dict[int, PopulationLimit] = {}
        self._handles: list[int | None] = [None] * instances  # native numbers; None: released, or not started
        self.start()

    def __len__(self) -> int:
        """Runs of the batch and their forks, released ones included."""
        return len(self._handles)

    def __getitem__(self, index: int) -> Population:
        return Population(self, range(len(self))[index])

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """Steps taken, per run; -1 for released ones."""
        return np.array([-1 if h is None else self.native.standing(h)["steps"] for h in self._handles], np.int64)

    @property
    def halted(self) -> npt.NDArray[np.bool_]:
        """Whether nothing is applicable any more, per run; true for released ones."""
        return np.array([h is None or self.native.standing(h)["halted"] for h in self._handles], np.bool_)

    def start(self, seed: int = 0, first: int = 0) -> None:
        """All runs back to the start configuration, as runs `first`, `first` + 1, ... of a seed. Forks are released.

        Raises RequestError for numbers out of range.
        """
        for row, handle in enumerate(self._handles):
            if handle is not None:
                self.release(row)
        del self._handles[self.num_instances :]
        self.errors = {}
        for row in range(self.num_instances):
            self.begin(row, seed, first + row)

    def begin(self, row: int, seed: int, number: int) -> None:
        """One run back to the start configuration, see `Population.start`."""
        if not 0 <= seed < 1 << 64 or not 0 <= number < 1 << 48:
            raise RequestError(f"seed {seed} and run {number}; wanted 0 to 2^64 - 1 and 0 to 2^48 - 1")
        if row >= self.num_instances:
            raise RequestError("a fork has no start of its own; start a run of the batch, or fork one that has started")
        if self.native.create(row, seed, number) != DONE:
            raise self._no_room()
        self._handles[row] = row

    def handle(self, row: int) -> int:
        """The native number of a run. Raises RequestError for one that was released."""
        handle = self._handles[row]
        if handle is None:
            raise RequestError("the run was released; start it again or create another")
        return handle

    def advance(self, steps: int | None = None) -> None:
        """At most `steps` steps in every run that has not halted (None: until it halts).

        Raises PopulationLimit after all others have taken their steps, when some could not go on: these stand before
        the step that failed, and `errors` says why, by their index. A later call tries them again.
        """
        if steps is not None and steps < 0:
            raise RequestError(f"the number of steps is {steps}, wanted 0 or more")
        self.errors = {}
        left = {
            row: _MOST_STEPS if steps is None else steps
            for row, handle in enumerate(self._handles) if handle is not None and steps != 0
        }  # fmt: skip
        while left:
            handles = [self.handle(row) for row in left]
            statuses, done = self.native.advance(handles, list(left.values()), False, _SLICE)
            for row, status, taken in zip(list(left), statuses, done, strict=True):
                left[row] -= taken
                if status not in (DONE, HALTED):
                    self.errors[row] = self.failure(row, status)
                if status != DONE or left[row] == 0:
                    del left[row]
        if self.errors:
            first = min(self.errors)
            raise PopulationLimit(
                f"{len(self.errors)} of {len(self)} runs could not go on; run {self[first].run}: {self.errors[first]}",
                out_of_memory=any(error.out_of_memory for error in self.errors.values()),
            )

    def fork(self, row: int) -> Population:
        """A run that stands where another does, and from there on is on its own: it shares pages until either changes
        them, and the memory that both may use. Without anything put into it, it goes the same way.

        Raises PopulationLimit where its rows do not fit.
        """
        handle = self.native.fork(self.handle(row))
        if handle < 0:
            raise self._no_room()
        self._handles.append(handle)
        return self[-1]

    def release(self, row: int) -> None:
        """Gives back the pages of a run. Raises RequestError for one that was released."""
        self.native.release(self.handle(row))
        self._handles[row] = None

    def memory(self) -> dict[str, int]:
        """Bytes and counts of all runs together: pages in use, the most bytes ever of pages and rows, membranes."""
        standing = [self.native.standing(handle) for handle in self._handles if handle is not None]
        return {
            "pages": self.native.pages_held, "peak_bytes": self.native.peak_bytes, "max_bytes": self.max_bytes,
            **{name: sum(s[name] for s in standing) for name in ("membranes", "forks", "releases")},
        }  # fmt: skip

    def _no_room(self) -> PopulationLimit:
        return PopulationLimit(
            f"a run more does not fit {self.max_bytes} bytes; allow more memory or fewer runs", out_of_memory=True
        )

    def failure(self, row: int, status: int) -> PopulationLimit:
        """What a status of the native step means for a run."""
        run = self[row]
        step = run.steps + 1
        if status == OVERFLOW:
            cell, obj = self.native.failure(run.handle)
            where = "the environment" if cell < 0 else f"membrane {cell}"
            return PopulationLimit(
                f"step {step}: the count of {self.objects[obj]} in {where} passes 2^63 - 1; the run stands at step "
                f"{run.steps}, before it"
            )
        what = {OUT_OF_PAGES: "pages", OUT_OF_CELLS: "membranes"}.get(status, "applications at once")
        return PopulationLimit(
            f"step {step} needs more {what} than fit {_mebibytes(self.share)} MiB of memory; the run stands at "
            f"step {run.steps} with {run.num_membranes} membranes: allow more memory or fewer steps",
            out_of_memory=True,
        )


class Population:
    """One run of a batch."""

    def __init__(self, batch: PopulationBatch, row: int) -> None:
        self._batch, self._row = batch, row

    @property
    def handle(self) -> int:
        """The native number. Raises RequestError for a run that was released."""
        return self._batch.handle(self._row)

    @property
    def seed(self) -> int:
        return int(self._standing["seed"])

    @property
    def run(self) -> int:
        """The number of the run, which with the seed makes what is random."""
        return int(self._standing["number"])

    @property
    def steps(self) -> int:
        """Taken since the start."""
        return int(self._standing["steps"])

    @property
    def halted(self) -> bool:
        """Whether no rule applies any more."""
        return bool(self._standing["halted"])

    @property
    def time(self) -> float | None:
        """Steps are the only clock."""
        return None

    @property
    def num_membranes(self) -> int:
        return int(self._standing["membranes"])

    @property
    def _standing(self) -> dict[str, Any]:
        return self._batch.native.standing(self.handle)

    def start(self, seed: int = 0, run: int = 0) -> None:
        """Back to the start configuration. Run `run` of a seed is the same whatever ran before. Raises RequestError."""
        self._batch.begin(self._row, seed, run)

    def advance(self, steps: int | None = None, *, record: bool = False) -> Outcome:
        """At most `steps` steps (None: until it halts). With `record`, `applied()` tells what the last step did.

        Raises PopulationLimit when a step does not fit the memory or overflows a count: the run stands before it.
        """
        left = _MOST_STEPS if steps is None else steps
        if left < 0:
            raise RequestError(f"the number of steps is {steps}, wanted 0 or more")
        native, handle = self._batch.native, self._batch.handle(self._row)
        while True:
            status, done, total, halted = native.advance_one(handle, left, record, _SLICE)
            left -= done
            if status not in (DONE, HALTED):
                raise self._batch.failure(self._row, status)
            if halted or left == 0:
                return Outcome(total, halted)

    def put(self, membrane: int, objects: Mapping[str, int]) -> None:
        """Objects come into a membrane (its id; -1: the environment) between two steps; a halted run may go on.

        Raises RequestError for what is not there, PopulationLimit where they do not fit: then nothing has changed.
        """
        numbers = self._batch.numbers
        try:
            chosen = [numbers[name] for name in objects]
            status = self._batch.native.append(self.handle, membrane, chosen, list(objects.values()))
        except KeyError as error:
            raise RequestError(f"the system has no object {error}") from None
        except TypeError:  # what the binding does not take
            raise RequestError(f"membrane {membrane} takes no {dict(objects)}; wanted counts below 2^63") from None
        except ValueError as error:
            raise RequestError(f"membrane {membrane} takes no {dict(objects)}: {error}") from None
        if status != DONE:
            full = status != OVERFLOW
            what = f"{self._batch.share} bytes are used up" if full else "a count passes 2^63 - 1"
            raise PopulationLimit(
                f"membrane {membrane} takes no {dict(objects)}: {what}; the run stands as before", out_of_memory=full
            )

    def take(self, objects: Sequence[str]) -> dict[str, int]:
        """Takes all of some objects out of the environment; returns how many there were, zeros left out."""
        try:
            found = self._batch.native.take(self.handle, [self._batch.numbers[name] for name in objects])
        except KeyError as error:
            raise RequestError(f"the system has no object {error}") from None
        return {name: count for name, count in zip(objects, found, strict=True) if count}

    def fork(self) -> Population:
        """A run that goes on from here, see `PopulationBatch.fork`."""
        return self._batch.fork(self._row)

    def release(self) -> None:
        """Gives back the pages of the run. Raises RequestError for a run that was released."""
        self._batch.release(self._row)

    def applied(self) -> list[Applied]:
        """What the last step of `advance(1, record=True)` applied, equal applications summed."""
        sums: dict[tuple[int, tuple[int, ...]], int] = {}
        for rule, times, members in self._batch.native.applications(self.handle):
            key = rule, tuple(members)
            sums[key] = sums.get(key, 0) + times
        return [Applied(rule, members, times) for (rule, members), times in sorted(sums.items())]

    def memory(self) -> dict[str, int]:
        """Bytes and counts: pages in use by the run and its forks, the most bytes of pages and rows at any time, its
        membranes, forks, releases."""
        standing = self._standing
        names = ("pages", "peak_bytes", "membranes", "forks", "releases")
        return {"max_bytes": self._batch.share, **{name: int(standing[name]) for name in names}}

    def environment(self) -> dict[str, int]:
        """What has left the skin (or was outside at the start)."""
        counts = self._batch.native.environment(self.handle)
        return {self._batch.objects[i]: int(counts[i]) for i in np.flatnonzero(counts)}

    def membranes(self) -> list[dict[str, Any]]:
        """Every membrane: id, label, charge, parent (id or None), objects; name and closed where there are any."""
        batch = self._batch
        cells = batch.native.cells(self.handle)
        offsets, objects, counts = batch.native.contents(self.handle)
        ids = cells["id"].tolist()
        names = [batch.objects[o] for o in objects.tolist()]
        values = counts.tolist()
        out = []
        columns = zip(cells["label"].tolist(), cells["charge"].tolist(), cells["parent"].tolist(),
                      cells["closed"].tolist(), strict=True)  # fmt: skip
        for row, (label, charge, parent, closed) in enumerate(columns):
            begin, end = int(offsets[row]), int(offsets[row + 1])
            membrane: dict[str, Any] = {
                "id": ids[row], "label": batch.labels[label], "charge": charge,
                "parent": ids[parent] if parent >= 0 else None,
                "objects": dict(zip(names[begin:end], values[begin:end], strict=True)),
            }  # fmt: skip
            if ids[row] < len(batch.names) and batch.names[ids[row]]:
                membrane["name"] = batch.names[ids[row]]
            if closed:
                membrane["closed"] = closed
            out.append(membrane)
        return out

    def links(self) -> list[tuple[int, int]]:
        """Pairs of ids."""
        ids = self._batch.native.cells(self.handle)["id"]
        pairs = self._batch.native.links(self.handle).reshape(-1, 2)
        return [(int(ids[a]), int(ids[b])) for a, b in pairs]

    def totals(self) -> dict[str, dict[str, Any]]:
        """Per label: how many membranes, and the objects in all of them together."""
        batch = self._batch
        membranes, sums = batch.native.totals(self.handle, len(batch.labels))
        table = sums.reshape(len(batch.labels), len(batch.objects))
        return {
            label: {
                "membranes": int(membranes[i]),
                "objects": {batch.objects[o]: int(table[i, o]) for o in np.flatnonzero(table[i])},
            }
            for i, label in enumerate(batch.labels)
            if membranes[i]
        }


def default_max_bytes(gpu: Gpu | None = None) -> int:
    """The memory for populations when nothing was asked for."""
    return int((available_memory() if gpu is None else gpu.free_bytes) * _DEFAULT_SHARE)


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.{0 if size >= 10 << 20 else 3}{'f' if size >= 10 << 20 else 'g'}}"


def _start_arrays(layout: Mapping[str, Any], num_objects: int) -> tuple[npt.NDArray[Any], ...]:
    """What the native loader takes: labels, charges, parents, offsets, objects, counts, environment, links."""
    cells = layout["cells"]
    offsets = [0]
    objects: list[int] = []
    counts: list[int] = []
    for cell in cells:
        objects += [int(o) for o, _ in cell[4]]
        counts += [int(n) for _, n in cell[4]]
        offsets.append(len(objects))
    environment = np.zeros(num_objects, np.int64)
    for o, n in layout["environment"]:
        environment[o] = n
    return (
        np.array([c[0] for c in cells], np.uint16), np.array([c[2] for c in cells], np.int8),
        np.array([c[1] for c in cells], np.int32), np.array(offsets, np.int64), np.array(objects, np.uint32),
        np.array(counts, np.int64), environment,
        np.array([x for link in layout["links"] for x in link], np.int32),
    )  # fmt: skip
