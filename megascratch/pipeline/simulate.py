"""Simulates a pipeline schedule: from orders and the cost of each action to a timeline with bubble and peak memory.

Conventions, those of the bubble table of arXiv 2401.10241 (Table 5, computed from the times of its Table 9):

    cost      the longest time between a rank's own first and last action (ranks of ZB-H2 start and end apart)
    bubble    (cost - compute) / cost of that rank
    transfer  overlaps with compute, from the end of the action whose result it carries; the action that needs it waits

The published figures of interleaved 1F1B assume overlapped communication in the steady state: see `overlapped`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from megascratch.pipeline.passes import (
    LinkKey,
    Orders,
    RankAction,
    completion_key,
    dependency_of,
    link_of,
    looped_placement,
    topological_order,
)
from megascratch.pipeline.schedule import COMPUTE, Action, Placement

Cost = Callable[[int, Action], float]  # rank, action -> seconds (or any unit); a transfer's cost is read at its send


class TimedAction(NamedTuple):
    """When an action ran; a receive starts when it is posted and ends when its message has arrived."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What each rank did and when."""

    spans: list[list[TimedAction]]  # by rank, in the sequence of its order

    @property
    def total(self) -> float:
        """From the first start to the last end."""
        return max(span.end for spans in self.spans for span in spans)

    @property
    def cost(self) -> float:
        """The longest time between a rank's own first and last action."""
        return max(self.span(rank) for rank in range(len(self.spans)))

    @property
    def bubble_rate(self) -> float:
        """(cost - compute) / cost of the rank that takes longest (arXiv 2401.10241, section 5.3)."""
        slowest = max(range(len(self.spans)), key=self.span)
        return 1 - self.busy(slowest) / self.cost

    def span(self, rank: int) -> float:
        """From the start of the rank's first compute to the end of its last."""
        compute = [span for span in self.spans[rank] if span.action.op in COMPUTE]
        return compute[-1].end - compute[0].start

    def busy(self, rank: int) -> float:
        """The time in which the rank computes."""
        return sum(span.end - span.start for span in self.spans[rank] if span.action.op in COMPUTE)

    def bubble(self, rank: int) -> float:
        """The part of `total` in which the rank does not compute."""
        return 1 - self.busy(rank) / self.total

    def peak(self, rank: int) -> int:
        """The most micro-batches with live activations: from the start of F to the end of B, or of W."""
        alive = highest = 0
        split = {span.action[1:] for span in self.spans[rank] if span.action.op == "W"}
        for action, _, _ in self.spans[rank]:
            alive += action.op == "F"
            highest = max(highest, alive)
            alive -= action.op in ("B", "W") or (action.op == "I" and action[1:] not in split)
        return highest

    def draw(self, unit: float = 1.0) -> list[str]:
        """One line per rank, one column of equal width per `unit` of time; a dot is a bubble."""
        width = 1 + max(len(str(span.action)) for spans in self.spans for span in spans if span.action.op in COMPUTE)
        lines = []
        for spans in self.spans:
            columns = ["."] * round(self.total / unit)
            for action, start, end in spans:
                if action.op in COMPUTE:
                    first = round(start / unit)
                    stop = max(round(end / unit), first + 1)
                    columns[first:stop] = [str(action)] + ["-"] * (stop - first - 1)
            lines.append("".join(column.ljust(width) for column in columns).rstrip())
        return lines


def uniform(transfer: float = 0.0, **seconds: float) -> Cost:
    """The same cost on every rank and chunk: `uniform(F=1, B=2, transfer=0.1)`."""
    costs = {"SF": transfer, "SB": transfer, **seconds}
    return lambda rank, action: costs[action.op]


def overlapped(cost: Cost, chunks: int) -> Cost:
    """`cost` without the transfers that interleaved 1F1B hides in its steady state: the gradients that leave the last
    chunk, each sent while its rank runs a forward. 2 (p v - 1) - p transfers remain between the first forward and the
    last backward, as in the published bubbles of 8 ranks with 3 and with 4 chunks."""
    return lambda rank, action: 0.0 if action.op == "SB" and action.chunk == chunks - 1 else cost(rank, action)


def simulate(orders: Orders, cost: Cost, placement: Placement | None = None, blocking_sends: bool = False) -> Timeline:
    """The timeline of `orders` if each action takes the time that `cost` returns.

    A rank computes one action at a time. Transfers overlap with compute; each directed link carries one at a time, from
    the moment when both ends are ready.

    Args:
        placement: of the chunks on the ranks; default: a loop.
        blocking_sends: a rank does nothing else while its message is sent.

    Raises:
        ScheduleError: ranks wait for each other in a circle.
    """
    placement = placement or looped_placement(orders)
    clock = [0.0] * len(orders)  # by rank: when it is free again
    starts: dict[RankAction, float] = {}
    ends: dict[RankAction, float] = {}
    link_free: dict[LinkKey, float] = {}
    for rank, action in topological_order(orders, placement):
        here = rank, action
        if action.op in COMPUTE:
            needed = dependency_of(rank, action, placement)
            starts[here] = clock[rank] if needed is None else max(clock[rank], ends[needed])
            clock[rank] = ends[here] = ends[completion_key(rank, action)] = starts[here] + cost(rank, action)
            continue
        starts[here] = clock[rank]
        there = placement.other_end(rank, action)
        sends = action.op in ("SF", "SB")
        link = link_of(rank, action, placement)
        if blocking_sends:
            if sends:  # into a buffer at the other end
                clock[rank] = ends[here] = link_free[link] = max(clock[rank], link_free.get(link, 0.0)) + cost(*here)
            if there in starts:
                ends[there if sends else here] = max(starts[here], ends[here if sends else there])
        elif there in starts:  # both ends of a link keep one order, so messages meet here in that order
            begin = max(starts[here], starts[there], link_free.get(link, 0.0))
            link_free[link] = ends[here] = ends[there] = begin + cost(*(here if sends else there))
    spans = []
    for rank, order in enumerate(orders):
        spans.append([TimedAction(action, starts[rank, action], ends[rank, action]) for action in order])
    return Timeline(spans)
