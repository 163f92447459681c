"""Finds stragglers: ranks that are slower than their peers for several log intervals in a row.

Peers are the ranks of one pipeline stage, which do the same work. A stage of one rank is compared with all ranks. The
median is the lower one, so that the slower of two ranks is found. Pure arithmetic, done on the first rank alone: it
takes time and memory for every rank of the world.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from megascratch.runtime.timers import PHASES

LEAST = 0.1
"""A phase is only reported if it is slower by at least this part of a step's own time."""


class Slow(NamedTuple):
    """A rank that is slower in a phase than its peers."""

    rank: int
    phase: int  # index into PHASES
    seconds: float
    median: float  # of the peers


def slow_ranks(
    own: Sequence[Sequence[float]], peers: Sequence[Sequence[int]], factor: float
) -> list[Slow]:
    """The ranks that take more than `factor` times the median of their peers in a phase, sorted by rank.

    Args:
        own: [ranks][phases] seconds.
        peers: [stages] the ranks of each stage.
    """
    if len(own) == 1:
        return []
    slow = []
    step = statistics.median(map(sum, own))
    of_all = _medians(own)
    for ranks in peers:
        medians = of_all if len(ranks) == 1 else _medians([own[rank] for rank in ranks])
        for rank in ranks:
            for phase, (seconds, median) in enumerate(zip(own[rank], medians, strict=True)):
                if seconds > factor * median and seconds - median > LEAST * step:
                    slow.append(Slow(rank, phase, seconds, median))
    return sorted(slow)


def _medians(own: Sequence[Sequence[float]]) -> list[float]:
    """The median of each phase."""
    return [statistics.median_low(seconds) for seconds in zip(*own, strict=True)]


class Stragglers:
    """Counts for how many log intervals in a row a rank was slow in a phase.

    Args:
        peers: [stages] the ranks of each stage.
        hosts: [ranks] names of machines.
    """

    def __init__(
        self, peers: Sequence[Sequence[int]], hosts: Sequence[str], factor: float, intervals: int
    ):
        self.peers = peers
        self.hosts = hosts
        self.factor = factor
        self.intervals = intervals
        self.streak: Counter[tuple[int, int]] = Counter()

    def lines(self, own: Sequence[Sequence[float]]) -> list[str]:
        """Called after each log interval: one line for each rank and phase that has been slow for `intervals` intervals
        in a row. The line is repeated after as many further intervals."""
        before = self.streak
        self.streak = Counter()
        lines = []
        for one in slow_ranks(own, self.peers, self.factor):
            in_a_row = before[one.rank, one.phase] + 1
            self.streak[one.rank, one.phase] = in_a_row
            if in_a_row % self.intervals == 0:
                lines.append(
                    f"straggler: rank {one.rank} ({self.hosts[one.rank]}) takes {one.seconds:.3f} s for "
                    f"{PHASES[one.phase]}, its peers {one.median:.3f} s, in {in_a_row} log intervals in a row"
                )
        return lines
