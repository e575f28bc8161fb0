"""Waiting for free cores before samples, as long as a run may wait in all."""

from __future__ import annotations

import time
from collections.abc import Callable

from echoc.bench.probes import Probes
from echoc.bench.sampling import SamplingPlan
from echoc.bench.states import CoreState


class Cores:
    """The probes, and the time that is left to wait for free cores."""

    def __init__(self, probes: Probes, plan: SamplingPlan, say: Callable[[str], None]) -> None:
        self.probes, self.say = probes, say
        self.left = plan.wait_total if plan.wait_seconds > 0 else 0.0

    def ready(self, patience: float, wait: float) -> CoreState:
        """Waits up to `patience` seconds while others have the cores, up to `wait` while they are not free."""

        begun = time.monotonic()

        def tell(state: CoreState) -> None:
            left = max(0.0, self.left - (time.monotonic() - begun))
            seen = f"{state.state}, reads {state.read / 1e9:.0f} GB/s"
            self.say(f"waiting for free cores: {seen}, {left:.0f} s of waiting left")

        state = self.probes.wait_until_free(patience, min(wait, self.left), tell)
        if wait > 0:
            self.left = max(0.0, self.left - (time.monotonic() - begun))
        return state

    def wanted(self) -> str | None:
        """The state that samples are to be taken in while there is time to wait for it."""
        return "free" if self.left > 0 else None
