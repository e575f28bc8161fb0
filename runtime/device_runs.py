"""Runs of a system whose membranes stay on a GPU: a thread of the device advances each (kernels/gpu/runs.h).

The arrays of a `Batch` stay the truth on the host. An advance takes them to the device, launches the kernel slice by
slice, looks at what stands where after each, and brings the arrays back at its end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from echoc import _native
from echoc.errors import ArtifactError, DeviceError

if TYPE_CHECKING:
    from echoc.runtime.manifest import BinarySpec
    from echoc.runtime.runs import Batch, Plan

ABI = 2  # of kernels/gpu/runs.h: struct Batch and what its fields mean
_WARPS = 8  # of a multiprocessor that are wanted before runs share one: in a warp, those that part ways wait
_FIRST = 64  # steps of the first slice
_NUMBERS, _CHARGES, _COUNTS, _PLAN, _RECORDS, _APPLICATIONS, _SCRATCH = range(7)  # the pieces of memory
_STATUS = (("step", np.int64), ("done", np.int64), ("where", np.int64), ("halted", np.int32), ("error", np.int32))


@dataclass(frozen=True)
class Sizes:
    """Of one run: entries of its arrays, and bytes to work with."""

    places: int
    cells: int
    instances: int
    scratch_bytes: int


class DeviceRuns:
    """A compiled system on one device. The scratch of `stride` runs lies interleaved.

    Raises: DeviceError where the device does not take the kernel; ArtifactError for one of another version.
    """

    def __init__(
        self, driver: _native.GpuDriver, device_index: int, image: memoryview, binary: BinarySpec,
        facts: Mapping[str, Any], sizes: Sizes,
    ) -> None:  # fmt: skip
        if facts.get("abi") != ABI or not isinstance(facts.get("stride"), int) or not 1 <= facts["stride"] <= 64:
            raise ArtifactError(f"kernel {binary.name} was compiled for another version of echoc; compile it again")
        self.stride, self.binary, self.sizes = int(facts["stride"]), binary, sizes
        self._driver, self._index, self._image = driver, device_index, image
        self._first = self.executor()[0]  # as long as it is there, so is the device

    def executor(self) -> tuple[_native.GpuExecutor, int]:
        """The kernel with a stream and, later, memory of its own."""
        executor = _native.GpuExecutor(
            self._driver, self._index, os.environ.get("ECHOC_GPU_SYNCHRONOUS", "") not in ("", "0")
        )
        module = executor.add_module(np.frombuffer(self._image, np.uint8), self.binary.name)
        binary = self.binary
        return executor, executor.add_kernel(
            module, binary.name, binary.entry, binary.threads, binary.shared_bytes, binary.extra_pointers
        )

    def turn(self, batch: Batch, plan: Plan, applications: bool) -> DeviceTurn:
        """Begins an advance."""
        wanted = (len(batch), plan.records.shape[1:], 0 if plan.times is None else len(plan.times), applications)
        held = batch.memory
        if not isinstance(held, _Memory) or held.wanted != wanted:
            batch.memory = None  # given back before as much again is taken
            batch.memory = held = _Memory(self, wanted)
        return DeviceTurn(self, held, batch, plan)


class _Memory:
    """What an advance of so many runs with so many records needs on the device."""

    def __init__(self, device: DeviceRuns, wanted: tuple[int, tuple[int, ...], int, bool]) -> None:
        self.wanted = wanted
        rows, (records, recorded), times, applications = wanted
        sizes = device.sizes
        self.rows, self.fields, end = rows, {}, 0
        for name, dtype in (*_STATUS, ("time", np.float64), ("index", np.uint64)):
            self.fields[name] = (end, dtype)
            end += rows * np.dtype(dtype).itemsize
        self.status_bytes = self.fields["time"][0]
        self.scratch_bytes = -(-max(sizes.scratch_bytes, 1) // 64) * 64
        needs = [
            end,
            rows * sizes.cells,
            8 * rows * sizes.places,
            8 * len(_BATCH) + 8 * times + 4 * recorded,
            8 * rows * records * recorded,
            8 * rows * sizes.instances * applications,
            -(-rows // device.stride) * device.stride * self.scratch_bytes,
        ]
        self.executor, self.kernel = device.executor()
        free = self.executor.memory[0]
        if sum(needs) > free:
            raise DeviceError(
                f"{rows} runs take {sum(needs)} bytes on the device, {needs[_RECORDS]} of them for records, and {free} "
                "are free; ask for fewer runs, or record less"
            )
        self.executor.bind(0, needs, [], [])
        self.needs = needs
        self.numbers = np.zeros(needs[_NUMBERS], np.uint8)
        self.address = [self.executor.address("weight", i) for i in range(len(needs))]

    def field(self, name: str) -> npt.NDArray[Any]:
        """The host's copy of one number for each run."""
        begin, dtype = self.fields[name]
        return self.numbers[begin : begin + self.rows * np.dtype(dtype).itemsize].view(dtype)

    def send(self, piece: int, values: npt.NDArray[Any]) -> None:
        self.executor.upload_weight(piece, values.reshape(-1).view(np.uint8))

    def fetch(self, piece: int, values: npt.NDArray[Any], begin: int = 0) -> None:
        """Into an array of the host, from byte `begin` on."""
        self.executor.read_into("weight", piece, begin, values.reshape(-1).view(np.uint8))


_BATCH = (
    "count", "lanes", "seed", "places", "cells", "instances", "until", "every", "num_recorded", "num_records",
    "scratch_bytes", "recorded", "times", "index", "step", "done", "where", "halted", "error", "time", "charges",
    "counts", "records", "applications", "scratch",
)  # fmt: skip
"""The fields of struct Batch, eight bytes each."""


class DeviceTurn:
    """One advance of a batch. `piece`: steps of its first slice."""

    def __init__(self, device: DeviceRuns, memory: _Memory, batch: Batch, plan: Plan) -> None:
        self.device, self.memory, self.batch, self.plan = device, memory, batch, plan
        self.piece = _FIRST
        multiprocessors = int(memory.executor.device["multiprocessors"])
        lanes = -(-memory.rows // (multiprocessors * _WARPS))
        self.lanes = max(1, min(device.binary.threads, lanes))
        self._send()

    def advance(self, steps: int) -> None:
        """Steps in every run; what stands where is known after it."""
        memory, batch = self.memory, self.batch
        blocks = -(-memory.rows // self.lanes)
        try:
            memory.executor.launch(memory.kernel, [memory.address[_PLAN], steps], [blocks, 1, 1])
            memory.fetch(_NUMBERS, memory.numbers[: memory.status_bytes])
        except DeviceError as error:
            raise DeviceError(f"kernel {self.device.binary.name}, {memory.rows} runs: {error}") from None
        batch.steps[:], batch.halts[:] = memory.field("step"), memory.field("halted")
        self.plan.done[:], self.plan.error[:] = memory.field("done"), memory.field("error")
        self.plan.where[:] = memory.field("where")

    def finish(self) -> None:
        """Brings the arrays back to the host."""
        memory, batch, plan = self.memory, self.batch, self.plan
        memory.fetch(_NUMBERS, memory.numbers[memory.status_bytes :], memory.status_bytes)
        batch.time[:] = memory.field("time")
        memory.fetch(_CHARGES, batch.charges)
        memory.fetch(_COUNTS, batch.counts)
        if plan.records.size:
            memory.fetch(_RECORDS, plan.records)
            plan.records[np.arange(plan.records.shape[1]) >= plan.done[:, None]] = -1
        if memory.needs[_APPLICATIONS]:
            assert batch.applications is not None
            memory.fetch(_APPLICATIONS, batch.applications)

    def _send(self) -> None:
        memory, batch, plan = self.memory, self.batch, self.plan
        for name, values in (("step", batch.steps), ("done", plan.done), ("halted", batch.halts),
                             ("time", batch.time), ("index", batch.index)):  # fmt: skip
            memory.field(name)[:] = values
        memory.field("error")[:] = 0
        memory.send(_NUMBERS, memory.numbers)
        memory.send(_CHARGES, batch.charges)
        memory.send(_COUNTS, batch.counts)
        if memory.needs[_APPLICATIONS]:
            assert batch.applications is not None
            memory.send(_APPLICATIONS, batch.applications)
        memory.send(_PLAN, self._described())

    def _described(self) -> npt.NDArray[np.uint8]:
        """Struct Batch, the times and the recorded places."""
        memory, batch, plan, sizes = self.memory, self.batch, self.plan, self.device.sizes
        times = np.empty(0) if plan.times is None else plan.times
        at = memory.address[_PLAN] + 8 * len(_BATCH)
        fields: dict[str, int] = {
            "count": memory.rows, "lanes": self.lanes, "seed": batch.seed, "places": sizes.places,
            "cells": sizes.cells, "instances": sizes.instances, "until": int(np.float64(plan.until).view(np.int64)),
            "every": plan.every, "num_recorded": plan.records.shape[2], "num_records": plan.records.shape[1],
            "scratch_bytes": memory.scratch_bytes, "recorded": at + times.nbytes,
            "times": 0 if plan.times is None else at,
            **{name: memory.address[_NUMBERS] + begin for name, (begin, _) in memory.fields.items()},
            "charges": memory.address[_CHARGES], "counts": memory.address[_COUNTS],
            "records": memory.address[_RECORDS],
            "applications": memory.address[_APPLICATIONS] if memory.needs[_APPLICATIONS] else 0,
            "scratch": memory.address[_SCRATCH],
        }  # fmt: skip
        words = np.array([fields[name] % (1 << 64) for name in _BATCH], np.uint64)
        return np.concatenate([words.view(np.uint8), times.view(np.uint8), plan.recorded.view(np.uint8)])
