"""Playable orders and the cost of an action in, a timeline out: the simulator behind bubbles, peaks and plans."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from megascratch.pipeline.passes import Orders, Place, chunks_of, done_as, need, walk
from megascratch.pipeline.schedule import COMPUTE, Action, other_end

Cost = Callable[[int, Action], float]  # rank, action -> seconds (or any unit); a transfer's cost is read at its send


class Span(NamedTuple):
    """When an action ran; a receive starts when it is posted and ends when its message is there."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What each rank did and when."""

    spans: list[list[Span]]  # by rank, in the order's sequence

    @property
    def total(self) -> float:
        """From the first start to the last end."""
        return max(span.end for spans in self.spans for span in spans)

    def bubble(self, rank: int) -> float:
        """The part of `total` in which the rank does not compute."""
        return 1 - sum(span.end - span.start for span in self.spans[rank] if span.action.op in COMPUTE) / self.total

    def peak(self, rank: int) -> int:
        """Most micro-batch activations alive at once: from the start of F to the end of B, or of W."""
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


def play(orders: Orders, cost: Cost) -> Timeline:
    """When everything happens if each action takes what `cost` says.

    A rank computes one action at a time; transfers run beside compute, one after the other on each directed link, from
    the moment both ends are ready.

    Raises:
        ScheduleError: ranks wait for each other in a circle.
    """
    ranks, chunks, clock = len(orders), chunks_of(orders), [0.0] * len(orders)
    starts, ends = dict[Place, float](), dict[Place, float]()
    link_free: dict[tuple[int, int, str], float] = {}
    for rank, action in walk(orders):
        here = rank, action
        if action.op in COMPUTE:
            needed = need(rank, action, ranks, chunks)
            starts[here] = clock[rank] if needed is None else max(clock[rank], ends[needed])
            clock[rank] = ends[here] = ends[done_as(rank, action)] = starts[here] + cost(rank, action)
            continue
        starts[here], there = clock[rank], other_end(rank, action, ranks)
        if there in starts:  # both ends of a link keep one order, so messages meet here in that order
            send, receive = (here, there) if action.op in ("SF", "SB") else (there, here)
            link = send[0], receive[0], send[1].op
            begin = max(starts[here], starts[there], link_free.get(link, 0.0))
            link_free[link] = ends[here] = ends[there] = begin + cost(*send)
    return Timeline([[Span(action, starts[rank, action], ends[rank, action]) for action in order]
                     for rank, order in enumerate(orders)])
