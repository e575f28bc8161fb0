"""Reads traces, line by line, and believes none of it: every line is checked against the schema of docs/traces.md."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from .trace import REASONS, SCHEMA, End, Fired, Frame, Header, Membrane, Total, TraceError

LONGEST = 256 << 20
"""Characters of the longest line that is read."""


class Trace:
    """A trace being read. `header` is there at once; iterating gives the configurations, one line at a time.

    `end` is None until the last configuration was given, and stays None for the trace of an interrupted run. From a
    path it can be iterated any number of times; from an open file once.
    """

    def __init__(self, source: str | os.PathLike[str] | IO[str]) -> None:
        self._path = Path(source) if isinstance(source, str | os.PathLike) else None
        self._file: IO[str] | None = None if self._path else source  # type: ignore[assignment]
        self.name = str(source if self._path else getattr(source, "name", "trace"))
        self.end: End | None = None
        lines = self._lines()
        first = next(lines, None)
        if first is None:
            raise TraceError(f"{self.name}:1: the file is empty; wanted a trace, whose first line is its header")
        self.header = _header(*first)
        self._rest = lines
        if self._path:
            lines.close()

    def __iter__(self) -> Iterator[Frame]:
        lines = self._rest
        if self._path:
            lines = self._lines()
            next(lines, None)
        self.end = None
        last = -1
        for at, line in lines:
            if self.end is not None:
                at.fail("a line after the end", "nothing")
            if "halted" in line:
                self.end = _end(at, line)
                continue
            frame = _frame(at, line, len(self.header.rules))
            if frame.step <= last:
                at.fail(f"step {frame.step} after step {last}", "steps that grow")
            last = frame.step
            yield frame

    def _lines(self) -> Generator[tuple[_At, dict[str, Any]], None, None]:
        try:
            file = self._path.open(encoding="utf-8") if self._path else self._file
        except OSError as error:
            raise TraceError(f"{self.name}: the trace cannot be read: {error.strerror}") from error
        assert file is not None
        try:
            number = 0
            while True:
                number += 1
                at = _At(self.name, number)
                try:
                    text = file.readline(LONGEST + 1)
                except UnicodeDecodeError as error:
                    at.fail(f"a byte that is no UTF-8 ({error.reason})", "UTF-8 text")
                except OSError as error:
                    raise TraceError(f"{self.name}: the trace cannot be read: {error.strerror}") from error
                if not text:
                    return
                if len(text) > LONGEST:
                    at.fail(f"a line of more than {LONGEST} characters", "summary lines for such configurations")
                line = at.parse(text)
                if line is None:
                    return
                yield at, line
        finally:
            if self._path:
                file.close()


def read_trace(source: str | os.PathLike[str] | IO[str]) -> Trace:
    """Opens a trace and reads its header. Raises TraceError with the line and what was wanted there."""
    return Trace(source)


class _At:
    """A line of the file; its checks say what was wanted."""

    def __init__(self, file: str, number: int) -> None:
        self.file, self.number = file, number

    def fail(self, found: str, wanted: str) -> NoReturn:
        raise TraceError(f"{self.file}:{self.number}: found {found}; wanted {wanted}")

    def parse(self, text: str) -> dict[str, Any] | None:
        """The object of a line; None for a last line that an interrupted run left half written."""
        try:
            line = json.loads(text, parse_constant=lambda name: self.fail(name, "numbers that JSON knows"))
        except (ValueError, RecursionError) as error:
            if not text.endswith("\n") and self.number > 1:
                return None
            what = error.msg if isinstance(error, json.JSONDecodeError) else "a value beyond any limit"
            self.fail(f"no JSON ({what})", "one JSON object a line")
        return self.object(line, "the line")

    def object(self, value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(f"{_kind(value)} as {what}", "an object")
        return value

    def array(self, value: Any, what: str) -> list[Any]:
        if not isinstance(value, list):
            self.fail(f"{_kind(value)} as {what}", "an array")
        return value

    def text(self, value: Any, what: str) -> str:
        if not isinstance(value, str):
            self.fail(f"{_kind(value)} as {what}", "a string")
        return value

    def texts(self, value: Any, what: str) -> tuple[str, ...]:
        return tuple(self.text(v, f"an entry of {what}") for v in self.array(value, what))

    def integer(self, value: Any, what: str, least: int | None = None) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
            self.fail(f"{_kind(value)} as {what}", "an integer" + ("" if least is None else f" of at least {least}"))
        return value

    def real(self, value: Any, what: str) -> float:
        if value in ("NaN", "Infinity", "-Infinity"):
            return float(value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.fail(f"{_kind(value)} as {what}", 'a number, "NaN", "Infinity" or "-Infinity"')
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf

    def counts(self, value: Any, what: str) -> dict[str, int]:
        return {k: self.integer(v, f"the count of {k[:40]!r}", 1) for k, v in self.object(value, what).items()}

    def get(self, line: dict[str, Any], key: str) -> Any:
        if key not in line:
            self.fail(f"no {key!r} among {', '.join(repr(k[:20]) for k in list(line)[:8]) or 'no keys'}", f"{key!r}")
        return line[key]


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if (isinstance(value, int) and abs(value) < 10**20) or isinstance(value, float):
        return str(value)
    names = {str: "a string", int: "a large number", list: "an array", dict: "an object"}
    return names.get(type(value), "something else")


def _header(at: _At, line: dict[str, Any]) -> Header:
    schema = at.get(line, "schema")
    if schema != SCHEMA:
        at.fail(f"the schema {str(schema)[:40]!r}", f"{SCHEMA!r}")
    return Header(
        at.text(at.get(line, "name"), "name"),
        at.text(at.get(line, "model"), "model"),
        at.integer(line.get("seed", 0), "seed"),
        at.integer(line.get("run", 0), "run"),
        at.texts(line.get("labels", []), "labels"),
        at.texts(line.get("objects", []), "objects"),
        at.texts(line.get("rules", []), "rules"),
        at.text(line.get("source", ""), "source"),
    )


def _end(at: _At, line: dict[str, Any]) -> End:
    halted, reason = line["halted"], at.get(line, "reason")
    if not isinstance(halted, bool):
        at.fail(f"{_kind(halted)} as halted", "true or false")
    if reason not in REASONS:
        at.fail(f"the reason {str(reason)[:40]!r}", f"one of {', '.join(REASONS)}")
    step = at.integer(at.get(line, "step"), "step", 0)
    return End(halted, step, reason, at.text(line.get("message", ""), "message"))


def _frame(at: _At, line: dict[str, Any], num_rules: int) -> Frame:
    step = at.integer(at.get(line, "step"), "step", 0)
    time = at.real(line["time"], "time") if line.get("time") is not None else None
    if "values" in line:
        values = at.object(line["values"], "values")
        return Frame(step, time=time, values={k: at.real(v, f"the value of {k[:40]!r}") for k, v in values.items()})
    environment = at.counts(line.get("environment", {}), "environment")
    if "counts" in line:
        counts = {k: _total(at, v) for k, v in at.object(line["counts"], "counts").items()}
        return Frame(step, environment=environment, time=time, counts=counts)
    if "membranes" not in line:
        at.fail("a line of none of these", '"membranes", "counts", "values" or "halted"')
    membranes = tuple(_membrane(at, m) for m in at.array(line["membranes"], "membranes"))
    ids = _forest(at, membranes)
    links = tuple(_link(at, pair, ids) for pair in at.array(line.get("links", []), "links"))
    applied = tuple(_fired(at, f, num_rules) for f in at.array(line.get("applied", []), "applied"))
    return Frame(step, membranes, environment, links, applied, time)


def _total(at: _At, value: Any) -> Total:
    total = at.object(value, "the totals of a label")
    number = at.integer(at.get(total, "membranes"), "membranes", 0)
    return Total(number, at.counts(total.get("objects", {}), "objects"))


def _membrane(at: _At, value: Any) -> Membrane:
    m = at.object(value, "a membrane")
    parent = m.get("parent")
    return Membrane(
        at.integer(at.get(m, "id"), "id"),
        at.text(at.get(m, "label"), "label"),
        at.integer(m.get("charge", 0), "charge"),
        None if parent is None else at.integer(parent, "parent"),
        at.counts(m.get("objects", {}), "objects"),
        at.text(m.get("name", ""), "name"),
        at.integer(m.get("closed", 0), "closed", 0),
    )


def _forest(at: _At, membranes: tuple[Membrane, ...]) -> frozenset[int]:
    """The ids, all different; every parent is there and nothing is inside itself."""
    parents = {m.id: m.parent for m in membranes}
    if len(parents) != len(membranes):
        at.fail("two membranes of one id", "different ids")
    safe: set[int | None] = {None}
    for m in membranes:
        path: list[int] = []
        on_path: set[int] = set()
        here: int | None = m.id
        while here not in safe:
            assert here is not None
            if here in on_path:
                at.fail(f"the membrane {here} inside itself", "a forest")
            path.append(here)
            on_path.add(here)
            up = parents[here]
            if up is not None and up not in parents:
                at.fail(f"the parent {up} of membrane {here}", "the id of a membrane of this configuration")
            here = up
        safe.update(path)
    return frozenset(parents)


def _link(at: _At, value: Any, ids: frozenset[int]) -> tuple[int, int]:
    pair = [at.integer(v, "an end of a link") for v in at.array(value, "a link")]
    if len(pair) != 2 or not ids.issuperset(pair):
        at.fail(f"the link {pair[:4]}", "[from, to], both ids of this configuration")
    return pair[0], pair[1]


def _fired(at: _At, value: Any, num_rules: int) -> Fired:
    f = at.object(value, "an application")
    rule = at.integer(at.get(f, "rule"), "rule", 0)
    if rule >= num_rules:
        at.fail(f"the rule {_kind(rule)}", f"one of the {num_rules} rules of the header")
    members = at.array(f.get("membranes", []), "membranes")
    return Fired(rule, tuple(at.integer(v, "a membrane") for v in members), at.integer(f.get("times", 1), "times", 1))
