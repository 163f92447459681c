"""Remembers the communications that were launched and may not have ended, so that a hang can be named.

gloo's `wait` returns when a communication has ended, or raises an error that names it; of these nothing is remembered.
NCCL's `wait` returns at once, and only the device waits: the rank continues, and later hangs at whatever reads a number
of the device. `oldest` then says which communication began it. This module does not need torch.
"""

import time
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from megascratch.runtime.heartbeat import listed, position

MOST = 4096  # launches of one line that are remembered; the oldest ones count


class Ending(Protocol):
    """What tells whether a communication has ended."""

    def is_completed(self) -> bool:
        """Returns at once."""


class Launch:
    """One communication, with what the rank was doing when it was launched."""

    __slots__ = ("action", "began", "ending", "number", "ranks", "step", "what")

    def __init__(self, what: str, number: int, ranks: Sequence[int], ending: Ending):
        here = position()
        self.what = what
        self.number = number
        self.ranks = ranks
        self.step = here.step
        self.action = here.action
        self.began = time.monotonic()
        self.ending = ending

    @property
    def seconds(self) -> float:
        """Since it was launched."""
        return time.monotonic() - self.began

    @property
    def has_ended(self) -> bool:
        try:
            return self.ending.is_completed()
        except RuntimeError:
            return True  # the device has failed, of which the main thread hears, too

    def __str__(self) -> str:
        action = f"in {self.action} " if self.action else ""
        return (
            f"{self.what} number {self.number}{listed(self.ranks)}, launched {action}"
            f"of step {self.step}"
        )


class Launches:
    """Those of this rank. One thread adds and another one looks: appending to a deque and taking from it are atomic, so
    no lock is needed."""

    def __init__(self) -> None:
        self._of_line: dict[str, deque[Launch]] = {}

    def add(
        self, line: str, what: str, number: int, ranks: Sequence[int], ending: Ending
    ) -> Launch:
        """Remembers a launch.

        Args:
            line: the axis or link, on which communications end in the order of their launch.
            what: the operation and the axis or link, for the message.
            number: of this communication among those of its axis or peer.
            ending: may be replaced in the launch that is returned.
        """
        launch = Launch(what, number, ranks, ending)
        launched = self._of_line.setdefault(line, deque())
        if len(launched) < MOST:
            launched.append(launch)
        return launch

    def oldest(self) -> Launch | None:
        """The launch that has been under way for the longest time; None if all have ended. Forgets those that have."""
        under_way = []
        for launched in list(self._of_line.values()):
            while launched and launched[0].has_ended:
                launched.popleft()
            if launched:
                under_way.append(launched[0])
        return min(under_way, key=lambda launch: launch.began, default=None)


@lru_cache(maxsize=1)
def own_launches() -> Launches:
    """Those of this process."""
    return Launches()
