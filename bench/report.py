"""The report of a run: results with floors and ratios, as JSON and as tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from echoc.bench.floors import Floor
from echoc.bench.probes import CORE_STATES
from echoc.bench.sampling import Sample, count_clean, discard_counts
from echoc.bench.stats import Summary
from echoc.bench.workloads import Workload

SCHEMA = "echoc-bench/2"
BESIDE = ", a busy process beside"


def format_names(weights_dtype: str, kv_dtype: str | None) -> str:
    """Formats of weights, and of keys and values where they were asked for."""
    return weights_dtype + (f", KV {kv_dtype}" if kv_dtype else "")


@dataclass(frozen=True)
class Result:
    """One engine on one workload. `seconds` is None where no sample was clean; then `disturbed` holds their median.

    `kv_dtype`: of keys and values where one was asked for. `beside`: busy processes of ours that ran meanwhile.
    """

    engine: str
    weights_dtype: str
    workload: Workload
    state: str | None
    seconds: Summary | None
    disturbed: float | None
    floor: Floor
    samples: list[Sample]
    resident_bytes: int
    kv_dtype: str | None = None
    beside: int = 0

    @property
    def formats(self) -> str:
        """Weights' format, and the one of keys and values where it was asked for."""
        return format_names(self.weights_dtype, self.kv_dtype)

    @property
    def label(self) -> str:
        """The workload, and what ran beside it."""
        return self.workload.label + BESIDE * bool(self.beside)

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
            "kv_dtype": self.kv_dtype,
            "busy_beside": self.beside,
            "workload": {
                "kind": self.workload.kind,
                "context": self.workload.context,
                "num_tokens": self.workload.num_tokens,
                "sequences": self.workload.sequences,
                "requests": [list(pair) for pair in self.workload.requests],
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
    kv_dtype: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "peer": self.peer,
            "weights_dtype": self.weights_dtype,
            "kv_dtype": self.kv_dtype,
            "workload": self.workload.label,
            "core_state": self.state,
            "speedup": self.speedup.as_dict(),
        }


@dataclass(frozen=True)
class Shared:
    """An engine's speed beside a busy process over its speed alone, over rounds taken in turn."""

    engine: str
    weights_dtype: str
    workload: Workload
    fraction: Summary

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "engine": self.engine,
            "weights_dtype": self.weights_dtype,
            "workload": self.workload.label,
            "fraction": self.fraction.as_dict(),
        }


@dataclass(frozen=True)
class Start:
    """A fresh process of an engine: seconds to its first token, and its memory in bytes once it has served a batch.

    `resident`, `proportional`: of the process, from the kernel's smaps_rollup. `weights`: of the model's file or of the
    weights in an artifact. `keys_values`: of the tokens held.
    """

    engine: str
    weights_dtype: str
    seconds: Summary
    serving: Workload
    weights: int
    keys_values: int
    resident: int
    proportional: int

    @property
    def beyond(self) -> int:
        """Proportional memory beyond weights, keys and values."""
        return self.proportional - self.weights - self.keys_values

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "engine": self.engine,
            "weights_dtype": self.weights_dtype,
            "seconds_to_first_token": self.seconds.as_dict(),
            "serving": self.serving.label,
            "weight_bytes": self.weights,
            "kv_bytes": self.keys_values,
            "resident_bytes": self.resident,
            "proportional_bytes": self.proportional,
            "bytes_beyond": self.beyond,
        }


@dataclass
class Report:
    """Everything a run found out.

    `max_lost`: share of the cores that others could take before a sample was refused. `limits`: each measurement of
    the machine with the core state it was made in. `unable`: engines that a row lacks, with the reason.
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
    shared: list[Shared] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    unable: list[dict[str, str]] = field(default_factory=list)

    def note_unable(self, engine: str, what: str, reason: str) -> None:
        """Says once why an engine is missing from what was timed."""
        entry = {"engine": engine, "what": what, "reason": reason}
        if entry not in self.unable:
            self.unable.append(entry)

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
            "shared_core": [shared.as_dict() for shared in self.shared],
            "starts": [start.as_dict() for start in self.starts],
            "unable": self.unable,
            "core_states": CORE_STATES,
            "samples_clean": sum(count_clean(result.samples) for result in self.results),
            "samples_discarded": sum(len(r.samples) - count_clean(r.samples) for r in self.results),
        }
