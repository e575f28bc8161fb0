"""Statistics of timings: medians with their range, and ratios of samples taken in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from echoc.errors import EchoError


@dataclass(frozen=True)
class Summary:
    """Median, least and greatest of some values, their number, and the relative spread (max - min) / median."""

    median: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        """(high - low) / median; 0 for a median of 0."""
        return (self.high - self.low) / self.median if self.median else 0.0

    def as_dict(self) -> dict[str, float | int]:
        """Plain numbers for the report."""
        return {"median": self.median, "min": self.low, "max": self.high, "spread": self.spread, "count": self.count}

    def map_inverse(self, numerator: float) -> Summary:
        """The summary of numerator / value: order turns, so low and high change places."""
        return Summary(numerator / self.median, numerator / self.high, numerator / self.low, self.count)


def summarise(values: Sequence[float]) -> Summary:
    """Summary of at least one value."""
    if not values:
        raise EchoError("no samples to summarise: wanted at least one")
    return Summary(statistics.median(values), min(values), max(values), len(values))


def paired_ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """theirs / ours, round by round, of seconds measured in turn: above 1 where ours is faster.

    Entry i of each sequence is round i; None marks a discarded sample, whose round gives no ratio. Pairing cancels
    what changes slowly on the machine (clocks, neighbours), which a ratio of medians does not.
    """
    return [b / a for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
