"""Measured schedules: the one that was quickest for a kernel on a machine, kept in one file for later compilations.

    {"schema": 1, "machines": {MACHINE: {KERNEL: {"schedule": {"ahead": 1024}, "gain": 1.08}}}}

A schedule changes no result. A kernel is named by what decides its speed (`gemm i8 g32 x2 n3072 k1024`), so that one
model's measurements serve another with the same shapes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echoc.compiler.targets.cpu.build import cache_folder
from echoc.errors import CompileError

SCHEMA = 1
FIELDS = {"rows": 1 << 14, "panels": 16, "ahead": 1 << 20}  # of a schedule, with the highest value of each
Schedule = Mapping[str, int]
_CPU_FIELDS = ("model name", "cpu family", "model", "stepping")


def matmul_key(format_: str, group: int, interleave: int, n: int, k: int) -> str:
    """The name of a matmul: its weight's format and group, how many weights are interleaved, and their shape [n, k]."""
    return f"gemm {format_} g{group} x{interleave} n{n} k{k}"


def machine_key(level: str) -> str:
    """This machine's CPU, how many of it there are, and the level that code is compiled for."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() in _CPU_FIELDS:
                    found.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    cpu = ", ".join(found[f] for f in _CPU_FIELDS if f in found) or "unknown CPU"
    return f"{cpu}; {os.cpu_count() or 1} CPUs; {level}"


def database_path() -> Path:
    """$ECHOC_TUNING, else `tuning.json` in the cache folder."""
    named = os.environ.get("ECHOC_TUNING")
    return Path(named) if named else cache_folder().parent / "tuning.json"


def load(level: str) -> dict[str, dict[str, int]]:
    """The schedules measured on this machine for a CPU level, by kernel; none where nothing was measured.

    Raises: CompileError for a file that is not such a database.
    """
    machine = _read(database_path())["machines"].get(machine_key(level), {})
    return {kernel: entry["schedule"] for kernel, entry in machine.items()}


def save(level: str, measured: Mapping[str, Mapping[str, Any]]) -> Path:
    """Adds entries ({"schedule": ..., "gain": ...} by kernel) for this machine; those of the same kernels go.

    Raises: CompileError for a file that is not a database, OSError where it cannot be written.
    """
    path = database_path()
    whole = _read(path)
    whole["machines"].setdefault(machine_key(level), {}).update({k: dict(v) for k, v in measured.items()})
    _checked(whole, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            json.dump(whole, file, indent=1, sort_keys=True)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return path


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"schema": SCHEMA, "machines": {}}
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CompileError(f"the tuning database {path} cannot be read: {error}; remove it and tune again") from None
    return _checked(whole, path)


def _checked(whole: Any, path: Path) -> dict[str, Any]:
    wrong = _fault(whole)
    if wrong:
        raise CompileError(f"{path} is no tuning database: {wrong}; remove it and tune again")
    assert isinstance(whole, dict)
    return whole


def _fault(whole: Any) -> str:
    if not isinstance(whole, dict) or whole.get("schema") != SCHEMA:
        return f"wanted schema {SCHEMA}"
    machines = whole.get("machines")
    if not isinstance(machines, dict) or not all(isinstance(m, dict) for m in machines.values()):
        return "wanted machines with their kernels"
    for machine in machines.values():
        for kernel, entry in machine.items():
            schedule = entry.get("schedule") if isinstance(entry, dict) else None
            if not isinstance(schedule, dict) or not set(schedule) <= set(FIELDS):
                return f"the schedule of {kernel[:80]!r} is {str(schedule)[:80]}; wanted {', '.join(FIELDS)}"
            for name, value in schedule.items():
                if type(value) is not int or not 0 < value <= FIELDS[name]:
                    return f"{name} of {kernel[:80]!r} is {str(value)[:40]}; wanted 1 to {FIELDS[name]}"
    return ""
