"""Simulates a pipeline schedule: from orders and the cost of each action to a timeline with bubble and peak memory.

Conventions, those of the bubble table of arXiv 2401.10241 (Table 5, computed from the times of its Table 9):

    cost      the longest time between a rank's own first and last action (ranks of ZB-H2 start and end apart)
    bubble    (cost - compute) / cost of that rank
    transfer  overlaps with compute, from the end of the action whose result it carries; the action that needs it waits

The published figures of interleaved 1F1B assume overlapped communication in the steady state: see `overlapped`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
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

# rank, action -> seconds (or any unit); a transfer's cost is read at its send
Cost = Callable[[int, Action], float]


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
        return max(span.end for span in chain.from_iterable(self.spans))

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
        seconds = [span.end - span.start for span in self.spans[rank] if span.action.op in COMPUTE]
        return sum(seconds)

    def bubble(self, rank: int) -> float:
        """The part of `total` in which the rank does not compute."""
        return 1 - self.busy(rank) / self.total

    def peak(self, rank: int) -> int:
        """The most micro-batches with live activations: from the start of F to the end of B, or of W."""
        alive = 0
        highest = 0
        actions = [span.action for span in self.spans[rank]]
        weight_grads = {action for action in actions if action.op == "W"}
        for action in actions:
            ends_with_input_grad = action.op == "I" and action._replace(op="W") not in weight_grads
            if action.op == "F":
                alive += 1
                highest = max(highest, alive)
            elif action.op in ("B", "W") or ends_with_input_grad:
                alive -= 1
        return highest

    def draw(self, unit: float = 1.0) -> list[str]:
        """One line per rank, one column of equal width per `unit` of time; a dot is a bubble."""
        names = [
            str(span.action)
            for span in chain.from_iterable(self.spans)
            if span.action.op in COMPUTE
        ]
        width = 1 + max(map(len, names))
        lines = []
        for spans in self.spans:
            columns = ["."] * round(self.total / unit)
            for action, start, end in spans:
                if action.op in COMPUTE:
                    first = round(start / unit)
                    stop = max(round(end / unit), first + 1)
                    columns[first:stop] = [str(action)] + ["-"] * (stop - first - 1)
            padded = [column.ljust(width) for column in columns]
            lines.append("".join(padded).rstrip())
        return lines


def uniform(transfer: float = 0.0, **seconds: float) -> Cost:
    """The same cost on every rank and chunk: `uniform(F=1, B=2, transfer=0.1)`."""
    costs = {"SF": transfer, "SB": transfer, **seconds}
    return lambda rank, action: costs[action.op]


def overlapped(cost: Cost, chunks: int) -> Cost:
    """`cost` without the transfers that interleaved 1F1B hides in its steady state: the gradients that leave the last
    chunk, each sent while its rank runs a forward. 2 (p v - 1) - p transfers remain between the first forward and the
    last backward, as in the published bubbles of 8 ranks with 3 and with 4 chunks."""

    def visible(rank: int, action: Action) -> float:
        hidden = action.op == "SB" and action.chunk == chunks - 1
        return 0.0 if hidden else cost(rank, action)

    return visible


def simulate(
    orders: Orders, cost: Cost, placement: Placement | None = None, blocking_sends: bool = False
) -> Timeline:
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
            end = starts[here] + cost(rank, action)
            ends[here] = end
            ends[completion_key(rank, action)] = end
            clock[rank] = end
            continue
        starts[here] = clock[rank]
        there = placement.other_end(rank, action)
        sends = action.op in ("SF", "SB")
        send, receive = (here, there) if sends else (there, here)
        link = link_of(rank, action, placement)
        free = link_free.get(link, 0.0)
        if blocking_sends:
            if sends:  # into a buffer at the other end
                end = max(clock[rank], free) + cost(rank, action)
                ends[send] = end
                link_free[link] = end
                clock[rank] = end
            if there in starts:
                ends[receive] = max(starts[here], ends[send])
        elif there in starts:
            # both ends of a link keep one order, so messages meet here in that order
            end = max(starts[here], starts[there], free) + cost(*send)
            ends[here] = end
            ends[there] = end
            link_free[link] = end
    spans = []
    for rank, order in enumerate(orders):
        spans.append(
            [TimedAction(action, starts[rank, action], ends[rank, action]) for action in order]
        )
    return Timeline(spans)
