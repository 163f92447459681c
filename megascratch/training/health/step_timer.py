"""Times the phases of a step on this rank, without the time in which it waits for other ranks.

In a synchronous run every rank takes the same time for a step, so a slow rank shows only in its own time.
"""

import time

from megascratch.runtime.comm_timer import CommTimer

PHASES = ("data", "forward and backward", "update")


class StepTimer:
    """Own seconds of each phase of one step. Without `start`, a lap costs nothing."""

    def __init__(self, waits: CommTimer | None = None):
        self.waits = waits
        self.own = dict.fromkeys(PHASES, 0.0)
        self.last = 0.0

    def start(self) -> None:
        """Begins to measure a step."""
        if self.waits is not None:
            self.waits.looking = True
            self.waits.take()
        self.own = dict.fromkeys(PHASES, 0.0)
        self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Ends a phase."""
        if self.waits is None or not self.waits.looking:
            return
        waited = self.waits.take()
        now = time.perf_counter()
        self.own[phase] += max(now - self.last - waited, 0.0)
        self.last = now

    def stop(self) -> list[float]:
        """Ends the measurement. Returns: own seconds of each phase, in the order of PHASES."""
        if self.waits is not None:
            self.waits.looking = False
        return list(self.own.values())
