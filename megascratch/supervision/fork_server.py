"""The fork server: a process with every library loaded, from which ranks are forked. It ends with the launcher.

    launcher --SIGKILL at its death--> fork server --SIGKILL at its death--> rank 0, rank 1 ...

The kernel sends these signals, so they also end a process that is stopped or hangs. Where the kernel cannot send them
(see `processes.end_with_parent`), the fork server ends when a pipe that only the launcher holds open is closed.

The fork server imports this module before all others; the last lines of this file are what it then runs.
"""

import multiprocessing as mp
import os
import signal
import time
from collections.abc import Iterable, Sequence
from multiprocessing import forkserver, resource_tracker

from megascratch.runtime.processes import ENDED, end_with_parent, start_of

DIES = 5.0  # seconds within which it ends after its pipes have closed
LAUNCHER = "MEGASCRATCH_LAUNCHER"
"""The launcher's PID, in the environment of a fork server that is starting."""


def start(preload: Sequence[str], blocked: Iterable[int]) -> None:
    """Starts the fork server unless it is running.

    Args:
        preload: modules that it loads.
        blocked: signals blocked in it, and in its ranks until they unblock them. A batch system sends its request to
            stop to every process of a job; it would end the fork server, and with it all ranks, without a checkpoint.
    """
    mp.get_context("forkserver").set_forkserver_preload([__name__, *preload])
    resource_tracker.ensure_running()  # the fork server starts it otherwise, and it unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        forkserver.ensure_running()
    finally:
        del os.environ[LAUNCHER]
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def has_died() -> bool:
    """Whether the fork server of this process has died. Call it when its pipes have closed: the process itself ends
    some time later, so this waits up to DIES seconds."""
    pid = _server("_forkserver_pid")
    ends = time.monotonic() + DIES
    while pid is not None and start_of(pid) != ENDED:
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True


def end_with_fork_server() -> None:
    """Called in a forked process: from now on it ends with the fork server, and does not keep the fork server alive."""
    alive = _server("_forkserver_alive_fd")
    if alive is not None:
        # while any process holds this end open, the fork server takes its launcher for alive
        os.close(alive)
    loaded_before_the_fork = os.getpid() != FORK_SERVER
    end_with_parent(FORK_SERVER if loaded_before_the_fork else os.getppid())


def _server(name: str) -> int | None:
    """A private attribute of multiprocessing's fork server; there is no public name for it."""
    value: int | None = getattr(forkserver._forkserver, name, None)
    return value


FORK_SERVER = os.getpid()
"""The PID of the fork server, also in a process that was forked from it: the fork server has imported this module."""

if LAUNCHER in os.environ:
    end_with_parent(int(os.environ.pop(LAUNCHER)))
