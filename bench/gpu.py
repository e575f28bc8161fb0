"""The benchmark of an artifact for GPUs: its steps beside the copy bandwidth that its driver gives, and its start-up.

The host's cores do not bind here, so samples are not judged by them. The limit for reading is a copy within the
device's memory, bytes read and written; matrix products have no limit of their own measured, so that prefill and large
batches have a floor by reading alone, or none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from echoc.bench.engines import Model, Setting, make_engine, own_environment
from echoc.bench.floors import ModelShape
from echoc.bench.machine import describe_versions
from echoc.bench.process import EngineError, EngineProcess, EngineSpec
from echoc.bench.report import format_seconds
from echoc.bench.stats import Summary, summarise
from echoc.bench.workloads import Workload
from echoc.runtime.devices.gpu import open_driver

SCHEMA = "echoc-bench-gpu/1"
COPY_BYTES = 1 << 30
COLUMNS = ["workload", "time", "range", "a step", "tokens/s", "of reading's floor"]
NOT_MEASURED = "matrix products: not measured (no kernel of known size is at hand)"

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
class GpuResult:
    """One workload: seconds of its samples, and the least seconds that reading its bytes takes (None for prefill)."""

    workload: Workload
    seconds: Summary
    floor: float | None

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
            "floor_fraction": None if self.floor is None else self.floor / self.seconds.median,
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
            "" if self.floor is None else f"{self.floor / self.seconds.median:.0%}",
        ]


@dataclass
class GpuReport:
    """Everything that a run on a GPU found out; times in seconds, rates a second."""

    command: list[str]
    started: str
    device: dict[str, Any]
    versions: dict[str, str]
    model: dict[str, Any]
    copy_bandwidth: float
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
            "limits": {"copy_bytes_per_second": self.copy_bandwidth, "matmul": None},
            "not_measured": [NOT_MEASURED],
            "start_up": self.start_up,
            "engine": self.engine,
            "results": [result.as_dict() for result in self.results],
        }

    def lines(self) -> list[str]:
        """What goes above the table of results."""
        device = self.device
        lines = [
            f"{device['name']} ({device['architecture']}), driver {device['driver']}; model {self.model['name']}",
            f"  copy within memory {self.copy_bandwidth / 1e9:.0f} GB/s (bytes read and written, over "
            f"{2 * COPY_BYTES / 1e9:.1f} GB), the limit for reading",
            f"  {NOT_MEASURED}",
        ]
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
    device, bandwidth = measure_device(str(manifest["target"]["device"]))
    report = GpuReport(
        command=list(sys.argv),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device,
        versions=describe_versions(),
        model={"name": model.name, "vocab_size": model.vocab_size, "shape": shape.as_dict()},
        copy_bandwidth=bandwidth,
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
            floor = reading_floor(workload, shape, setting.weights_dtype, bandwidth)
            report.results.append(GpuResult(workload, summarise(seconds), floor))
    return report


def measure_device(vendor: str) -> tuple[dict[str, Any], float]:
    """The first device's description, and bytes/s read and written by a copy within its memory."""
    from echoc import _native

    driver = open_driver(vendor)
    executor = _native.GpuExecutor(driver, 0)
    device: dict[str, Any] = executor.device
    seconds = min(executor.time_copies(COPY_BYTES, 20))
    return device | {"driver": driver.version}, 2 * COPY_BYTES / seconds


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


def reading_floor(workload: Workload, shape: ModelShape, weights_dtype: str, bandwidth: float) -> float | None:
    """Least seconds in which a decode workload's weights, keys and values are read; None for prefill."""
    if workload.kind == "prefill":
        return None
    contexts = sum(workload.context + step + 1 for step in range(workload.num_tokens))
    num_bytes = workload.num_tokens * shape.weight_bytes(weights_dtype)
    return (num_bytes + workload.sequences * shape.kv_bytes(contexts)) / bandwidth
