"""A compiled P system whose membranes come and go: one run at a time, its membranes in pages.

    population = Population(library, layout)
    population.start(seed=1)
    outcome = population.advance()          # until it halts
    population.configuration()

A membrane that divides forks its pages, one that dissolves releases them. Memory is bounded: what would pass the bound
leaves the run as it was before the step, and says so. The same seed gives the same run on any number of threads.
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
_DEFAULT_SHARE = 0.5  # of the memory that is available when nothing was asked for
_MOST_STEPS = 1 << 62
_SLICE = 1 << 10  # steps between two looks at signals


class PopulationLimit(DeviceError):
    """A step did not fit the memory, or a count passed 2^63 - 1. The run stands where it was before that step."""


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


class Population:
    """A kernel with the membranes of one run.

    Args:
        library: bytes of the shared library.
        layout: as the generator describes it.
        num_threads: default: the cores at hand. Small populations use one.
        max_bytes: memory for pages and tables; default: half of what is available.
    Raises: ArtifactError for a layout that is not one, DeviceError when the system does not load the library.
    """

    def __init__(
        self,
        library: bytes | memoryview,
        layout: Mapping[str, Any],
        *,
        num_threads: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        threads = default_num_threads() if num_threads is None else num_threads
        if threads < 1:
            raise DeviceError(f"num_threads is {threads}, wanted 1 or more")
        self.max_bytes = int(available_memory() * _DEFAULT_SHARE) if max_bytes is None else max_bytes
        if self.max_bytes < 1 << 20:
            raise DeviceError(f"{self.max_bytes} bytes are too few for a population, wanted a megabyte or more")
        try:
            self.objects = [str(o) for o in layout["objects"]]
            self._numbers = {name: i for i, name in enumerate(self.objects)}
            self.labels = [str(label) for label in layout["labels"]]
            self.rules = [str(rule) for rule in layout["rules"]]
            self.names = [str(cell[3]) for cell in layout["cells"]]
            self._start = _start_arrays(layout, len(self.objects))
            entry, groups = str(layout["entry"]), int(layout["groups"])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise ArtifactError(f"the layout of the system is not valid: {error!r}; compile it again") from None
        with open_library(library) as path:
            try:
                self._native = _native.Population(
                    path, entry, threads, len(self.objects), groups, len(self.rules), self.max_bytes
                )
            except (RuntimeError, ValueError, MemoryError) as error:
                raise DeviceError(f"the system does not load the kernels: {error}; compile it again") from None
        self._graph = bool(layout.get("graph"))
        self.seed, self.run, self.steps, self.halted = 0, 0, 0, False
        self.start()

    def start(self, seed: int = 0, run: int = 0) -> None:
        """Back to the start configuration. Run `run` of a seed is the same whatever ran before. Raises RequestError."""
        if not 0 <= seed < 1 << 64 or not 0 <= run < 1 << 48:
            raise RequestError(f"seed {seed} and run {run}; wanted 0 to 2^64 - 1 and 0 to 2^48 - 1")
        self.seed, self.run, self.steps, self.halted = seed, run, 0, False
        try:
            self._native.load(*self._start)
        except ValueError as error:
            raise ArtifactError(f"the start configuration is not valid: {error}; compile the system again") from None
        except (RuntimeError, IndexError) as error:  # length_error comes as one of them
            raise PopulationLimit(
                f"the start does not fit {self.max_bytes} bytes: {error}; allow more memory"
            ) from None

    def advance(self, steps: int | None = None, *, record: bool = False) -> Outcome:
        """At most `steps` steps (None: until it halts). With `record`, `applied()` tells what the last step did.

        Raises PopulationLimit when a step does not fit the memory or overflows a count: the run stands before it.
        """
        if steps is not None and steps < 0:
            raise RequestError(f"the number of steps is {steps}, wanted 0 or more")
        left = _MOST_STEPS if steps is None else steps
        while left > 0 and not self.halted:
            status, done = self._native.run(min(left, _SLICE), self.steps, self.seed, self.run, record)
            self.steps += done
            left -= done
            if status == HALTED:
                self.halted = True
            elif status != DONE:
                raise self._failure(status)
        return Outcome(self.steps, self.halted)

    def put(self, membrane: int, objects: Mapping[str, int]) -> None:
        """Objects come into a membrane (its id; -1: the environment) between two steps; a halted run may go on.

        Raises RequestError for what is not there, PopulationLimit where they do not fit: then nothing has changed.
        """
        try:
            status = self._native.put(membrane, [self._numbers[name] for name in objects], list(objects.values()))
        except KeyError as error:
            raise RequestError(f"the system has no object {error}") from None
        except TypeError:  # what the binding does not take
            raise RequestError(f"membrane {membrane} takes no {dict(objects)}; wanted counts below 2^63") from None
        except ValueError as error:
            raise RequestError(f"membrane {membrane} takes no {dict(objects)}: {error}") from None
        if status != DONE:
            what = "a count passes 2^63 - 1" if status == OVERFLOW else f"{self.max_bytes} bytes are used up"
            raise PopulationLimit(f"membrane {membrane} takes no {dict(objects)}: {what}; the run stands as before")
        self.halted = False

    def take(self, objects: Sequence[str]) -> dict[str, int]:
        """Takes all of some objects out of the environment; returns how many there were, zeros left out."""
        try:
            found = self._native.take([self._numbers[name] for name in objects])
        except KeyError as error:
            raise RequestError(f"the system has no object {error}") from None
        return {name: count for name, count in zip(objects, found, strict=True) if count}

    def applied(self) -> list[Applied]:
        """What the last step of `advance(1, record=True)` applied, equal applications summed."""
        sums: dict[tuple[int, tuple[int, ...]], int] = {}
        for rule, times, members in self._native.applications():
            key = rule, tuple(members)
            sums[key] = sums.get(key, 0) + times
        return [Applied(rule, members, times) for (rule, members), times in sorted(sums.items())]

    @property
    def time(self) -> float | None:
        """Steps are the only clock."""
        return None

    @property
    def num_membranes(self) -> int:
        return self._native.num_membranes

    def memory(self) -> dict[str, int]:
        """Bytes and counts: pages in use, the most bytes of pages and rows at any time, membranes, forks, releases."""
        forks, releases = self._native.forks_and_releases()
        return {
            "pages": self._native.pages_in_use, "peak_bytes": self._native.peak_bytes, "max_bytes": self.max_bytes,
            "membranes": self._native.num_membranes, "forks": forks, "releases": releases,
        }  # fmt: skip

    def environment(self) -> dict[str, int]:
        """What has left the skin (or was outside at the start)."""
        counts = self._native.environment()
        return {self.objects[i]: int(counts[i]) for i in np.flatnonzero(counts)}

    def membranes(self) -> list[dict[str, Any]]:
        """Every membrane: id, label, charge, parent (id or None), objects; name and closed where there are any."""
        cells = self._native.cells()
        offsets, objects, counts = self._native.contents()
        ids = cells["id"].tolist()
        names = [self.objects[o] for o in objects.tolist()]
        values = counts.tolist()
        out = []
        columns = zip(cells["label"].tolist(), cells["charge"].tolist(), cells["parent"].tolist(),
                      cells["closed"].tolist(), strict=True)  # fmt: skip
        for row, (label, charge, parent, closed) in enumerate(columns):
            begin, end = int(offsets[row]), int(offsets[row + 1])
            membrane: dict[str, Any] = {
                "id": ids[row], "label": self.labels[label], "charge": charge,
                "parent": ids[parent] if parent >= 0 else None,
                "objects": dict(zip(names[begin:end], values[begin:end], strict=True)),
            }  # fmt: skip
            if ids[row] < len(self.names) and self.names[ids[row]]:
                membrane["name"] = self.names[ids[row]]
            if closed:
                membrane["closed"] = closed
            out.append(membrane)
        return out

    def links(self) -> list[tuple[int, int]]:
        """Pairs of ids."""
        ids = self._native.cells()["id"]
        pairs = self._native.links().reshape(-1, 2)
        return [(int(ids[a]), int(ids[b])) for a, b in pairs]

    def totals(self) -> dict[str, dict[str, Any]]:
        """Per label: how many membranes, and the objects in all of them together."""
        membranes, sums = self._native.totals(len(self.labels))
        table = sums.reshape(len(self.labels), len(self.objects))
        return {
            label: {
                "membranes": int(membranes[i]),
                "objects": {self.objects[o]: int(table[i, o]) for o in np.flatnonzero(table[i])},
            }
            for i, label in enumerate(self.labels)
            if membranes[i]
        }

    def _failure(self, status: int) -> PopulationLimit:
        step, membranes = self.steps + 1, self._native.num_membranes
        if status == OVERFLOW:
            row, cell, obj = self._native.failure()
            where = "the environment" if row < 0 else f"membrane {cell}"
            return PopulationLimit(
                f"step {step}: the count of {self.objects[obj]} in {where} passes 2^63 - 1; the run stands at step "
                f"{self.steps}, before it"
            )
        what = {OUT_OF_PAGES: "pages", OUT_OF_CELLS: "membranes"}.get(status, "applications at once")
        return PopulationLimit(
            f"step {step} needs more {what} than fit {self.max_bytes / (1 << 20):.0f} MiB of memory; the run stands at "
            f"step {self.steps} with {membranes} membranes: allow more memory or fewer steps"
        )


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
