"""What a layer, a stage or a bucket knows of the other ranks: an `Axis`, or a `Link` between two stages."""

from dataclasses import dataclass, field

from megascratch.parallel.traffic import TrafficLog
from megascratch.parallel.transport import Transport
from megascratch.runtime.timers import CommTimer


@dataclass(frozen=True)
class Axis:
    """The ranks of one group along a parallel axis, as seen from one of them.

    An axis may also be the ranks of a few others together, such as the world. It then has no transport of its own: what
    is summed or gathered goes along one of them after the other.
    """

    name: str
    size: int = 1
    rank: int = 0
    ranks: tuple[int, ...] = (0,)
    transport: Transport | None = None
    # the axes that it joins; the ranks differ fastest along the first of them
    along: tuple["Axis", ...] = field(default=(), repr=False)
    # times the waits on this axis
    waits: CommTimer | None = field(default=None, repr=False, compare=False)
    # notes the communications over it
    log: TrafficLog | None = field(default=None, repr=False, compare=False)

    @classmethod
    def alone(cls, name: str, rank: int = 0) -> "Axis":
        return cls(name, ranks=(rank,))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        return self.rank == self.size - 1


@dataclass(frozen=True)
class Link:
    """One direction between two neighbouring stages, with its own process group: messages on a link arrive in the
    order they were sent, and no link can block another (NCCL runs the operations of a group one by one)."""

    source: int  # global rank
    target: int
    transport: Transport
    waits: CommTimer | None = field(default=None, repr=False, compare=False)
    log: TrafficLog | None = field(default=None, repr=False, compare=False)

    def number_of(self, rank: int) -> int:
        """The number of a global rank, the source or the target, within the link's group."""
        return int(rank == max(self.source, self.target))


@dataclass(frozen=True)
class Links:
    """The four directed links of a stage. Stages form a ring, so that interleaved schedules can wrap around."""

    forward_in: Link
    forward_out: Link
    backward_in: Link
    backward_out: Link
