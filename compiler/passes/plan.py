"""The memory plan and the launch list: buffers by liveness in one arena, barriers only where threads depend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    """One kernel call."""

    kernel: str
    accesses: list[Access]
    barrier: bool = False
    offsets: dict[int, int] = field(default_factory=dict)


@dataclass
class Plan:
    """Offsets of all buffers of a variant, and the arena's size in bytes."""

    offsets: dict[object, int]
    arena_bytes: int


def place_buffers(launches: list[Launch], symbols: Mapping[str, int]) -> Plan:
    """First fit by order of first use, each buffer alive from its first to its last launch."""
    first: dict[object, int] = {}
    last: dict[object, int] = {}
    size: dict[object, int] = {}
    for at, launch in enumerate(launches):
        for access in launch.accesses:
            if access.place is None:
                first.setdefault(access.key, at)
                last[access.key] = at
                size[access.key] = max(-(-dim_value(access.size, symbols) // ALIGN) * ALIGN, ALIGN)
    offsets: dict[object, int] = {}
    total = 0
    for key in sorted(first, key=lambda k: (first[k], -size[k])):
        taken = sorted(
            (offsets[k], offsets[k] + size[k]) for k in offsets if last[k] >= first[key] and first[k] <= last[key]
        )
        at = 0
        for low, high in taken:
            if low - at >= size[key]:
                break
            at = max(at, high)
        offsets[key] = at
        total = max(total, at + size[key])
    return Plan(offsets, total)


def set_barriers(launches: list[Launch], plan: Plan, symbols: Mapping[str, int]) -> None:
    """A barrier stands before a launch that touches memory which another launch since the last barrier writes.

    Ranges of the arena are compared, so that a buffer that takes over another's place waits for its readers too.
    """
    written: list[tuple[object, int, int]] = []
    read: list[tuple[object, int, int]] = []
    for launch in launches:
        spans = [(_span(a, plan, symbols), a.written) for a in launch.accesses if not _constant(a)]
        clash = any(
            _overlap(span, other) for span, writes in spans for other in (written + read if writes else written)
        )
        if clash:
            launch.barrier = True
            written, read = [], []
        for span, writes in spans:
            (written if writes else read).append(span)


def _constant(access: Access) -> bool:
    return access.place is not None and access.place[0] == "weight"


def _span(access: Access, plan: Plan, symbols: Mapping[str, int]) -> tuple[object, int, int]:
    if access.place is not None:
        return (access.place, 0, 1)
    low = plan.offsets[access.key]
    return ("arena", low, low + max(dim_value(access.size, symbols), 1))


def _overlap(a: tuple[object, int, int], c: tuple[object, int, int]) -> bool:
    return a[0] == c[0] and a[1] < c[2] and c[1] < a[2]
