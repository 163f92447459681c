"""The fork server: a process that has loaded every library and from which ranks are forked. It ends with the launcher.

    launcher --SIGKILL at its death--> fork server --SIGKILL at its death--> rank 0, rank 1 ...

The kernel sends these signals, so a process that is stopped or hangs ends, too. Where the kernel cannot
(`processes.end_with_parent`), the end of a pipe that only the launcher holds open tells the fork server.

The fork server imports this module before all others; what it does then is at the end of the file.
"""

import multiprocessing as mp
import os
import signal
import time
from collections.abc import Iterable, Sequence
from multiprocessing import forkserver, resource_tracker

from megascratch.runtime.processes import ENDED, end_with_parent, start_of

DIES = 5.0  # seconds from the end of its pipes to its own
LAUNCHER = "MEGASCRATCH_LAUNCHER"
"""The launcher's process number, in the environment of a fork server that starts."""


def start(preload: Sequence[str], blocked: Iterable[int]) -> None:
    """Starts the fork server unless it runs.

    Args:
        preload: modules that it loads.
        blocked: signals that it does not hear, nor its ranks until they unblock them. A batch system sends its request
            to every process of a job, and with the fork server all ranks would end without a checkpoint.
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
    """Whether the fork server of this process is gone; asked when its pipes have closed, some time before it is."""
    pid = _server("_forkserver_pid")
    ends = time.monotonic() + DIES
    while pid is not None and start_of(pid) != ENDED:
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True


def end_with_fork_server() -> None:
    """In a process that was forked: from now on it ends with the fork server, and does not keep it alive."""
    alive = _server("_forkserver_alive_fd")
    if alive is not None:
        os.close(alive)  # while anyone holds this end of the pipe, the fork server takes its launcher for alive
    loaded_before_the_fork = os.getpid() != FORK_SERVER
    end_with_parent(FORK_SERVER if loaded_before_the_fork else os.getppid())


def _server(name: str) -> int | None:
    """What multiprocessing knows of the fork server and has no public name for."""
    value: int | None = getattr(forkserver._forkserver, name, None)
    return value


FORK_SERVER = os.getpid()
"""Of a forked process: its fork server, which has imported this module."""

if LAUNCHER in os.environ:
    end_with_parent(int(os.environ.pop(LAUNCHER)))
