"""How much a command prints: with --quiet only errors and results, with --verbose also details and timings.

The choice is in the environment, so that the ranks and workers of a command print as much as the command.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "MEGASCRATCH_VERBOSITY"
QUIET = "quiet"
VERBOSE = "verbose"


def is_quiet() -> bool:
    """Whether only errors and results are printed."""
    return os.environ.get(VARIABLE) == QUIET


def is_verbose() -> bool:
    """Whether details are printed, too."""
    return os.environ.get(VARIABLE) == VERBOSE


def note(text: str) -> None:
    """Prints a notice or a line of progress to stderr, unless the command is quiet. The text must be printable."""
    if not is_quiet():
        _write(text)


def detail(text: str) -> None:
    """Prints a line to stderr if the command is verbose. The line names the rank, if there are several. The text must
    be printable."""
    if is_verbose():
        rank = os.environ.get("RANK")
        place = "" if rank is None else f" rank {rank}:"
        _write(f"megascratch:{place} {text}")


def _write(line: str) -> None:
    """Writes a line at once, so that lines of several ranks do not mix."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


@contextmanager
def verbosity(choice: str | None) -> Iterator[None]:
    """Sets QUIET or VERBOSE for what runs inside; None: as the environment says."""
    before = os.environ.get(VARIABLE)
    if choice is not None:
        os.environ[VARIABLE] = choice
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
