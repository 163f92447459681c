"""Reports input lines that give no document: prints the first ones and counts all."""

import sys

from megascratch.config.printable import printable

MOST_PRINTED = 20


class BadLines:
    """The bad lines of one run."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def not_printed(self) -> int:
        """How many bad lines were counted but not printed."""
        return max(0, self.count - MOST_PRINTED)

    def add(self, line: str) -> None:
        """`line`: FILE:LINE: REASON."""
        self.count += 1
        if self.count <= MOST_PRINTED:
            print(f"skipped {printable(line)}", file=sys.stderr)

    def print_rest(self) -> None:
        """Prints how many were not printed, at the end of a run."""
        if self.not_printed:
            print(f"skipped {self.not_printed:,} more", file=sys.stderr)
