"""Every rank's own time by phase in, the ranks that are slower than their peers for several log intervals out.

Peers are the ranks of one pipeline stage, which do the same work; a stage of one rank is compared with all ranks. The
median is the lower one, so that of two ranks the slower is seen. Pure arithmetic.
"""

import socket
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from megascratch.training.health.step_timer import PHASES

LEAST = 0.1
"""Part of a step's own time that a phase must be slower by to be worth a line."""


class Slow(NamedTuple):
    """A rank that is slower in a phase than its peers."""

    rank: int
    phase: int
    seconds: float
    median: float


def slow_ranks(own: Sequence[Sequence[float]], stages: Sequence[int], factor: float) -> list[Slow]:
    """Args: `own` [ranks][phases] seconds; `stages` [ranks] the pipeline stage of each rank."""
    found = []
    step = statistics.median(map(sum, own))
    for rank, times in enumerate(own):
        peers = [other for other, stage in enumerate(stages) if stage == stages[rank]]
        for phase, seconds in enumerate(times):
            among = peers if len(peers) > 1 else range(len(own))
            median = statistics.median_low([own[other][phase] for other in among])
            if len(own) > 1 and seconds > factor * median and seconds - median > LEAST * step:
                found.append(Slow(rank, phase, seconds, median))
    return found


class Stragglers:
    """Remembers for how many intervals in a row a rank was slow in a phase."""

    def __init__(self, stages: Sequence[int], hosts: Sequence[str], factor: float, intervals: int):
        self.stages, self.hosts, self.factor, self.intervals = stages, hosts, factor, intervals
        self.streak: Counter[tuple[int, int]] = Counter()

    def lines(self, own: Sequence[Sequence[float]]) -> list[str]:
        """After each interval: one line for each rank and phase whose patience has run out, again after as many
        intervals."""
        slow = slow_ranks(own, self.stages, self.factor)
        self.streak = Counter({(one.rank, one.phase): self.streak[one.rank, one.phase] + 1 for one in slow})
        return [
            f"straggler: rank {one.rank} ({self.hosts[one.rank]}) takes {one.seconds:.3f} s for {PHASES[one.phase]}, "
            f"its peers {one.median:.3f} s, in {self.streak[one.rank, one.phase]} log intervals in a row"
            for one in slow
            if self.streak[one.rank, one.phase] % self.intervals == 0
        ]


def host() -> str:
    """This machine's name."""
    return socket.gethostname()
