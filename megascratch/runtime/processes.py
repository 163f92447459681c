"""Processes of this machine: which one a number means, whether it is alive, and how a process ends with its parent."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOOK_EVERY = 0.5  # seconds, where the kernel does not tell that a parent has ended
ENDED = "ended"
_LIBC = ctypes.CDLL(None)  # loaded now: between a fork and an exec nothing should be


def start_of(pid: int) -> str:
    """When a process started, in the kernel's ticks; "ended" where there is none; "" where the system does not tell.

    A process number is used again, a number with its start is not. A zombie has ended.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)
        except OSError:
            return ENDED
        return "" if not Path("/proc").exists() else ENDED
    return ENDED if state == "Z" else rest[18]


def identity(pid: int) -> str:
    """NAMESPACE.PID.START: no other process of this machine has it, not in another container and not later."""
    return f"{_namespace()}.{pid}.{start_of(pid)}"


def is_gone(who: str) -> bool:
    """Whether the process of an `identity` has ended; False where this process cannot know it."""
    namespace, pid, start = who.split(".")
    return namespace == _namespace() and start_of(int(pid)) != start


def end_with_parent(parent: int) -> None:
    """From now on this process is killed (SIGKILL) when its parent ends, also if that has happened already.

    Args:
        parent: the process that started this one. On Linux its thread counts that did so: it must be one that lives as
            long as the process.
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
    """Containers may share a file system in memory, but not their process numbers."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"
