"""The parts of a step on this rank, each with the time that was this rank's own: waiting for others is taken off.

In a synchronous run every rank takes the same time for a step; who makes the others wait shows only so.
"""

import time

from megascratch.runtime.comm_timer import CommTimer

PHASES = ("data", "forward and backward", "update")


class StepTimer:
    """Laps of one step; without `start` a lap costs nothing."""

    def __init__(self, waits: CommTimer | None = None):
        self.waits, self.own, self.last = waits, dict.fromkeys(PHASES, 0.0), 0.0

    def start(self) -> None:
        """The step begins, and is looked at."""
        if self.waits is not None:
            self.waits.looking = True
            self.waits.take()
        self.own, self.last = dict.fromkeys(PHASES, 0.0), time.perf_counter()

    def lap(self, phase: str) -> None:
        """A phase ends here."""
        if self.waits is None or not self.waits.looking:
            return
        waited = self.waits.take()
        now = time.perf_counter()
        self.own[phase] += max(now - self.last - waited, 0.0)
        self.last = now

    def stop(self) -> list[float]:
        """Own seconds by phase, in the order of PHASES."""
        if self.waits is not None:
            self.waits.looking = False
        return list(self.own.values())
