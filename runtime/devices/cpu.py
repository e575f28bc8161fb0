"""The CPU driver: maps weights, allocates pages, and hands launch lists to the native executor."""

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from echoc import _native
from echoc.errors import ArtifactError, DeviceError
from echoc.runtime.artifact import Artifact
from echoc.runtime.candidates import Candidates
from echoc.runtime.devices import Array, IntArray, PageCount
from echoc.runtime.devices.cpu_pool import StateMemory
from echoc.runtime.libraries import open_library
from echoc.runtime.manifest import VariantSpec, WeightSpec
from echoc.runtime.memory import Bytes, address, allocate, available_memory, gather_in_huge_pages

Counted = tuple[int, int, int, list[int]]  # steps, nanoseconds, profiled steps, nanoseconds of their launches

_POOL_SHARE = 0.4  # of the memory that is available
_SCRATCH_GAP = 128  # keeps neighbouring threads' scratch off each other's cache lines and prefetches


def cpu_features() -> frozenset[str]:
    """Names of the instruction set extensions of this CPU as /proc/cpuinfo spells them; empty where it is missing."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def default_num_threads() -> int:
    """One thread per core that this process may use (hyperthreads of a core count once), within its cgroup's quota."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota()))


def _siblings(cpu: int) -> str:
    try:
        with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
            return file.read().strip()
    except OSError:
        return str(cpu)


def _quota() -> int:
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, int(quota) // int(period)) if quota != "max" else 1 << 16
    except (OSError, ValueError):
        return 1 << 16


def check_target(artifact: Artifact) -> None:
    """Raises ArtifactError when this CPU lacks something the artifact's kernels use."""
    target = artifact.manifest.raw["target"]
    machine = target.get("machine")
    if machine is not None and machine != platform.machine():
        raise ArtifactError(
            f"{artifact.path} was compiled for {machine}, this machine is {platform.machine()}: "
            "compile the model here with --target cpu:native"
        )
    missing = sorted(set(artifact.manifest.features) - cpu_features())
    if missing:
        raise ArtifactError(
            f"{artifact.path} was compiled for cpu:{artifact.manifest.level}, whose {', '.join(missing)} this CPU does "
            "not have: compile the model here with --target cpu:native, or there with --target cpu:x86-64-v3"
        )


class CpuDevice:
    """An artifact's kernels, weights and pages in this process."""

    def __init__(self, artifact: Artifact, num_pages: PageCount, num_threads: int) -> None:
        check_target(artifact)
        if callable(num_pages):
            num_pages = num_pages(int(available_memory() * _POOL_SHARE))
        manifest = artifact.manifest
        self.num_pages, self.num_threads = num_pages, num_threads
        self._artifact = artifact
        self._executor = _load_library(artifact, num_threads)
        self._weights = _weights(artifact, num_threads)
        self._arena = allocate(max((v.arena_bytes for v in manifest.variants), default=0))
        stride = max((v.scratch_bytes for v in manifest.variants), default=0) + _SCRATCH_GAP
        stride = (stride + 63) // 64 * 64
        self._scratch = allocate(stride * num_threads)
        self._states = StateMemory(manifest, num_pages, str(artifact.path))
        self._values = [
            self._states.data[base : base + state.bytes_per_page]
            for base, state in zip(self._states.bases, manifest.states, strict=True)
            if state.kind == "value"
        ]
        self._executor.bind(
            address(self._arena),
            address(self._scratch),
            stride,
            [address(weight) for weight in self._weights],
            [
                (address(self._states.data) + base, state.bytes_per_page if state.kind == "pages" else 0)
                for base, state in zip(self._states.bases, manifest.states, strict=True)
            ],
            len(manifest.ports),
        )
        self._tables = [i for i, port in enumerate(manifest.ports) if port.name == "block_table"]
        self._logits = next((i for i, port in enumerate(manifest.ports) if port.name == "logits"), -1)
        self._candidates = Candidates(allocate(0), num_threads, 0, 0)
        self._wanted = np.empty(0, np.int32)  # where the kernel reads how many candidates are wanted
        try:
            for variant in manifest.variants:
                self._add_variant(variant)
            self._choosing = {  # the variants that hand out the best logits, and how many at most
                index: (self._add_variant(_chooses(variant)), most)
                for index, variant in enumerate(manifest.variants)
                if (most := _most(variant)) > 0 and self._logits >= 0
            }
        except (RuntimeError, IndexError, ValueError) as error:
            raise ArtifactError(f"{artifact.path}: {error}; compile the model again") from None

    def _add_variant(self, variant: VariantSpec) -> int:
        return self._executor.add_variant([(x.kernel, x.barrier, x.alike, list(x.args)) for x in variant.launches])

    @property
    def most_candidates(self) -> int:
        """As many of the best logits of a row as `choose` hands out at most; 0 where not all variants can."""
        complete = len(self._choosing) == len(self._artifact.manifest.variants)
        return min((most for _, most in self._choosing.values()), default=0) if complete else 0

    def choose(self, variant: int, dims: Sequence[int], ports: Sequence[Array], wanted: IntArray) -> Candidates:
        """A step that hands out the best logits in place of all: `wanted` i32 [R] of each row, 0..most_candidates.

        The result is good until the next one.
        """
        number, most = self._choosing[variant]
        found = self._candidates
        if (found.num_rows, found.most) != (wanted.size, most):
            nbytes = _native.candidates_nbytes(self.num_threads, wanted.size, most)
            lists = found.lists if nbytes <= found.lists.size else allocate(nbytes)
            found = self._candidates = Candidates(lists, self.num_threads, wanted.size, most)
            self._wanted = lists[: wanted.nbytes].view(np.int32)
        self._wanted[:] = wanted
        self.step(number, dims, [found.lists if at == self._logits else port for at, port in enumerate(ports)])
        return found

    def step(self, variant: int, dims: Sequence[int], ports: Sequence[Array]) -> None:
        for at in self._tables:
            ports = [*ports[:at], self._states.entries(ports[at]), *ports[at + 1 :]]
        try:
            self._executor.step(variant, dims, ports)
        except RuntimeError as error:
            raise DeviceError(str(error)) from None

    def save(self) -> Bytes:
        return np.concatenate([np.empty(0, np.uint8), *self._values])

    def restore(self, held: Bytes) -> None:
        begin = 0
        for value in self._values:
            value[:] = held[begin : begin + value.size]
            begin += value.size

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        places = self._states.entries(np.array(pairs, np.int32).reshape(-1, 2))
        self._executor.copy_pages([(source, destination) for source, destination in places.tolist()])

    def set_profiling(self, on: bool) -> None:
        self._executor.set_profiling(on)

    def counters(self) -> list[dict[str, Any]]:
        counted = self._executor.counters()
        return [
            _counters(counted[index], counted[self._choosing[index][0]] if index in self._choosing else None)
            for index in range(len(self._artifact.manifest.variants))
        ]


def _counters(storing: Counted, choosing: Counted | None) -> dict[str, Any]:
    """Of one variant, with all its logits stored and with the best of them."""
    both = [storing] if choosing is None else [storing, choosing]
    return {
        "steps": sum(steps for steps, _, _, _ in both),
        "seconds": sum(step_ns for _, step_ns, _, _ in both) * 1e-9,
        "profiled_steps": sum(profiled for _, _, profiled, _ in both),
        "launch_seconds": [sum(ns) * 1e-9 for ns in zip(*(launch_ns for *_, launch_ns in both), strict=True)],
    }


def _most(variant: VariantSpec) -> int:
    """The most candidates that the variant hands out of a row of logits."""
    return max((launch.choosing.most for launch in variant.launches if launch.choosing is not None), default=0)


def _chooses(variant: VariantSpec) -> VariantSpec:
    """The variant with the best logits in place of all."""
    launches = [replace(x, kernel=x.kernel if x.choosing is None else x.choosing.kernel) for x in variant.launches]
    return replace(variant, launches=tuple(launches))


def open_device(artifact: Artifact, *, num_pages: PageCount, num_threads: int | None) -> CpuDevice:
    """Loads an artifact compiled for a CPU; `num_threads` defaults to the cores at hand."""
    threads = default_num_threads() if num_threads is None else num_threads
    if threads < 1:
        raise DeviceError(f"num_threads is {threads}, wanted 1 or more")
    return CpuDevice(artifact, num_pages, threads)


def _load_library(artifact: Artifact, num_threads: int) -> _native.Executor:
    name = artifact.manifest.kernel_library
    if name is None:
        raise ArtifactError(f"{artifact.path} names no kernel library; compile the model again")
    try:
        with open_library(artifact.view(name).data) as path:
            return _native.Executor(path, num_threads)
    except (RuntimeError, OSError) as error:
        raise DeviceError(
            f"the system does not load the kernels of {artifact.path}: {error}; compile the model on this machine"
        ) from None


def _weights(artifact: Artifact, num_threads: int) -> list[Bytes]:
    """The weights in manifest order: in place in the file, or random where the artifact says so and has none."""
    manifest = artifact.manifest
    seed = manifest.random_seed
    names = {weight.member for weight in manifest.weights}
    members = {name: artifact.tensors(name) for name in names if seed is None or name in artifact.members}
    for name in members:
        gather_in_huge_pages(artifact.view(name), num_threads)
    found = []
    for index, weight in enumerate(manifest.weights):
        data = members.get(weight.member, {}).get(weight.name)
        if data is None and seed is not None and weight.format != "plain":
            found.append(_random_weight(weight, seed, index, num_threads))
            continue
        if data is None or data.size < weight.nbytes:
            size = "missing" if data is None else f"{data.size} bytes"
            raise ArtifactError(
                f"{artifact.path}: weight {weight.name} of {weight.member} is {size}, wanted {weight.nbytes} bytes; "
                "compile the model again"
            )
        if address(data) % 64:
            raise ArtifactError(
                f"{artifact.path}: weight {weight.name} is not 64-byte aligned; compile the model again"
            )
        found.append(data)
    return found


def _random_weight(weight: WeightSpec, seed: int, index: int, num_threads: int) -> Bytes:
    """Weights of a model without a checkpoint: normal, standard deviation `std`, the same for the same seed."""
    rows, columns = weight.shape[-2:] if len(weight.shape) > 1 else (weight.shape[0], 1)
    form = (weight.format, weight.group, weight.interleave, rows, columns)
    size = _native.packed_nbytes(*form)
    memory = allocate(max(weight.nbytes, size * weight.experts))
    for expert in range(weight.experts):
        stream = index << 16 | expert
        out = memory[expert * size : (expert + 1) * size]
        _native.fill_random_into(*form, seed, stream, weight.std, out, num_threads)
    return memory
