"""Ends a rank whose communication does not end although its `wait` has returned, as NCCL's does: `HangWatch`.

A thread looks at the launches of the rank (runtime/launches.py) while the main thread waits inside the device's
library. It shows the oldest one in the heartbeat, and when that one is too old it names it and ends the process, before
NCCL's own watchdog aborts it with no more than the number of a group.
"""

import os
import sys
import threading
from collections.abc import Callable

from megascratch.config.exit_codes import FAILED
from megascratch.config.printable import printable_lines
from megascratch.runtime import heartbeat
from megascratch.runtime.launch_environment import launch_environment
from megascratch.runtime.launches import Launches, own_launches
from megascratch.supervision.torchrun_watcher import outlive_dead_machines

LOOK_EVERY = 1.0  # seconds
EARLIER = 0.95  # of the time-out, which is also that of NCCL's watchdog and of the supervisor


def end_rank(message: str) -> None:
    """Reports the message as this rank's error and ends the process, whatever its main thread is waiting for."""
    rank = launch_environment().rank
    print(
        f"megascratch pretrain: rank {rank}: {printable_lines(message)}",
        file=sys.stderr,
        flush=True,
    )
    outlive_dead_machines()
    heartbeat.ended(FAILED, message)
    os._exit(FAILED)


class HangWatch:
    """A context in which no launch of this process may take longer than the time-out of a step.

    Args:
        timeout: in seconds.
        end: called once, in the thread of the watch, with the message.
    """

    def __init__(
        self,
        timeout: float,
        end: Callable[[str], None] = end_rank,
        launches: Launches | None = None,
        look_every: float = LOOK_EVERY,
    ):
        self.timeout = timeout
        self.end = end
        self.launches = own_launches() if launches is None else launches
        self.look_every = look_every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)

    def __enter__(self) -> "HangWatch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> bool:
        """Shows the oldest launch that is under way, and ends the rank if it is too old. Returns: whether it did."""
        oldest = self.launches.oldest()
        waits = oldest is not None and oldest.seconds > self.look_every
        heartbeat.launched(str(oldest) if waits else "")
        if oldest is None or oldest.seconds <= EARLIER * self.timeout:
            return False
        self.end(f"{oldest}, timed out: it has not ended for {oldest.seconds:.0f} s")
        return True

    def _watch(self) -> None:
        while not self._over.wait(self.look_every):
            if self.look():
                return
