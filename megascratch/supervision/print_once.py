"""Prints a message only once when all ranks of a machine would print it: the rank that arrives first prints it, before
any rank ends.

torchrun ends all ranks with SIGTERM as soon as one has ended. If always rank 0 printed for the others, a faster rank
could end the attempt before rank 0 has printed anything.
"""

import fcntl
import hashlib
import os
import sys
from pathlib import Path

from megascratch.runtime.heartbeat import FOLDER
from megascratch.runtime.launch_environment import launch_environment
from megascratch.supervision.torchrun_watcher import (
    join_torchrun,
    start_watching,
    started_by_torchrun,
)

FILE = "told"


def print_once(text: str) -> None:
    """Prints to stderr, once for all ranks of this machine and this attempt that call it with the same text. When it
    returns, the text has been printed. Without a watch folder ranks cannot agree, so only rank 0 prints."""
    if started_by_torchrun() and FOLDER not in os.environ:
        join_torchrun()
    if FOLDER not in os.environ:
        if launch_environment().rank == 0:
            print(text, file=sys.stderr, flush=True)
        return
    try:
        file = Path(os.environ[FOLDER], FILE).open("a+")  # noqa: SIM115 - closed below
    except OSError:  # better printed twice than not at all
        print(text, file=sys.stderr, flush=True)
        return
    digest = hashlib.sha256(text.encode()).hexdigest()
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system unlocks it if this rank is killed
        file.seek(0)
        printed = file.read().split()  # digests of the texts printed so far
        if digest not in printed:
            print(text, file=sys.stderr, flush=True)
            file.write(f"{digest}\n")
        if not printed and started_by_torchrun():
            start_watching()  # the watcher deletes the folder
