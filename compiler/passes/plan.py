"""The memory plan and the launch list: buffers by liveness in one arena, barriers only where threads depend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from echoc.compiler.ir.types import Dim, dim_value

ALIGN = 64


@dataclass
class Access:
    """One pointer of one launch: what it points to (a key shared by all who mean the same memory) and its use."""

    key: object
    place: tuple[str, int] | None  # ("weight" | "port" | "state", index), or None for a buffer of the arena
    size: Dim  # bytes, for buffers
    written: bool


@dataclass
class Launch:
    """One kernel call. `alike`: every thread makes all of it, the buffers that it writes are each thread's own."""

    kernel: str
    accesses: list[Access]
    barrier: bool = False
    alike: bool = False


@dataclass
class Plan:
    """Offsets of all buffers of a variant, and the bytes of the arena and of what each thread has of its own."""

    offsets: dict[object, int]
    arena_bytes: int
    own: set[object]
    own_bytes: int


def set_barriers(launches: list[Launch]) -> None:
    """A barrier stands before a launch that touches what another launch since the last barrier writes, or writes what
    one reads. A thread does not wait for what is its own."""
    own = _own(launches)
    written: set[object] = set()
    read: set[object] = set()
    for launch in launches:
        reads = {_identity(a) for a in launch.accesses if not a.written and not _constant(a) and a.key not in own}
        writes = {_identity(a) for a in launch.accesses if a.written and a.key not in own}
        if not written.isdisjoint(reads | writes) or not read.isdisjoint(writes):
            launch.barrier = True
            written, read = set(), set()
        written |= writes
        read |= reads


def place_buffers(launches: list[Launch], symbols: Mapping[str, int], *, in_stages: bool = False) -> Plan:
    """First fit by order of first use, each buffer alive from its first to its last launch; `in_stages`: from the
    barrier before its first to the one after its last, as launches between them run side by side."""
    own = _own(launches)
    first: dict[object, int] = {}
    last: dict[object, int] = {}
    size: dict[object, int] = {}
    stage = 0
    for at, launch in enumerate(launches):
        stage += launch.barrier
        for access in launch.accesses:
            if access.place is None:
                first.setdefault(access.key, stage if in_stages else at)
                last[access.key] = stage if in_stages else at
                size[access.key] = max(-(-dim_value(access.size, symbols) // ALIGN) * ALIGN, ALIGN)
    offsets: dict[object, int] = {}
    totals = {True: 0, False: 0}
    for key in sorted(first, key=lambda k: (first[k], -size[k])):
        taken = sorted(
            (offsets[k], offsets[k] + size[k])
            for k in offsets
            if (k in own) == (key in own) and last[k] >= first[key] and first[k] <= last[key]
        )
        at = 0
        for low, high in taken:
            if low - at >= size[key]:
                break
            at = max(at, high)
        offsets[key] = at
        totals[key in own] = max(totals[key in own], at + size[key])
    return Plan(offsets, totals[False], own, totals[True])


def _own(launches: list[Launch]) -> set[object]:
    return {a.key for launch in launches if launch.alike for a in launch.accesses if a.written}


def _constant(access: Access) -> bool:
    return access.place is not None and access.place[0] == "weight"


def _identity(access: Access) -> object:
    return access.key if access.place is None else access.place
