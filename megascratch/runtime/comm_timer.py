"""Measures how long this rank is blocked in communication, waiting for other ranks; off unless `looking` is set.

On a CPU a wait blocks the process and is timed with a clock; on CUDA it blocks the stream and is timed with two events.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


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
            self.seconds += sum(before.elapsed_time(after) for before, after in self.events) / 1000
            self.events.clear()
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def blocked(waits: CommTimer | None) -> AbstractContextManager:
    """Like `CommTimer.blocked`; without a timer nothing is measured."""
    return nullcontext() if waits is None else waits.blocked()
