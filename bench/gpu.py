"""The benchmark of an artifact for GPUs: its steps beside what the device can read and multiply, and its start-up.

The host's cores do not bind here, so samples are not judged by them. The limits are measured in the same run by kernels
that the artifact brings (echoc.compiler.targets.gpu.probe): one only reads, the other multiplies bf16 tiles at hand. An
artifact without them has copies within the device's memory as its limit for reading, and none for products.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from echoc import _native
from echoc.bench.engines import Model, Setting, make_engine, own_environment
from echoc.bench.floors import ModelShape, cost_of
from echoc.bench.machine import describe_versions
from echoc.bench.process import EngineError, EngineProcess, EngineSpec
from echoc.bench.stats import Summary, summarise
from echoc.bench.tables import format_seconds
from echoc.bench.workloads import Workload
from echoc.runtime.artifact import Artifact
from echoc.runtime.devices.gpu import open_driver
from echoc.runtime.manifest import ProbeSpec

SCHEMA = "echoc-bench-gpu/1"
COPY_BYTES = 1 << 30
READ_BYTES, DOT_COUNT = 4 << 30, 4096
COLUMNS = ["workload", "time", "range", "a step", "tokens/s", "floor"]
NOT_MEASURED = "matrix products: not measured (the artifact brings no kernel for it; compile it again)"

FIRST_TOKEN = """
import json, sys, time
begin = time.perf_counter()
from echoc import LLM, SamplingParams
imported = time.perf_counter()
llm = LLM(sys.argv[1], max_num_seqs=1)
loaded = time.perf_counter()
llm.generate([[1, 2, 3, 4]], SamplingParams(temperature=0, max_tokens=1, detokenize=False))
done = time.perf_counter()
parts = {"import": imported - begin, "load": loaded - imported, "first token": done - loaded}
print(json.dumps(parts | {f"load: {name}": value for name, value in llm.model.program.device.seconds.items()}))
"""


@dataclass(frozen=True)
class Limits:
    """Bytes a second of copies (read and written) and of reads, bf16 operations a second; None: not measured."""

    copy: float
    read: float | None
    dot: float | None


@dataclass(frozen=True)
class GpuResult:
    """One workload: seconds of its samples, the least seconds that it can take, and by which limit."""

    workload: Workload
    seconds: Summary
    floor: float
    limit: str

    @property
    def steps(self) -> int:
        """Steps in the timed part."""
        return max(self.workload.num_tokens, 1)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        rate = self.seconds.map_inverse(self.workload.tokens)
        return {
            "workload": self.workload.label,
            "sequences": self.workload.sequences,
            "context": self.workload.context,
            "steps": self.steps,
            "seconds": self.seconds.as_dict(),
            "seconds_per_step": self.seconds.median / self.steps,
            "tokens_per_second": rate.as_dict(),
            "floor_seconds": self.floor,
            "floor_fraction": self.floor / self.seconds.median,
            "limit": self.limit,
        }

    def row(self) -> list[str]:
        """Cells of one line of the table, under COLUMNS."""
        low, high = format_seconds(self.seconds.low), format_seconds(self.seconds.high)
        return [
            self.workload.label,
            format_seconds(self.seconds.median),
            f"{low} to {high}",
            f"{self.seconds.median / self.steps * 1e3:.3f} ms",
            f"{self.workload.tokens / self.seconds.median:.0f}",
            f"{self.floor / self.seconds.median:.0%} of {self.limit}",
        ]


@dataclass
class GpuReport:
    """Everything that a run on a GPU found out; times in seconds, rates a second."""

    command: list[str]
    started: str
    device: dict[str, Any]
    versions: dict[str, str]
    model: dict[str, Any]
    limits: Limits
    start_up: list[dict[str, float]] = field(default_factory=list)
    engine: dict[str, Any] = field(default_factory=dict)
    results: list[GpuResult] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "started": self.started,
            "device": self.device,
            "versions": self.versions,
            "model": self.model,
            "limits": asdict(self.limits),
            "not_measured": [] if self.limits.dot is not None else [NOT_MEASURED],
            "start_up": self.start_up,
            "engine": self.engine,
            "results": [result.as_dict() for result in self.results],
        }

    def lines(self) -> list[str]:
        """What goes above the table of results."""
        device = self.device
        lines = [
            f"{device['name']} ({device['architecture']}), driver {device['driver']}; model {self.model['name']}",
            f"  copy within memory {self.limits.copy / 1e9:.0f} GB/s (bytes read and written, over "
            f"{2 * COPY_BYTES / 1e9:.1f} GB)",
        ]
        if self.limits.read is not None and self.limits.dot is not None:
            lines.append(
                f"  reads {self.limits.read / 1e9:.0f} GB/s, multiplies bf16 at {self.limits.dot / 1e12:.0f} TFLOP/s"
            )
        else:
            lines.append(f"  {NOT_MEASURED}")
        for start in self.start_up:
            parts = ", ".join(f"{name} {value:.2f} s" for name, value in start.items() if name != "process")
            lines.append(f"  process to first token {start['process']:.2f} s: {parts}")
        return lines


def run_gpu_benchmark(
    model: Model,
    manifest: dict[str, Any],
    shape: ModelShape,
    setting: Setting,
    workloads: Sequence[Workload],
    rounds: int,
    timeout: float,
    on_step: Callable[[str], None],
) -> GpuReport:
    """Times an artifact's workloads on the GPU that it was compiled for."""
    device, limits = measure_device(model, str(manifest["target"]["device"]))
    report = GpuReport(
        command=list(sys.argv),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device,
        versions=describe_versions(),
        model={"name": model.name, "vocab_size": model.vocab_size, "shape": shape.as_dict()},
        limits=limits,
    )
    spec = make_engine("echoc", model, setting)
    spec.options["max_num_seqs"] = max(workload.sequences for workload in workloads)
    for _ in range(2):
        on_step("starting a fresh process")
        report.start_up.append(first_token(spec, timeout))
    on_step("loading")
    with EngineProcess(spec, timeout) as engine:
        report.engine = engine.description | {"load_seconds": engine.load_seconds}
        for workload in workloads:
            op, arguments = workload.request()
            on_step(f"{workload.label}: warming up")
            engine.request(op, **arguments)
            seconds = []
            for number in range(rounds):
                on_step(f"{workload.label}: round {number + 1}")
                seconds.append(engine.request(op, **arguments).seconds)
            floor, limit = least_seconds(workload, shape, setting.weights_dtype, limits)
            report.results.append(GpuResult(workload, summarise(seconds), floor, limit))
    return report


def measure_device(model: Model, vendor: str) -> tuple[dict[str, Any], Limits]:
    """The first device's description, and what it can copy, read and multiply."""
    executor = _native.GpuExecutor(open_driver(vendor), 0)
    device: dict[str, Any] = executor.device
    copy = 2 * COPY_BYTES / min(executor.time_copies(COPY_BYTES, 20))
    read, dot = None, None
    if model.artifact is not None:
        artifact = Artifact(model.artifact)
        if artifact.manifest.probes is not None:
            read, dot = _probe(executor, artifact, artifact.manifest.probes)
    return device | {"driver": open_driver(vendor).version}, Limits(copy, read, dot)


def _probe(executor: _native.GpuExecutor, artifact: Artifact, spec: ProbeSpec) -> tuple[float, float]:
    """Bytes/s of the kernel that reads and operations/s of the one that multiplies, the best of several launches."""
    blocks = max(1, READ_BYTES // spec.read_bytes)
    tiles = 8 * int(executor.device["multiprocessors"])
    executor.bind(blocks * spec.read_bytes + max(4 * blocks, tiles * spec.dot_bytes), [], [], [])
    data = executor.address("arena", 0)
    out = executor.address("arena", blocks * spec.read_bytes)

    def best(name: str, arguments: list[int], grid: int) -> float:
        binary = artifact.manifest.binaries[name]
        kernel = executor.add_kernel(
            executor.add_module(artifact.view(binary.member), name), name, binary.entry, binary.threads,
            binary.shared_bytes, binary.extra_pointers,
        )  # fmt: skip
        seconds = []
        for _ in range(12):
            begin = time.perf_counter()
            executor.launch(kernel, arguments, [grid, 1, 1])
            executor.wait()
            seconds.append(time.perf_counter() - begin)
        return min(seconds[2:])

    read = blocks * spec.read_bytes / best(spec.read, [data, out], blocks)
    return read, tiles * DOT_COUNT * spec.dot_operations / best(spec.dot, [out, DOT_COUNT], tiles)


def first_token(spec: EngineSpec, timeout: float) -> dict[str, float]:
    """Seconds from the start of a fresh process to its first token, and of its parts."""
    begin = time.perf_counter()
    command = [spec.python, "-c", FIRST_TOKEN, str(spec.options["model"])]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, env=os.environ | own_environment()
    )
    if done.returncode:
        raise EngineError(f"a fresh process fails: {(done.stderr.strip() or 'it says nothing').splitlines()[-1]}")
    parts: dict[str, float] = json.loads(done.stdout)
    return {"process": time.perf_counter() - begin} | parts


def least_seconds(workload: Workload, shape: ModelShape, weights_dtype: str, limits: Limits) -> tuple[float, str]:
    """The least seconds that a workload takes on the device, and the limit that says so."""
    num_bytes, operations = cost_of(workload, shape, weights_dtype)
    reading, limit = (num_bytes / limits.copy, "copy") if limits.read is None else (num_bytes / limits.read, "read")
    if limits.dot is None or operations / limits.dot < reading:
        return reading, limit
    return operations / limits.dot, "dot"
