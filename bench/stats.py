"""Statistics of timings: medians with their range."""

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
