"""Stops a run early: on a signal, a stop file, a time limit or an exit interval. All ranks decide together in the same
step, before its update, and stop after it; the reason becomes the exit code.

A thread handles signals, even while the rank waits inside C++. The first signal requests a checkpoint and a clean end.
A second one (a different one, or the same more than a second later) ends this process at once; the last checkpoint is
complete in any case. In a process that does more than this run, such as a notebook, it raises KeyboardInterrupt.
"""

import _thread
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

from megascratch.config.exit_codes import (
    EXIT_DURATION,
    EXIT_INTERVAL,
    INTERRUPTED,
    PREEMPTED,
    STOP_FILE,
    is_own_process,
)
from megascratch.config.settings import TrainingConfig
from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import all_reduce
from megascratch.supervision.launch import began
from megascratch.training.step_numbers import agreed_code, stop_counts

ASKED = {
    signal.SIGTERM: PREEMPTED,
    signal.SIGUSR1: PREEMPTED,
    signal.SIGHUP: PREEMPTED,
    signal.SIGINT: INTERRUPTED,
}
SAME_SIGNAL = 1.0  # seconds in which a repeated signal is the same request, delivered twice
LOOK_EVERY = 1.0  # seconds between two checks for the stop file
_NO_MORE = 0


class StopRequest:
    """A context that receives requests to stop, including signals that came earlier while they were blocked. Created in
    the main thread.

    It must enclose loading, too, so that a run that a batch system stops while it loads does not count as failed.
    """

    def __init__(self, training: TrainingConfig):
        self.asked = 0
        self.code: int | None = None
        """The exit code of the run, once it is decided; later requests no longer change it."""
        self._training = training
        self._began = began()
        self._looked = -LOOK_EVERY
        self._came: list[tuple[int, float]] = []
        reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        handled = set(ASKED)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            handled.remove(signal.SIGHUP)  # nohup has set SIG_IGN
        self._interrupts = False
        self._before = {number: signal.signal(number, self._handle) for number in handled}
        self._wakeup_before = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        self._thread = threading.Thread(
            target=self._listen, args=(reads,), name="signals", daemon=True
        )
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def reason(self, step: int | None, is_first: bool) -> int:
        """The exit code for which this rank asks all ranks to stop; 0: it does not.

        Args:
            step: the step that is about to end; None during a validation, which no exit interval cuts short.
            is_first: only the first rank looks at the interval, the clock and the stop file.
        """
        return max(self.asked, self._own_reason(step) if is_first else 0)

    def agreed(self, world: Axis, device: torch.device) -> int:
        """Decides on all ranks, during a validation, whether to stop. A step decides in its own sum over all ranks.

        Returns: on all ranks the highest exit code for which any of them has a reason; 0 for none.
        """
        counts = stop_counts(self.reason(None, world.is_first))
        return agreed_code(all_reduce(torch.tensor(counts, device=device), world).tolist())

    def release(self) -> None:
        """Restores the previous signal handlers. A process that ends together with its run ignores further signals
        instead: its exit code is already reported, and a signal would change it just before the process ends."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if is_own_process() else handler)
        os.write(self._writes, bytes([_NO_MORE]))
        self._thread.join()
        os.close(self._writes)

    def _own_reason(self, step: int | None) -> int:
        training = self._training
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            if training.stop_file is not None and os.path.exists(training.stop_file):
                # False without permission
                return STOP_FILE
        limit = training.exit_duration_in_mins
        if limit is not None and time.time() - self._began > 60 * limit:
            return EXIT_DURATION
        if (
            step is not None
            and training.exit_interval is not None
            and step % training.exit_interval == 0
        ):
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
            if len(self._came) > 1 and not is_own_process():
                self._interrupts = True
                _thread.interrupt_main()
            elif len(self._came) > 1:
                print(
                    "\nmegascratch: second request to stop: exiting at once",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(128 + number if self.code is None else self.code)
        os.close(reads)

    def _handle(self, number: int, frame: object) -> None:
        """Python's signal handler. The thread handles the signal, and asks here for the end of the run."""
        if self._interrupts:
            raise KeyboardInterrupt


def remove_stop_file(training: TrainingConfig) -> None:
    """Removes the stop file after the run has stopped for it, so that the next run does not stop, too."""
    if training.stop_file is not None:
        with suppress(OSError):
            Path(training.stop_file).unlink()
