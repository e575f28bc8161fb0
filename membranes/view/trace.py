"""The trace of a run: its data, its JSON lines, the writer. docs/traces.md is the schema; reading.py reads it back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from echoc.errors import EchoError

SCHEMA = "echoc.trace/1"
REASONS = ("no rule applies", "steps", "memory", "overflow", "interrupted")


class TraceError(EchoError):
    """A trace that cannot be written or read; the message says where and what was wanted."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a run is of. `rules` in printed notation; `Fired.rule` counts into them."""

    name: str
    model: str
    seed: int = 0
    run: int = 0
    labels: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Membrane:
    """A membrane or cell. `objects`: counts, at least 1. `closed`: steps for which a neuron stays closed."""

    id: int
    label: str
    charge: int = 0
    parent: int | None = None
    objects: Mapping[str, int] = field(default_factory=dict)
    name: str = ""
    closed: int = 0


@dataclass(frozen=True, slots=True)
class Fired:
    """A rule applied `times` times; `membranes` are ids in the configuration before, -1 for the environment."""

    rule: int
    membranes: tuple[int, ...] = ()
    times: int = 1


@dataclass(frozen=True, slots=True)
class Total:
    """All membranes of one label, summed."""

    membranes: int
    objects: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Frame:
    """One configuration and what led to it.

    One of three kinds: `membranes` (with `links` in a graph), `counts` by label where the configuration is too large
    to be listed, or `values` of the variables of a numerical P system or reservoir.
    """

    step: int
    membranes: tuple[Membrane, ...] = ()
    environment: Mapping[str, int] = field(default_factory=dict)
    links: tuple[tuple[int, int], ...] = ()
    applied: tuple[Fired, ...] = ()
    time: float | None = None
    counts: Mapping[str, Total] | None = None
    values: Mapping[str, float] | None = None

    @property
    def num_membranes(self) -> int:
        return len(self.membranes) if self.counts is None else sum(t.membranes for t in self.counts.values())

    @property
    def is_graph(self) -> bool:
        """Whether the membranes are nodes of a graph: linked, or several side by side with nothing around any."""
        return bool(self.links) or (len(self.membranes) > 1 and all(m.parent is None for m in self.membranes))

    def totals(self) -> dict[str, int]:
        """Counts of every object over all membranes; the environment is left out."""
        result: dict[str, int] = {}
        bags = (m.objects for m in self.membranes) if self.counts is None else (t.objects for t in self.counts.values())
        for bag in bags:
            for name, count in bag.items():
                result[name] = result.get(name, 0) + count
        return result


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended: `reason` is one of REASONS."""

    halted: bool
    step: int
    reason: str
    message: str = ""


def summary(frame: Frame) -> Frame:
    """The same configuration as totals by label."""
    numbers: dict[str, int] = {}
    objects: dict[str, dict[str, int]] = {}
    for m in frame.membranes:
        numbers[m.label] = numbers.get(m.label, 0) + 1
        bag = objects.setdefault(m.label, {})
        for name, count in m.objects.items():
            bag[name] = bag.get(name, 0) + count
    counts = {label: Total(n, objects[label]) for label, n in numbers.items()}
    return Frame(frame.step, environment=frame.environment, time=frame.time, counts=counts)


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinities: they go as text."""
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def frame_json(frame: Frame) -> dict[str, Any]:
    """The line of a configuration."""
    line: dict[str, Any] = {"step": frame.step}
    if frame.time is not None:
        line["time"] = _number(frame.time)
    if frame.values is not None:
        return line | {"values": {name: _number(value) for name, value in frame.values.items()}}
    if frame.environment:
        line["environment"] = dict(frame.environment)
    if frame.counts is not None:
        totals = {k: {"membranes": t.membranes, "objects": dict(t.objects)} for k, t in frame.counts.items()}
        return line | {"counts": totals}
    line["membranes"] = [_membrane_json(m) for m in frame.membranes]
    if frame.links:
        line["links"] = [list(link) for link in frame.links]
    if frame.applied:
        line["applied"] = [{"rule": f.rule, "membranes": list(f.membranes), "times": f.times} for f in frame.applied]
    return line


def _membrane_json(m: Membrane) -> dict[str, Any]:
    line: dict[str, Any] = {"id": m.id, "label": m.label, "charge": m.charge, "parent": m.parent}
    line["objects"] = dict(m.objects)
    if m.name:
        line["name"] = m.name
    if m.closed:
        line["closed"] = m.closed
    return line


class TraceWriter:
    """Writes a trace, line by line. A context manager:

        with TraceWriter("t.jsonl", Header("sat", "active")) as out:
            for frame in frames:
                out.write(frame)
            out.end(halted=True, reason="no rule applies")

    A path appears when the trace is complete: an interrupted run leaves nothing there. With `partial` the lines go to
    the path as they come, and what an interrupted run leaves can be read. A file that is handed in stays open.
    `largest`: configurations of more membranes are written as totals by label. Raises TraceError.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | IO[str],
        header: Header,
        *,
        partial: bool = False,
        largest: int = 100_000,
    ) -> None:
        self._path = Path(target) if isinstance(target, str | os.PathLike) else None
        self._partial, self._largest = partial, largest
        self._last: int | None = None
        self._ended = False
        if self._path is None:
            self._beside: Path | None = None
            self._file: IO[str] = target  # type: ignore[assignment]
        else:
            self._beside = self._path if partial else self._path.with_name(f".{self._path.name}.{os.getpid()}")
            try:
                self._file = self._beside.open("w", encoding="utf-8", newline="\n")
            except OSError as error:
                raise TraceError(f"{self._path}: the trace cannot be written: {error.strerror}") from error
        line = {"schema": SCHEMA} | {name: getattr(header, name) for name in Header.__slots__}
        try:
            self._line(line)
        except BaseException:
            self._close(keep=False)
            raise

    def write(self, frame: Frame) -> None:
        """The next configuration; steps must grow."""
        if self._ended:
            raise TraceError(f"step {frame.step} after the end of the trace")
        if self._last is not None and frame.step <= self._last:
            raise TraceError(f"step {frame.step} after step {self._last}: the steps of a trace grow")
        self._last = frame.step
        self._line(frame_json(summary(frame) if len(frame.membranes) > self._largest else frame))

    def write_all(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            self.write(frame)

    def end(self, *, halted: bool, reason: str, message: str = "") -> None:
        """The last line. `reason` is one of REASONS."""
        if reason not in REASONS:
            raise TraceError(f"the reason {reason!r} of an end; wanted one of {', '.join(REASONS)}")
        if self._ended:
            raise TraceError("a trace ends once")
        self._ended = True
        line: dict[str, Any] = {"halted": halted, "step": self._last or 0, "reason": reason}
        self._line(line | ({"message": message} if message else {}))

    def _line(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, ensure_ascii=True, separators=(",", ":"), allow_nan=False) + "\n")
            if self._partial:
                self._file.flush()
        except (OSError, ValueError, TypeError) as error:
            raise TraceError(f"{self._path or 'trace'}: a line cannot be written: {error}") from error

    def _close(self, keep: bool) -> None:
        if self._path is None or self._beside is None:
            return
        try:
            self._file.close()
            if keep and not self._partial:
                os.replace(self._beside, self._path)
        except OSError as error:
            keep = False
            raise TraceError(f"{self._path}: the trace cannot be written: {error.strerror}") from error
        finally:
            if not keep and not self._partial:
                with suppress(OSError):
                    self._beside.unlink(missing_ok=True)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        complete = kind is None and self._ended
        self._close(keep=complete)
        if kind is None and not self._ended:
            raise TraceError("the trace has no end: call `end` before it closes")
