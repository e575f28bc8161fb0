"""Reports of earlier runs, read back so that a run can go on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from echoc.bench.engines import PACKAGE_SOURCES
from echoc.bench.report import SCHEMA, Report, Result, Row, Start
from echoc.bench.sampling import Sample
from echoc.bench.stats import Summary
from echoc.bench.workloads import Workload
from echoc.errors import EchoError

SAME = ("machine", "versions", "threads")  # what two runs must have in common to be one
PASSING = ("load_average",)  # of the machine


def read_reports(path: Path) -> list[Report]:
    """The reports of a JSON file of the harness; none where there is no such file."""
    if not path.is_file():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema = document["schema"]
        if schema != SCHEMA:
            raise EchoError(f"{path} has schema {schema!r}, wanted {SCHEMA!r}: name another file, this one can't go on")
        return [_report(entry) for entry in document.get("reports", [document])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EchoError(f"{path} is no report of a run on a CPU ({error!r}): name another file") from error


def continued(fresh: Report, earlier: Sequence[Report], path: Path) -> Report:
    """The earlier report of the same model, to be gone on with; `fresh` where there is none.

    Refused where it was made on another machine or by other sources: one table is of one program.
    """
    found = next((report for report in earlier if report.model == fresh.model), None)
    if found is None:
        return fresh
    for name in SAME:
        was, now = _lasting(getattr(found, name)), _lasting(getattr(fresh, name))
        if was != now:
            raise EchoError(f"{path} can't go on: its {name} was {was}, now it is {now}; name another file")
    begun = datetime.fromisoformat(found.started).timestamp() + 1  # it is told in whole seconds
    changed = [file for file in own_sources() if file.stat().st_mtime > begun]
    if changed:
        raise EchoError(
            f"{path} can't go on: it was begun {found.started}, and {changed[0]} has changed since "
            f"(with {len(changed) - 1} other sources); name another file"
        )
    return found


def own_sources() -> list[Path]:
    """What is timed: the compiler, its kernels and templates, and the runtime with its native part."""
    rooms = [PACKAGE_SOURCES / room for room in ("compiler", "kernels", "templates", "runtime")]
    return [path for room in rooms for path in room.rglob("*") if path.is_file() and path.suffix != ".pyc"]


def _lasting(value: Any) -> Any:
    return {key: item for key, item in value.items() if key not in PASSING} if isinstance(value, dict) else value


def _report(entry: dict[str, Any]) -> Report:
    plain = ("command", "started", "machine", "versions", "model", "threads", "max_lost", "limits", "engines", "unable")
    return Report(
        **{name: entry[name] for name in plain},
        results=[_result(result) for result in entry["results"]],
        starts=[_start(start) for start in entry["starts"]],
    )


def _result(entry: dict[str, Any]) -> Result:
    return Result(
        engine=str(entry["engine"]),
        row=Row(_workload(entry["workload"]), entry["weights_dtype"], entry["kv_dtype"], entry["ordinary_priority"]),
        samples=[Sample(**sample) for sample in entry["samples"]],
        resident_bytes=int(entry["resident_bytes"]),
        beside=int(entry["busy_beside"]),
    )


def _start(entry: dict[str, Any]) -> Start:
    seconds = entry["seconds_to_first_token"]
    return Start(
        entry["engine"],
        entry["weights_dtype"],
        Summary(seconds["median"], seconds["min"], seconds["max"], seconds["count"]),
        _workload(entry["serving"]),
        entry["weight_bytes"],
        entry["kv_bytes"],
        entry["resident_bytes"],
        entry["proportional_bytes"],
    )


def _workload(entry: dict[str, Any]) -> Workload:
    requests = tuple((int(prompt), int(output)) for prompt, output in entry["requests"])
    return Workload(**{name: value for name, value in entry.items() if name != "label"} | {"requests": requests})
