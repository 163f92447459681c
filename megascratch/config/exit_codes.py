"""The exit codes of a run, so that a batch script can tell what to do next; and whether the process ends with it."""

import os

DONE = 0
FAILED = 1
"""A rank died or hung, communication failed, or numbers went wrong, and the restarts are used up."""
BAD_INPUT = 2
"""Something that the user can mend: nothing was started, or a checkpoint could not be written."""
EXIT_INTERVAL = 80
"""Saved and stopped after a multiple of --exit-interval steps."""
EXIT_DURATION = 81
"""Saved and stopped after --exit-duration-in-mins: start the job again."""
STOP_FILE = 82
"""Saved and stopped because the stop file appeared: a person asked."""
PREEMPTED = 83
"""Saved and stopped by SIGTERM, SIGUSR1 or SIGHUP: start the job again."""
INTERRUPTED = 130
"""Saved and stopped by one Ctrl-C (SIGINT), or ended at once by two."""

STOPS = {
    EXIT_INTERVAL: "exit-interval",
    EXIT_DURATION: "exit-duration-in-mins is over",
    STOP_FILE: "the stop file is there",
    PREEMPTED: "a signal asked for it",
    INTERRUPTED: "an interrupt asked for it",
}
"""Every end with a checkpoint before the last step; of several reasons the highest code counts."""

OWN_PROCESS = "MEGASCRATCH_OWN_PROCESS"
"""Number of a process that does nothing but run one verb and end with its exit code."""


def own_process() -> None:
    """Notes that this process ends with the verb that it runs."""
    os.environ[OWN_PROCESS] = str(os.getpid())


def is_own_process() -> bool:
    """Whether this process ends with its verb: then a request to stop that comes behind the verb's end changes nothing
    any more. Children inherit the note, but not the number."""
    return os.environ.get(OWN_PROCESS) == str(os.getpid())
