"""Lines that give no document: the first ones are told one by one, all are counted."""

import sys

from megascratch.config.printable import printable

MOST_TOLD = 20


class BadLines:
    """Of one run."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def untold(self) -> int:
        """Those beyond the ones that were told."""
        return max(0, self.count - MOST_TOLD)

    def tell(self, line: str) -> None:
        """file:line: reason."""
        self.count += 1
        if self.count <= MOST_TOLD:
            print(f"skipped {printable(line)}", file=sys.stderr)

    def tell_rest(self) -> None:
        """At the end: how many were not told."""
        if self.untold:
            print(f"skipped {self.untold:,} more", file=sys.stderr)
