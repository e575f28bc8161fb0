"""The report of a run: results with floors and ratios, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from echoc.bench.floors import Floor, ModelShape, floor_of, lightest_kv
from echoc.bench.probes import Limits
from echoc.bench.sampling import (
    Sample,
    clean_seconds,
    clean_states,
    count_clean,
    discard_counts,
    least_disturbed,
    state_ratios,
)
from echoc.bench.states import CORE_STATES
from echoc.bench.stats import Summary, summarise
from echoc.bench.workloads import Workload

SCHEMA = "echoc-bench/3"
BESIDE = ", a busy process beside"


def format_names(weights_dtype: str, kv_dtype: str | None) -> str:
    """Formats of weights, and of keys and values where they were asked for."""
    return weights_dtype + (f", KV {kv_dtype}" if kv_dtype else "")


class Row(NamedTuple):
    """What engines are compared in: workload, formats of weights and of keys and values (None: each engine's own), and
    whether engines had ordinary priority, so as to share cores with a busy process of ours."""

    workload: Workload
    weights_dtype: str
    kv_dtype: str | None = None
    ordinary: bool = False

    @property
    def formats(self) -> str:
        """Weights' format, and the one of keys and values where it was asked for."""
        return format_names(self.weights_dtype, self.kv_dtype)


@dataclass
class Result:
    """One engine in one row: its samples, the state of the cores named in each.

    `beside`: busy processes of ours that ran meanwhile.
    """

    engine: str
    row: Row
    samples: list[Sample]
    resident_bytes: int = 0
    beside: int = 0

    @property
    def label(self) -> str:
        """The workload, and what ran beside it."""
        return self.row.workload.label + BESIDE * bool(self.beside)

    @property
    def states(self) -> list[str]:
        """The states that clean samples were taken in, 'free' first."""
        return clean_states(self.samples)

    def seconds(self, state: str) -> Summary | None:
        """Of the clean samples of one state."""
        clean = clean_seconds(self.samples, state)
        return summarise(clean) if clean else None

    def tokens_per_second(self, state: str) -> Summary | None:
        """Of the clean samples of one state."""
        seconds = self.seconds(state)
        return seconds.map_inverse(self.row.workload.tokens) if seconds else None

    def as_dict(self, floors: Mapping[str, Floor]) -> dict[str, Any]:
        """JSON form; `floors` by state."""
        return {
            "engine": self.engine,
            **row_dict(self.row),
            "busy_beside": self.beside,
            "states": {state: self._in_state(state, floors.get(state)) for state in self.states},
            "disturbed_seconds": least_disturbed(self.samples),
            "clean": count_clean(self.samples),
            "discarded": discard_counts(self.samples),
            "samples": [sample.as_dict() for sample in self.samples],
            "resident_bytes": self.resident_bytes,
        }

    def _in_state(self, state: str, floor: Floor | None) -> dict[str, Any]:
        seconds = self.seconds(state)
        assert seconds is not None
        return {
            "seconds": seconds.as_dict(),
            "tokens_per_second": seconds.map_inverse(self.row.workload.tokens).as_dict(),
            "floor": floor.as_dict() if floor else None,
            "floor_fraction": floor.seconds / seconds.median if floor else None,
        }


@dataclass(frozen=True)
class Ratio:
    """How many times faster we were than a peer in one row, over samples of one state of the cores."""

    peer: str
    row: Row
    state: str
    speedup: Summary

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "peer": self.peer,
            **row_dict(self.row),
            "core_state": self.state,
            "speedup": self.speedup.as_dict(),
        }


@dataclass(frozen=True)
class Shared:
    """An engine's speed beside a busy process over its speed alone, over samples of one state of the cores."""

    engine: str
    row: Row
    state: str
    fraction: Summary

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "engine": self.engine,
            **row_dict(self.row),
            "core_state": self.state,
            "fraction": self.fraction.as_dict(),
        }


def row_dict(row: Row) -> dict[str, Any]:
    """A row in the JSON form."""
    return {
        "workload": row.workload.as_dict() | {"label": row.workload.label},
        "weights_dtype": row.weights_dtype,
        "kv_dtype": row.kv_dtype,
        "ordinary_priority": row.ordinary,
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
            "serving": self.serving.as_dict(),
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
    starts: list[Start] = field(default_factory=list)
    unable: list[dict[str, str]] = field(default_factory=list)

    def note_unable(self, engine: str, what: str, reason: str) -> None:
        """Says once why an engine is missing from what was timed."""
        entry = {"engine": engine, "what": what, "reason": reason}
        if entry not in self.unable:
            self.unable.append(entry)

    def find(self, engine: str, row: Row, beside: int = 0) -> Result | None:
        """The result of an engine in a row, where there is one."""
        wanted = (engine, row, beside)
        return next((result for result in self.results if (result.engine, result.row, result.beside) == wanted), None)

    def ratios(self) -> list[Ratio]:
        """Ours against each peer, in every state of the cores that both have clean samples of."""
        return [
            Ratio(peer.engine, own.row, state, summarise(values))
            for own in self.results
            if own.engine == "echoc" and not own.beside
            for peer in self.results
            if peer.row == own.row and not peer.beside and peer is not own
            for state in own.states
            if (values := state_ratios(own.samples, peer.samples, state))
        ]

    def shared(self) -> list[Shared]:
        """Each engine's speed beside a busy process over its speed alone."""
        return [
            Shared(beside.engine, beside.row, state, summarise(values))
            for beside in self.results
            if beside.beside and (alone := self.find(beside.engine, beside.row)) is not None
            for state in beside.states
            if (values := state_ratios(beside.samples, alone.samples, state))
        ]

    def floor(self, result: Result, state: str) -> Floor | None:
        """The floor of a result by the best limits seen in a state of the cores, of the same format where there are
        any; None where no limits are known in that state and reading binds."""
        known = [limits for limits in self.limits if limits["core_state"] == state]
        same = [limits for limits in known if limits["weights_dtype"] == result.row.weights_dtype]
        measured = same or known or self.limits
        if not measured:
            return None
        shape = ModelShape(**self.model["shape"]).with_kv(result.row.kv_dtype or lightest_kv(result.row.weights_dtype))
        best = best_limits([limits_of(limits) for limits in measured])
        floor = floor_of(result.row.workload, shape, result.row.weights_dtype, best)
        return floor if known or floor.bound != "read" else None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        floors = [{state: self.floor(result, state) for state in result.states} for result in self.results]
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
            "results": [
                result.as_dict({state: floor for state, floor in of.items() if floor})
                for result, of in zip(self.results, floors, strict=True)
            ],
            "ratios": [ratio.as_dict() for ratio in self.ratios()],
            "shared_core": [shared.as_dict() for shared in self.shared()],
            "starts": [start.as_dict() for start in self.starts],
            "unable": self.unable,
            "core_states": CORE_STATES,
            "samples_clean": sum(count_clean(result.samples) for result in self.results),
            "samples_discarded": sum(len(r.samples) - count_clean(r.samples) for r in self.results),
        }


def limits_of(entry: Mapping[str, Any]) -> Limits:
    """The rates of an entry of `Report.limits`."""
    return Limits(**{part.name: entry[part.name] for part in fields(Limits)})


def best_limits(measured: Sequence[Limits]) -> Limits:
    """The highest of each rate: a limit is what the machine can do, and disturbance only lowers a reading."""
    first = measured[0]
    rates = {
        name: max(getattr(limits, name) for limits in measured)
        for name in first.as_dict()
        if name not in ("threads", "read_bytes")
    }
    return replace(first, **rates)
