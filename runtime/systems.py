"""A compiled P system from its artifact: runs that are stepped, looked at, and told apart by seed and number."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from echoc import _native
from echoc.errors import ArtifactError, RequestError
from echoc.runtime.artifact import Artifact
from echoc.runtime.device_runs import DeviceRuns, Sizes
from echoc.runtime.devices.cpu import check_target
from echoc.runtime.devices.gpu import check_target as check_device
from echoc.runtime.devices.gpu import device_number, open_driver
from echoc.runtime.manifest import GPUS
from echoc.runtime.population import Applied, Gpu, Outcome, PopulationBatch, PopulationLimit, default_max_bytes
from echoc.runtime.runs import MAX_RUN, Batch, Runs

__all__ = ["Applied", "Outcome", "PopulationBatch", "PopulationLimit", "SystemProgram", "SystemRun"]
_TOGETHER = 256  # runs of a population: enough for any number of threads
_ROOM = 16 << 20  # bytes for each
_ENDLESS = 1 << 16  # steps asked for at once by a run that goes on until it halts


class SystemRun(Protocol):
    """One run. `steps` and `halted` say where it stands, `time` what the clock of a chemical system shows."""

    @property
    def steps(self) -> int: ...

    @property
    def halted(self) -> bool: ...

    @property
    def time(self) -> float | None: ...

    def advance(self, steps: int | None = None, *, record: bool = False) -> Outcome:
        """At most `steps` steps (None: until it halts). With `record`, `applied` tells what the last step did."""

    def applied(self) -> list[Applied]:
        """What the last recorded step applied."""

    def put(self, membrane: int, objects: Mapping[str, int]) -> None:
        """Objects come into a membrane (its id; -1: the environment) between two steps; a halted run may go on."""

    def take(self, objects: Sequence[str]) -> dict[str, int]:
        """Takes all of some objects out of the environment; returns how many there were, zeros left out."""

    def fork(self) -> SystemRun:
        """A run that stands where this one does, and from there on is on its own."""

    def release(self) -> None:
        """Gives back what the run holds."""

    def environment(self) -> dict[str, int]:
        """What is outside the skin."""

    def membranes(self) -> list[dict[str, Any]]:
        """Every membrane: id, label, charge, parent, objects."""

    def links(self) -> list[tuple[int, int]]:
        """Pairs of ids of linked membranes."""

    def totals(self) -> dict[str, dict[str, Any]]:
        """Per label: membranes, and the objects in all of them together."""

    def memory(self) -> dict[str, int]:
        """What the run holds, in bytes and counts."""


@dataclass
class SystemProgram:
    """An artifact of a P system on this machine.

    Args:
        artifact: opened, or its path.
        num_threads, max_bytes: as for `PopulationBatch`.
        device_index: of the GPU, for an artifact of one; default: what ECHOC_DEVICE_INDEX says, else the first.
    Raises: ArtifactError for an artifact that is none of a P system, DeviceError where it does not load.
    """

    artifact: Artifact
    num_threads: int | None = None
    max_bytes: int | None = None
    device_index: int | None = None

    def __init__(
        self,
        artifact: Artifact | str | os.PathLike[str],
        *,
        num_threads: int | None = None,
        max_bytes: int | None = None,
        device_index: int | None = None,
    ) -> None:
        self.artifact = artifact if isinstance(artifact, Artifact) else Artifact(artifact)
        self.num_threads, self.max_bytes, self.device_index = num_threads, max_bytes, device_index
        if not is_system(self.artifact):
            raise ArtifactError(f"{self.artifact.path} holds no P system; echoc.load loads any program")
        on_gpu = self.artifact.manifest.device in GPUS
        if not on_gpu:
            check_target(self.artifact)
        raw: Mapping[str, Any] = self.artifact.manifest.raw["system"]
        source = self.artifact.manifest.raw.get("source", {})
        try:
            self.engine, self.mode = str(raw["engine"]), str(raw["mode"])
            self.layout: Mapping[str, Any] = raw["layout"]
            self.rules = [str(rule) for rule in self.layout["rules"]]
            self.name, self.model = str(source.get("name", "")), str(source.get("model", ""))
            self.links_matter = bool(self.layout.get("links")) or bool(self.layout.get("graph"))
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{self.artifact.path}: its system is not valid: {error!r}; compile it again") from None
        self._gpu = self._open_gpu() if on_gpu else None
        self._runs: Runs | None = None
        if self.engine == "runs":
            self._runs = Runs(self._library() if self._gpu is None else self._on_gpu, self.layout)

    def _open_gpu(self) -> Gpu:
        """The device that the artifact's kernel runs on."""
        manifest = self.artifact.manifest
        driver = open_driver(manifest.device)
        index = device_number() if self.device_index is None else self.device_index
        executor = _native.GpuExecutor(driver, index)
        check_device(self.artifact, executor.device)
        binary = manifest.binaries.get(str(self.layout.get("entry")))
        if binary is None:
            raise ArtifactError(f"{self.artifact.path} has no kernel {self.layout.get('entry')!r}; compile it again")
        return Gpu(driver, index, binary.threads, int(executor.memory[0]))

    def _on_gpu(self, sizes: Sizes) -> DeviceRuns:
        """The kernel of runs on the device."""
        entry, manifest = str(self.layout["entry"]), self.artifact.manifest
        assert self._gpu is not None
        facts = manifest.raw["kernels"]["binaries"][entry]
        return DeviceRuns(self._gpu.driver, self._gpu.index, self._library(), manifest.binaries[entry], facts, sizes)

    def _library(self) -> memoryview:
        if self._gpu is not None:
            return self.artifact.view(self.artifact.manifest.binaries[str(self.layout["entry"])].member).data
        name = self.artifact.manifest.kernel_library
        if name is None:
            raise ArtifactError(f"{self.artifact.path} names no kernel library; compile it again")
        return self.artifact.view(name).data

    @property
    def labels(self) -> list[str]:
        """Every label that a membrane can have."""
        if self._runs is not None:
            return list(dict.fromkeys(str(c["label"]) for c in self._runs.cells[:-1]))
        return [str(label) for label in self.layout["labels"]]

    @property
    def objects(self) -> list[str]:
        """Every object that can occur."""
        if self._runs is not None:
            return list(dict.fromkeys(o for c in self._runs.cells for o in c["objects"]))
        return [str(o) for o in self.layout["objects"]]

    @property
    def most_together(self) -> int:
        """Runs that go side by side with room to grow for each; more are better made in turns."""
        if self._runs is not None:
            return MAX_RUN
        memory = default_max_bytes(self._gpu) if self.max_bytes is None else self.max_bytes
        return max(1, min(_TOGETHER, memory // _ROOM))

    def create(self, *, seed: int = 0, run: int = 0) -> SystemRun:
        """A run at the start configuration. Run `run` of a seed is the same whatever else runs."""
        if self._runs is not None:
            return DenseRun(self._runs, self._runs.start(1, seed=seed, first=run, threads=1), 0)
        return self._populations(1, seed, run)[0]

    def create_many(self, runs: int, *, seed: int = 0, first: int = 0) -> Batch | PopulationBatch:
        """Runs number first to first + runs - 1 side by side, each the same as alone. Where membranes stay (`engine` is
        "runs") a `Batch`, whose arrays are the state; else a `PopulationBatch`, whose runs share `max_bytes` equally.

        Raises: RequestError for numbers out of range.
        """
        if self._runs is not None:
            return self._runs.start(runs, seed=seed, first=first, threads=self.num_threads)
        return self._populations(runs, seed, first)

    def row(self, batch: Batch | PopulationBatch, index: int) -> SystemRun:
        """One run of a batch."""
        if isinstance(batch, PopulationBatch):
            return batch[index]
        assert self._runs is not None
        return DenseRun(self._runs, batch, index)

    def _populations(self, runs: int, seed: int, first: int) -> PopulationBatch:
        batch = PopulationBatch(
            self._library(), self.layout, instances=runs, num_threads=self.num_threads, max_bytes=self.max_bytes,
            gpu=self._gpu,
        )  # fmt: skip
        batch.start(seed, first)
        return batch


class DenseRun:
    """One row of a batch in the form of a run."""

    def __init__(self, runs: Runs, batch: Batch, row: int) -> None:
        self._runs, self._batch, self._row = runs, batch, row

    @property
    def steps(self) -> int:
        return int(self._batch.steps[self._row])

    @property
    def halted(self) -> bool:
        return bool(self._batch.halted[self._row])

    @property
    def time(self) -> float | None:
        return float(self._batch.time[self._row]) if self._runs.mode == "gillespie" else None

    def advance(self, steps: int | None = None, *, record: bool = False, until: float | None = None) -> Outcome:
        """As for every run; `until` takes no event later than that time (chemical systems)."""
        if steps is not None and steps < 0:
            raise RequestError(f"the number of steps is {steps}, wanted 0 or more")
        if until is not None:
            self._batch.advance(steps, until=until, applications=record)
            return Outcome(self.steps, self.halted)
        while steps is None and not self.halted:
            self._batch.advance(_ENDLESS, applications=record)
        if steps:
            self._batch.advance(steps, applications=record)
        return Outcome(self.steps, self.halted)

    def applied(self) -> list[Applied]:
        applications = self._batch.applications
        if applications is None:
            return []
        out = []
        outside = len(self._runs.cells) - 1
        for instance, times in zip(self._runs.instances, applications[self._row].tolist(), strict=True):
            if times:
                members = tuple(-1 if c == outside else c for c in instance[1:])
                out.append(Applied(instance[0], members, int(times)))
        return out

    def put(self, membrane: int, objects: Mapping[str, int]) -> None:
        """Raises RequestError for what is not there and for counts out of range: then nothing has changed."""
        cell = self._runs.cells[membrane if membrane >= 0 else -1]
        counts = self._batch.counts[self._row]
        sums = {}
        for name, count in objects.items():
            if name not in cell["objects"]:
                raise RequestError(f"membrane {cell['label']} can hold no object {name!r}")
            place = cell["objects"][name]
            sums[place] = int(counts[place]) + count
            if count < 0 or sums[place] >= 1 << 63:
                raise RequestError(
                    f"{count} of {name} do not fit into membrane {cell['label']}, which holds {counts[place]}"
                )
        for place, total in sums.items():
            counts[place] = total
        self._batch.wake(self._row)

    def take(self, objects: Sequence[str]) -> dict[str, int]:
        counts, out = self._batch.counts[self._row], {}
        for name in objects:
            place = self._runs.cells[-1]["objects"].get(name)
            if place is not None and counts[place]:
                out[name] = int(counts[place])
                counts[place] = 0
        return out

    def fork(self) -> DenseRun:
        batch, row = self._batch, slice(self._row, self._row + 1)
        child = self._runs.start(
            1, seed=batch.seed, first=int(batch.index[self._row]), counts=batch.counts[row], threads=batch.threads
        )
        child.charges[:], child.time[:], child.steps[:] = batch.charges[row], batch.time[row], batch.steps[row]
        child.halt(batch.halted[row])
        return DenseRun(self._runs, child, 0)

    def release(self) -> None:
        """The arrays of a batch go together, with its last run."""

    def environment(self) -> dict[str, int]:
        return self._objects(self._runs.cells[-1])

    def membranes(self) -> list[dict[str, Any]]:
        out = []
        for index, cell in enumerate(self._runs.cells[:-1]):
            membrane: dict[str, Any] = {
                "id": index, "label": str(cell["label"]), "charge": int(self._batch.charges[self._row, index]),
                "parent": cell["parent"], "objects": self._objects(cell),
            }  # fmt: skip
            if cell["name"]:
                membrane["name"] = str(cell["name"])
            out.append(membrane)
        return out

    def links(self) -> list[tuple[int, int]]:
        return []

    def totals(self) -> dict[str, dict[str, Any]]:
        out: dict[str, dict[str, Any]] = {}
        for membrane in self.membranes():
            total = out.setdefault(membrane["label"], {"membranes": 0, "objects": {}})
            total["membranes"] += 1
            for name, count in membrane["objects"].items():
                total["objects"][name] = total["objects"].get(name, 0) + count
        return out

    def memory(self) -> dict[str, int]:
        return {"bytes": int(self._batch.counts.nbytes), "membranes": len(self._runs.cells) - 1}

    def _objects(self, cell: Mapping[str, Any]) -> dict[str, int]:
        counts = self._batch.counts[self._row]
        return {str(o): int(counts[p]) for o, p in cell["objects"].items() if counts[p]}


def is_system(artifact: Artifact) -> bool:
    """Whether an artifact holds a P system of discrete objects."""
    return isinstance(artifact.manifest.raw.get("system"), dict) and "engine" in artifact.manifest.raw["system"]
