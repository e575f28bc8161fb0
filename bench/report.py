"""The report of a run: results with floors and ratios, as JSON and as tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from echoc.bench.floors import Floor
from echoc.bench.sampling import Sample, count_clean, discard_counts
from echoc.bench.stats import Summary
from echoc.bench.workloads import Workload

SCHEMA = "echoc-bench/1"


@dataclass(frozen=True)
class Result:
    """One engine on one workload. `seconds` is None where no sample was clean; then `disturbed` holds their median."""

    engine: str
    weights_dtype: str
    workload: Workload
    state: str | None
    seconds: Summary | None
    disturbed: float | None
    floor: Floor
    samples: list[Sample]
    resident_bytes: int

    @property
    def tokens_per_second(self) -> Summary | None:
        """Tokens/s of the clean samples."""
        return self.seconds.map_inverse(self.workload.tokens) if self.seconds else None

    @property
    def floor_fraction(self) -> float | None:
        """Floor over measured median: 1 is the machine's limit."""
        return self.floor.seconds / self.seconds.median if self.seconds else None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        rate = self.tokens_per_second
        return {
            "engine": self.engine,
            "weights_dtype": self.weights_dtype,
            "workload": {
                "kind": self.workload.kind,
                "context": self.workload.context,
                "num_tokens": self.workload.num_tokens,
                "sequences": self.workload.sequences,
            },
            "core_state": self.state,
            "seconds": self.seconds.as_dict() if self.seconds else None,
            "tokens_per_second": rate.as_dict() if rate else None,
            "disturbed_seconds": self.disturbed,
            "floor": self.floor.as_dict(),
            "floor_fraction": self.floor_fraction,
            "clean": count_clean(self.samples),
            "discarded": discard_counts(self.samples),
            "samples": [sample.as_dict() for sample in self.samples],
            "resident_bytes": self.resident_bytes,
        }


@dataclass(frozen=True)
class Ratio:
    """How many times faster we were than a peer on one workload, over rounds taken in turn."""

    peer: str
    weights_dtype: str
    workload: Workload
    state: str
    speedup: Summary

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "peer": self.peer,
            "weights_dtype": self.weights_dtype,
            "workload": self.workload.label,
            "core_state": self.state,
            "speedup": self.speedup.as_dict(),
        }


@dataclass
class Report:
    """Everything a run found out.

    `max_lost`: share of the cores that others could take before a sample was refused. `limits`: each measurement of
    the machine with the core state it was made in.
    """

    command: list[str]
    started: str
    machine: dict[str, Any]
    versions: dict[str, str]
    model: dict[str, Any]
    threads: int
    max_lost: float
    limits: list[dict[str, Any]] = field(default_factory=list)
    engines: list[dict[str, Any]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "started": self.started,
            "machine": self.machine,
            "versions": self.versions,
            "model": self.model,
            "threads": self.threads,
            "max_lost": self.max_lost,
            "limits": self.limits,
            "engines": self.engines,
            "results": [result.as_dict() for result in self.results],
            "ratios": [ratio.as_dict() for ratio in self.ratios],
            "samples_clean": sum(count_clean(result.samples) for result in self.results),
            "samples_discarded": sum(len(r.samples) - count_clean(r.samples) for r in self.results),
        }


def result_row(result: Result) -> list[str]:
    """Cells of one line of the table of results."""
    cells = [result.workload.label, result.weights_dtype, result.engine]
    rate = result.tokens_per_second
    if result.seconds and rate and result.floor_fraction is not None:
        cells += [
            format_seconds(result.seconds.median),
            f"{rate.median:.1f}",
            f"{rate.low:.1f} to {rate.high:.1f}",
            f"{result.floor_fraction:.0%} of {result.floor.bound}",
            result.state or "",
        ]
    else:
        shown = f"({format_seconds(result.disturbed)})" if result.disturbed else ""
        cells += [shown, "", "", "", "no clean sample"]
    clean = count_clean(result.samples)
    return [*cells, f"{clean} of {len(result.samples)}"]


RESULT_COLUMNS = ["workload", "weights", "engine", "time", "tokens/s", "range", "floor", "cores", "clean samples"]
RATIO_COLUMNS = ["workload", "weights", "against", "speed-up", "range", "rounds", "cores"]


def ratio_row(ratio: Ratio) -> list[str]:
    """Cells of one line of the table of ratios."""
    value = ratio.speedup
    return [
        ratio.workload.label,
        ratio.weights_dtype,
        ratio.peer,
        f"{value.median:.2f}x",
        f"{value.low:.2f} to {value.high:.2f}",
        str(value.count),
        ratio.state,
    ]


def limit_lines(limits: dict[str, Any]) -> list[str]:
    """The machine's limits, in words."""
    giga = 1e9
    lines = [
        (
            f"reads {limits['read_one'] / giga:.1f} GB/s on one thread, {limits['read_all'] / giga:.1f} on "
            f"{limits['threads']} (over {limits['read_bytes'] / giga:.2f} GB)"
        ),
        (
            f"f32 multiply-add {limits['fma_f32_one'] / giga:.0f} GFLOP/s on one thread, "
            f"{limits['fma_f32'] / giga:.0f} on {limits['threads']}"
        ),
    ]
    units = {
        "dot_bf16": ("bf16 dot", "GFLOP/s"),
        "dot_int8": ("int8 dot", "GOP/s"),
        "amx_bf16": ("AMX bf16", "GFLOP/s"),
        "amx_int8": ("AMX int8", "GOP/s"),
    }
    dots = [f"{name} {limits[key] / giga:.0f} {unit}" for key, (name, unit) in units.items() if limits[key]]
    return [*lines, *([f"on {limits['threads']} threads: {', '.join(dots)}"] if dots else [])]


def format_seconds(seconds: float) -> str:
    """Three or four digits in s or ms."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
