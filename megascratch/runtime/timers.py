"""Times a rank's own work in a step, without the time in which it is blocked in communication.

In a synchronous run every rank takes the same time for a step, so a slow rank shows only in its own time. A wait for
other ranks blocks the process on a CPU and is timed with a clock; on CUDA it blocks the stream and is timed with two
events. Nothing is measured unless `CommTimer.looking` is set.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

PHASES = ("data", "forward and backward", "update")
"""The phases of a training step."""


class CommTimer:
    """The time that one rank waits for others; all of its axes and links share one timer."""

    def __init__(self, device: torch.device):
        self.device = device
        self.looking = False  # whether waits are measured
        self.seconds = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def blocked(self) -> AbstractContextManager:
        """A context manager to put around each wait for other ranks."""
        return self._timed() if self.looking else nullcontext()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        if self.device.type != "cuda":
            start = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - start
            return
        before = torch.cuda.Event(enable_timing=True)
        after = torch.cuda.Event(enable_timing=True)
        before.record()
        yield
        after.record()
        self.events.append((before, after))

    def take(self) -> float:
        """Seconds spent waiting since the last call. On CUDA this waits until the device has finished all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            milliseconds = sum(before.elapsed_time(after) for before, after in self.events)
            self.seconds += milliseconds / 1000
            self.events.clear()
        seconds = self.seconds
        self.seconds = 0.0
        return seconds


def blocked(waits: CommTimer | None) -> AbstractContextManager:
    """Like `CommTimer.blocked`; without a timer nothing is measured."""
    return nullcontext() if waits is None else waits.blocked()


class StepTimer:
    """Own seconds of each phase of one step. Without `start`, a lap costs nothing."""

    def __init__(self, waits: CommTimer | None = None):
        self.waits = waits
        self.own = dict.fromkeys(PHASES, 0.0)
        self.waited = 0.0  # for other ranks, in all phases
        self.last = 0.0

    def start(self) -> None:
        """Begins to measure a step."""
        if self.waits is not None:
            self.waits.looking = True
            self.waits.take()
        self.own = dict.fromkeys(PHASES, 0.0)
        self.waited = 0.0
        self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Ends a phase."""
        if self.waits is None or not self.waits.looking:
            return
        waited = self.waits.take()
        now = time.perf_counter()
        self.own[phase] += max(now - self.last - waited, 0.0)
        self.waited += waited
        self.last = now

    def shares(self) -> dict[str, float]:
        """The share of the step in each phase, and in `communication` that no computation hides; {} if it was not
        measured."""
        parts = {phase.replace(" ", "_"): seconds for phase, seconds in self.own.items()}
        parts["communication"] = self.waited
        whole = sum(parts.values())
        return {f"{name}_share": seconds / whole for name, seconds in parts.items() if whole}

    def stop(self) -> list[float]:
        """Ends the measurement. Returns: own seconds of each phase, in the order of PHASES."""
        if self.waits is not None:
            self.waits.looking = False
        return list(self.own.values())
