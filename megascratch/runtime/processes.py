"""Identifies processes of this machine even if their PID is reused, checks whether they are alive, and ends a process
together with its parent.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1
LOOK_EVERY = 0.5  # seconds between two looks at the parent, where the kernel cannot signal its end
ENDED = "ended"
_LIBC = ctypes.CDLL(None)  # loaded now: nothing should be loaded between a fork and an exec


def start_of(pid: int) -> str:
    """When a process started, in the kernel's ticks; "ended" if it does not exist; "" where the system cannot say.

    A PID is reused; a PID together with its start time is not. A zombie counts as ended.
    """
    # From /proc: psutil derives the start from the clock of the system, so it changes when that clock is set.
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)
        except OSError:
            return ENDED
        return "" if not Path("/proc").exists() else ENDED
    return ENDED if state == "Z" else rest[18]


def own_age() -> float:
    """Seconds since this process was started or forked."""
    ticks = start_of(os.getpid())
    if not ticks:
        return time.time() - psutil.Process().create_time()
    # psutil adds whole seconds of the system's clock; ticks count from the boot, to a hundredth of a second
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


def identity(pid: int) -> str:
    """NAMESPACE.PID.START: unique on this machine, over all containers and over time."""
    return f"{_namespace()}.{pid}.{start_of(pid)}"


def is_gone(who: str) -> bool:
    """Whether the process with this `identity` has ended; False if this process cannot know."""
    namespace, pid, start = who.split(".")
    return namespace == _namespace() and start_of(int(pid)) != start


def end_with_parent(parent: int) -> None:
    """From now on this process is killed (SIGKILL) when its parent ends, and at once if the parent has already ended.

    Args:
        parent: the process that started this one. On Linux the signal is sent when the parent's *thread* that started
            this process ends, so that thread must live as long as the parent.
    """
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGKILL)


def _namespace() -> str:
    """The PID namespace: containers may share a file system in memory, but each has its own PIDs."""
    # psutil does not report namespaces.
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"
