"""The exit codes of a run, which tell a batch script what to do next.

Also marks a process that runs one command and ends with its exit code.
"""

import os

DONE = 0
FAILED = 1
"""A rank died or hung, communication failed, or a bad step ended the run, and no restarts are left."""
BAD_INPUT = 2
"""An error that the user can fix: nothing was started, or a checkpoint could not be written."""
EXIT_INTERVAL = 80
"""Saved and stopped after a multiple of --exit-interval steps."""
EXIT_DURATION = 81
"""Saved and stopped after --exit-duration-in-mins: start the job again."""
STOP_FILE = 82
"""Saved and stopped because the user created the stop file."""
PREEMPTED = 83
"""Saved and stopped by SIGTERM, SIGUSR1 or SIGHUP: start the job again."""
INTERRUPTED = 130
"""Saved and stopped by one Ctrl-C (SIGINT), or ended at once by two."""

STOPS = {
    EXIT_INTERVAL: "--exit-interval",
    EXIT_DURATION: "--exit-duration-in-mins is over",
    STOP_FILE: "the stop file exists",
    PREEMPTED: "by a signal",
    INTERRUPTED: "by Ctrl-C",
}
"""Every early stop with a checkpoint and its reason; if there are several reasons, the highest code is used."""

OWN_PROCESS = "MEGASCRATCH_OWN_PROCESS"
"""Environment variable with the id of a process that only runs one command and ends with its exit code."""


def own_process() -> None:
    """Records that this process ends when its command ends."""
    os.environ[OWN_PROCESS] = str(os.getpid())


def is_own_process() -> bool:
    """Whether this process ends when its command ends: a request to stop that arrives after that has no effect.

    Child processes inherit the variable, but have another id.
    """
    return os.environ.get(OWN_PROCESS) == str(os.getpid())
