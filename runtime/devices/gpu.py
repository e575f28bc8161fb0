"""What drives GPUs, CUDA and ROCm alike: loads kernels, fills memory, hands launch lists to the native executor."""

import os
import re
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from echoc import _native
from echoc.errors import ArtifactError, DeviceError
from echoc.runtime.artifact import Artifact
from echoc.runtime.devices import Array, PageCount
from echoc.runtime.manifest import FillSpec, Manifest, VariantSpec, WeightSpec
from echoc.runtime.memory import Bytes
from echoc.runtime.sampling import RECORD

Progress = Callable[[int, int], None]

_POOL_SHARE = 0.9  # of the memory that weights and intermediate values leave; the rest is for ports and graphs
_LOW = (1 << 32) - 1


def open_driver(vendor: str) -> _native.GpuDriver:
    """The driver "cuda" or "rocm", from the library that ECHOC_CUDA_LIBRARY or ECHOC_ROCM_LIBRARY names, if any.

    Raises DeviceError where it is missing, too old or finds no way to the hardware.
    """
    return _native.GpuDriver(vendor, os.environ.get(f"ECHOC_{vendor.upper()}_LIBRARY", ""))


def runs_on(vendor: str, level: str, architecture: str) -> bool:
    """Whether kernels built for a level run on a device of an architecture.

    Binaries of compute capability x.y run on x.z with z of at least y; those of a level with an `a` on x.y alone (CUDA
    C++ Programming Guide, "Binary Compatibility", "Feature Set Compiler Targets"). Code objects of ROCm fit one name.
    """
    if vendor == "rocm":
        return level == architecture
    wanted, given = (re.fullmatch(r"sm_(\d+)(\d)([af]?)", name) for name in (level, architecture))
    if wanted is None or given is None or wanted[1] != given[1]:
        return False
    return wanted[2] == given[2] if wanted[3] == "a" else wanted[2] <= given[2]


def check_target(artifact: Artifact, device: dict[str, Any]) -> None:
    """Raises DeviceError unless the artifact's kernels run on a device of this architecture."""
    vendor, level = artifact.manifest.device, artifact.manifest.level
    found = str(device["architecture"])
    if runs_on(vendor, level, found):
        return
    wanted = {"sm_90": "sm_90a"}.get(found, found)
    raise DeviceError(
        f"{artifact.path} was compiled for {vendor}:{level}, the device is {device['name']} ({found}): compile the "
        f"model again with --target {vendor}:{wanted}"
    )


def check_device(artifact: Artifact, device_index: int | None = None) -> None:
    """Raises DeviceError unless the artifact's kernels run on the device: `device_index`, else what
    ECHOC_DEVICE_INDEX says, else the first."""
    devices = open_driver(artifact.manifest.device).devices()
    index = device_number() if device_index is None else device_index
    if not 0 <= index < len(devices):
        raise DeviceError(f"device {index} was asked for; the driver of {artifact.manifest.device} has {len(devices)}")
    check_target(artifact, devices[index])


def free_memory(vendor: str, device_index: int | None = None) -> int:
    """Bytes of a device that nobody has taken."""
    index = device_number() if device_index is None else device_index
    return int(_native.GpuExecutor(open_driver(vendor), index).memory[0])


class GpuDevice:
    """An artifact's kernels, weights and pages on one device.

    `info` is what the driver tells of it, `seconds` how long parts of the loading took. Not safe for use from several
    threads at once.
    """

    num_threads = 1  # of the host

    def __init__(
        self, artifact: Artifact, num_pages: PageCount, device_index: int, progress: Progress | None = None
    ) -> None:
        manifest = artifact.manifest
        self._artifact = artifact
        self.seconds: dict[str, float] = {}
        self._last: tuple[int, tuple[int, ...]] | None = None
        begin = time.perf_counter()
        self._executor = _native.GpuExecutor(
            open_driver(manifest.device), device_index, os.environ.get("ECHOC_GPU_SYNCHRONOUS", "") not in ("", "0")
        )
        self.info: dict[str, Any] = self._executor.device
        check_target(artifact, self.info)
        self._note("open", begin)
        self.num_pages = self._bind(num_pages)
        try:
            kernels = self._load_kernels()
            for variant in manifest.variants:
                self._add_variant(variant, kernels)
            self._set_sampler(kernels)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise ArtifactError(f"{artifact.path}: {error}; compile the model again") from None
        self._note("kernels", begin)
        self._fill_weights(kernels, progress or (lambda done, total: None))
        self._note("weights", begin)

    def step(self, variant: int, dims: Sequence[int], ports: Sequence[Array]) -> None:
        try:
            self._executor.step(variant, dims, ports)
        except RuntimeError as error:
            raise DeviceError(str(error)) from None
        self._last = variant, tuple(dims)

    @property
    def draws(self) -> bool:
        """Whether the artifact has kernels that choose tokens."""
        return self._artifact.manifest.sampler is not None

    def draw(self, variant: int, dims: Sequence[int], ports: Sequence[Array], records: Array) -> list[int]:
        """A step that gives back only the tokens chosen, one for each record (i32 [D, 16], SamplingParams.record)."""
        try:
            tokens = self._executor.draw(variant, dims, ports, records.reshape(-1).view(np.uint8))
        except RuntimeError as error:
            raise DeviceError(str(error)) from None
        self._last = variant, tuple(dims)
        return tokens

    def begin_loop(self, variant: int, dims: Sequence[int], ports: Sequence[Array], records: Array) -> None:
        """Lays out steps of one token for each row, each of which leaves its tokens and positions to the next."""
        try:
            self._executor.begin_loop(variant, dims, ports, records.reshape(-1).view(np.uint8))
        except RuntimeError as error:
            raise DeviceError(str(error)) from None
        self._last = variant, tuple(dims)

    def advance_loop(self, block_table: Array | None) -> None:
        """Puts the loop's next step in the stream, behind a new block table if there is one, and returns at once."""
        table = np.empty(0, np.int32) if block_table is None else block_table
        try:
            self._executor.advance_loop(table.reshape(-1).view(np.uint8))
        except RuntimeError as error:
            raise DeviceError(str(error)) from None

    def collect(self) -> list[int]:
        """Waits for the loop's earliest step that was not collected yet: its tokens, negative where one failed."""
        try:
            return self._executor.collect()
        except RuntimeError as error:
            raise DeviceError(str(error)) from None

    def replay(self, count: int) -> list[float]:
        """Repeats the launches of the last step: seconds of each repetition on the device's clock.

        The host waits only behind the last one; nothing is copied to or from it. States change as in steps.
        """
        if self._last is None:
            raise DeviceError("there is no step to repeat: make one first")
        return self._executor.run_loop(*self._last, count)

    def copy_seconds(self, nbytes: int, count: int) -> list[float]:
        """Seconds of each of `count` copies of `nbytes` bytes within the device's memory."""
        return self._executor.time_copies(nbytes, count)

    def save(self) -> Bytes:
        values = [
            np.frombuffer(self._executor.read("state", i, 0, state.bytes_per_page), np.uint8)
            for i, state in self._values()
        ]
        return np.concatenate([np.empty(0, np.uint8), *values])

    def restore(self, held: Bytes) -> None:
        begin = 0
        for i, state in self._values():
            self._executor.write_state(i, np.ascontiguousarray(held[begin : begin + state.bytes_per_page]))
            begin += state.bytes_per_page

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._executor.copy_pages(pairs)

    def set_profiling(self, on: bool) -> None:
        self._executor.set_profiling(on)

    def counters(self) -> list[dict[str, Any]]:
        return [
            {
                "steps": steps,
                "seconds": step_ns * 1e-9,
                "profiled_steps": profiled,
                "launch_seconds": [ns * 1e-9 for ns in launch_ns],
                "graph_steps": graph_steps,
            }
            for steps, step_ns, profiled, launch_ns, graph_steps in self._executor.counters()
        ]

    def _note(self, part: str, begin: float) -> None:
        self.seconds[part] = time.perf_counter() - begin - sum(self.seconds.values())

    def _values(self) -> list[tuple[int, Any]]:
        return [(i, state) for i, state in enumerate(self._artifact.manifest.states) if state.kind == "value"]

    def _bind(self, num_pages: PageCount) -> int:
        manifest = self._artifact.manifest
        for state in manifest.states:
            if state.kind not in ("pages", "value"):
                raise ArtifactError(
                    f"{self._artifact.path}: state {state.name} is of kind {state.kind!r}, this echoc knows 'pages' "
                    "and 'value'"
                )
        arena = max((v.arena_bytes for v in manifest.variants), default=0)
        fixed = manifest.weight_bytes + arena + sum(state.bytes_per_page for state in manifest.states)
        if fixed > self.info["memory_bytes"]:
            raise DeviceError(
                f"{self._artifact.path} takes {fixed} bytes for weights, intermediate values and the least state, the "
                f"device has {self.info['memory_bytes']}: compile with smaller weights, or use a larger device"
            )
        if callable(num_pages):
            values = sum(state.bytes_per_page for _, state in self._values())
            num_pages = num_pages(
                int((self._executor.memory[0] - manifest.weight_bytes - arena - values) * _POOL_SHARE)
            )
        self._executor.bind(
            arena,
            [weight.nbytes for weight in manifest.weights],
            [(state.bytes_per_page, num_pages if state.kind == "pages" else 0) for state in manifest.states],
            [port.direction == "out" for port in manifest.ports],
        )
        return num_pages

    def _load_kernels(self) -> dict[str, int]:
        """The executor's index of every kernel that a launch list or a fill names."""
        manifest, artifact = self._artifact.manifest, self._artifact
        used = {launch.kernel for variant in manifest.variants for launch in variant.launches}
        used |= {fill.kernel for fill in manifest.fills} if manifest.random_seed is not None else set()
        used |= {manifest.sampler.peaks, manifest.sampler.sample} if manifest.sampler is not None else set()
        modules: dict[str, int] = {}
        kernels = {}
        for name in sorted(used):
            binary = manifest.binaries[name]
            if binary.member not in modules:
                modules[binary.member] = self._executor.add_module(artifact.view(binary.member), name)
            kernels[name] = self._executor.add_kernel(
                modules[binary.member],
                name,
                binary.entry,
                binary.threads,
                binary.shared_bytes,
                binary.extra_pointers,
                binary.together,
            )
        return kernels

    def _add_variant(self, variant: VariantSpec, kernels: dict[str, int]) -> None:
        names = [symbol.name for symbol in self._artifact.manifest.symbols]
        self._executor.add_variant(
            [
                (
                    kernels[launch.kernel],
                    launch.args,
                    launch.symbols,
                    [(axis.terms, axis.tile) for axis in launch.grid],
                    launch.dependent,
                    [
                        (m.argument, m.element, m.rows, m.columns, (rows, columns), swizzle)
                        for m, (rows, columns, swizzle) in zip(
                            launch.matrices, self._artifact.manifest.binaries[launch.kernel].boxes, strict=True
                        )
                    ],
                )
                for launch in variant.launches
            ],
            len(names),
            names.index("T") if "T" in names else -1,
        )

    def _set_sampler(self, kernels: dict[str, int]) -> None:
        spec, ports = self._artifact.manifest.sampler, self._artifact.manifest.ports
        if spec is None:
            return
        places = {port.name: i for i, port in enumerate(ports)}
        wanted = ("logits", "tokens", "positions", "block_table")
        missing = [name for name in wanted if name not in places]
        if missing or not isinstance(width := ports[places["logits"]].shape[-1], int):
            raise ArtifactError(
                f"{self._artifact.path}: kernels that choose tokens need ports {', '.join(wanted)} and a vocabulary of "
                "known size; compile the model again"
            )
        self._executor.set_sampler(
            kernels[spec.peaks],
            kernels[spec.sample],
            spec.parts,
            4 * width,
            4 * RECORD,
            spec.dependent,
            [places[name] for name in wanted],
        )

    def _fill_weights(self, kernels: dict[str, int], progress: Progress) -> None:
        """Uploads the weights from the mapped file; draws those that the artifact leaves to a seed."""
        artifact, manifest = self._artifact, self._artifact.manifest
        seed = manifest.random_seed
        names = {weight.member for weight in manifest.weights}
        members = {name: artifact.tensors(name) for name in names if seed is None or name in artifact.members}
        done = 0
        for index, weight in enumerate(manifest.weights):
            data = members.get(weight.member, {}).get(weight.name)
            if data is None and seed is not None and weight.format != "plain":
                self._draw(index, weight, seed, kernels)
            elif data is None or data.size < weight.nbytes:
                size = "missing" if data is None else f"{data.size} bytes"
                raise ArtifactError(
                    f"{artifact.path}: weight {weight.name} of {weight.member} is {size}, wanted {weight.nbytes} "
                    "bytes; compile the model again"
                )
            else:
                self._executor.upload_weight(index, data[: weight.nbytes])
            done += weight.nbytes
            progress(done, manifest.weight_bytes)
        self._executor.end_uploads()
        self._executor.wait()

    def _draw(self, index: int, weight: WeightSpec, seed: int, kernels: dict[str, int]) -> None:
        """Random values for a weight by the artifact's kernel for its format, slab by slab: the experts of a source lie
        together, one source behind the other."""
        fill = _fill_for(self._artifact.manifest, weight)
        slabs = weight.interleave * weight.experts
        if fill is None or len(weight.shape) != 2 or slabs < 1 or weight.nbytes % slabs:
            raise ArtifactError(
                f"{self._artifact.path}: weight {weight.name} is to be drawn, and no kernel of the artifact draws "
                f"format {weight.format!r} in groups of {weight.group} and shape {list(weight.shape)}; compile the "
                "model again"
            )
        rows, columns = weight.shape
        grid = [rows, -(-columns // fill.tile), 1]
        address = self._executor.address("weight", index)
        (std,) = struct.unpack("<i", struct.pack("<f", weight.std))
        for slab in range(slabs):
            source, expert = divmod(slab, weight.experts)
            place = address + slab * (weight.nbytes // slabs)
            numbers = [seed & _LOW, seed >> 32, index << 16 | expert, source, std, rows, columns]
            self._executor.launch(kernels[fill.kernel], [place, *numbers], grid)


def _fill_for(manifest: Manifest, weight: WeightSpec) -> FillSpec | None:
    fits = (fill for fill in manifest.fills if (fill.format, fill.group) == (weight.format, weight.group))
    return next(fits, None)


def open_device(
    artifact: Artifact,
    *,
    num_pages: PageCount,
    num_threads: int | None = None,
    device_index: int | None = None,
    progress: Progress | None = None,
) -> GpuDevice:
    """Loads an artifact on a device: `device_index`, else the one that ECHOC_DEVICE_INDEX names, else the first.

    `progress` is called as progress(bytes of weights there, bytes of all) while they are filled.
    """
    if num_threads is not None and num_threads < 1:
        raise DeviceError(f"num_threads is {num_threads}, wanted 1 or more")
    return GpuDevice(artifact, num_pages, device_number() if device_index is None else device_index, progress)


def device_number() -> int:
    """The device that ECHOC_DEVICE_INDEX names, else 0. Raises DeviceError."""
    text = os.environ.get("ECHOC_DEVICE_INDEX", "0")
    if not text.isascii() or not text.isdigit():
        raise DeviceError(f"ECHOC_DEVICE_INDEX is {text!r}, wanted the number of a device, from 0")
    return int(text)
