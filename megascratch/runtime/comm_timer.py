"""How long a rank has been held up by others: the time blocked in communication, measured only while somebody looks.

On a CPU a wait blocks the process and a clock tells how long; on CUDA it blocks the stream, and two events tell.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class CommTimer:
    """The waits of one rank, shared by all of its axes and links."""

    def __init__(self, device: torch.device):
        self.device, self.looking = device, False
        self.seconds = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def blocked(self) -> AbstractContextManager:
        """Around each wait for other ranks."""
        return self._timed() if self.looking else nullcontext()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        if self.device.type != "cuda":
            start = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - start
            return
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        yield
        after.record()
        self.events.append((before, after))

    def take(self) -> float:
        """Seconds since the last call. On CUDA it waits until the device has done all of its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.seconds += sum(before.elapsed_time(after) for before, after in self.events) / 1000
            self.events.clear()
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def blocked(waits: CommTimer | None) -> AbstractContextManager:
    """As `CommTimer.blocked`; nothing is measured without waits."""
    return nullcontext() if waits is None else waits.blocked()
