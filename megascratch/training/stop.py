"""Reasons to stop before the last step in, one decision of all ranks at a step's end out, as an exit code.

A signal is heard by a thread, even while the rank waits inside C++. The first one asks for a checkpoint and an end; a
second one (another, or the same more than a second later) ends this process at once: the last checkpoint is whole.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from megascratch.config.exit_codes import (
    EXIT_DURATION,
    EXIT_INTERVAL,
    INTERRUPTED,
    PREEMPTED,
    STOP_FILE,
    is_own_process,
)
from megascratch.config.settings import TrainingConfig
from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.mesh import Axis
from megascratch.supervision.launch import began

ASKED = {signal.SIGTERM: PREEMPTED, signal.SIGUSR1: PREEMPTED, signal.SIGHUP: PREEMPTED, signal.SIGINT: INTERRUPTED}
SAME_SIGNAL = 1.0  # seconds in which a signal that comes again, over another way, is the same request
LOOK_EVERY = 1.0  # seconds between two looks for the stop file
_NO_MORE = 0


class StopRequest:
    """A context that hears requests, and those that came before it while they were blocked; made in the main thread.

    It belongs around loading, too: a batch system that asks then must not take the run for a failed one.
    """

    def __init__(self, training: TrainingConfig):
        self.asked = 0
        self.code: int | None = None
        """With which the run ends, as soon as that is decided: requests change it no more."""
        self._training, self._began, self._looked = training, began(), -LOOK_EVERY
        self._came: list[tuple[int, float]] = []
        reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        heard = set(ASKED)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            heard.remove(signal.SIGHUP)  # nohup asked for it
        self._before = {number: signal.signal(number, _heard_by_the_thread) for number in heard}
        self._wakeup_before = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, args=(reads,), name="signals", daemon=True)
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def agreed(self, step: int | None, world: Axis, device: torch.device) -> int:
        """After step `step`: 0, or on all ranks the highest exit code that one of them has a reason for. None: in the
        midst of a validation, which no exit interval cuts short."""
        mine = max(self.asked, self._reason(step) if world.is_first else 0)
        return int(all_reduce(torch.tensor(float(mine), device=device), world, dist.ReduceOp.MAX).item())

    def release(self) -> None:
        """The handlers before. A process that ends with its run, whose exit code is told by now, hears no further
        request: it would end with another code, a moment before it ends by itself."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if is_own_process() else handler)
        os.write(self._writes, bytes([_NO_MORE]))
        self._thread.join()
        os.close(self._writes)

    def _reason(self, step: int | None) -> int:
        training, now = self._training, time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            if training.stop_file is not None and os.path.exists(training.stop_file):  # raises for no folder's rights
                return STOP_FILE
        limit = training.exit_duration_in_mins
        if limit is not None and time.time() - self._began > 60 * limit:
            return EXIT_DURATION
        if step is not None and training.exit_interval is not None and step % training.exit_interval == 0:
            return EXIT_INTERVAL
        return 0

    def _listen(self, reads: int) -> None:
        while (number := os.read(reads, 1)[0]) != _NO_MORE:
            now = time.monotonic()
            again = any(number == other and now - when < SAME_SIGNAL for other, when in self._came)
            if number not in ASKED or again:
                continue
            self._came.append((number, now))
            self.asked = max(self.asked, ASKED[signal.Signals(number)])
            if len(self._came) > 1:
                print("\nmegascratch: asked a second time: ending at once", file=sys.stderr, flush=True)
                os._exit(128 + number if self.code is None else self.code)
        os.close(reads)


def remove_stop_file(training: TrainingConfig) -> None:
    """Once it was heeded; or the next run would stop, too."""
    if training.stop_file is not None:
        with suppress(OSError):
            Path(training.stop_file).unlink()


def _heard_by_the_thread(number: int, frame: object) -> None:
    """Python's own handler has nothing left to do."""
