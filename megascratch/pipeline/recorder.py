"""The clock that `runtime.run` may be handed: when each action of one rank began and ended. Without it nothing is
timed.

On CUDA the marks are events on the rank's stream, so they tell when the GPU worked, not when the work was asked for.
"""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist

from megascratch.parallel.collectives import barrier, named
from megascratch.parallel.host_staging import transport_device
from megascratch.parallel.mesh import Axis
from megascratch.pipeline.schedule import Action
from megascratch.pipeline.simulate import TimedAction

Mark = float | torch.cuda.Event
ROUNDS = 8  # questions to the first rank's clock, of which the fastest answer counts


class RankTiming(NamedTuple):
    """One step of one rank, in seconds of the first rank's clock."""

    spans: Sequence[TimedAction]
    waits: Mapping[Action, float]  # receive -> seconds for which the rank stood still until its message was there


class NullRecorder:
    """Notes nothing: the runtime's default."""

    def begins(self, action: Action) -> None:
        """The runtime turns to `action`."""

    def arrived(self, receive: Action) -> None:
        """The message that the present action had to wait for is there."""

    def ends(self, action: Action) -> None:
        """The runtime is done with `action`; of a transfer: it is posted."""


class Recorder(NullRecorder):
    """Notes one step of one rank; made just before the step, by all ranks of a pipeline at once.

    Args:
        pp: the pipeline; its ranks meet here, and leave with one clock, the first rank's.
    """

    def __init__(self, pp: Axis, device: torch.device):
        self.cuda = device.type == "cuda"
        self.current = Action("F", 0)
        self.begun: dict[Action, Mark] = {}  # in the order in which it happened
        self.ended: dict[Action, Mark] = {}
        self.turned: dict[Action, Mark] = {}  # receive -> when its action began to wait for it
        self.lead = clock_offset(pp, device)
        barrier(pp)
        self.zero, self.zero_mark = perf_counter(), self._now()

    def begins(self, action: Action) -> None:
        self.current = action
        self.begun[action] = self._now()

    def arrived(self, receive: Action) -> None:
        self.turned[receive] = self.begun[self.current]
        self.ended[receive] = self.begun[self.current] = self._now()

    def ends(self, action: Action) -> None:
        self.ended[action] = self._now()

    def notes(self) -> RankTiming:
        """What this rank did, to be sent to the others."""
        return RankTiming(self.spans(), self.waits())

    def spans(self) -> list[TimedAction]:
        """What happened, in its order, in seconds of the first rank's clock. Compute starts when its input is there; a
        send is a moment (`trace.Trace` knows its end from the other side)."""
        return [
            TimedAction(action, self._seconds(begun), self._seconds(self.ended[action]))
            for action, begun in self.begun.items()
        ]

    def waits(self) -> dict[Action, float]:
        """As `RankTiming` has them."""
        return {
            receive: self._seconds(self.ended[receive]) - self._seconds(turned)
            for receive, turned in self.turned.items()
        }

    def _now(self) -> Mark:
        if not self.cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _seconds(self, mark: Mark) -> float:
        if isinstance(mark, float):
            return mark - self.lead
        assert isinstance(self.zero_mark, torch.cuda.Event)
        mark.synchronize()
        since_zero: float = self.zero_mark.elapsed_time(mark)
        return self.zero - self.lead + since_zero / 1e3


def clock_offset(axis: Axis, device: torch.device) -> float:
    """Seconds by which this rank's clock is ahead of the first rank's, good to half of the fastest round trip: the
    answer was read in its middle (Cristian 1989, Distributed Computing 3)."""
    place = transport_device(device, axis.group)
    lead, fastest, clock = 0.0, float("inf"), torch.zeros(1, dtype=torch.float64, device=place)
    with named("reading the clocks", axis.name, axis.rank, axis.size):
        for peer in axis.ranks[1:]:
            for _ in range(ROUNDS):
                asked = perf_counter()
                if axis.is_first:
                    dist.recv(clock, peer, group=axis.group)
                    dist.send(clock.fill_(perf_counter()), peer, group=axis.group)
                elif axis.ranks[axis.rank] == peer:
                    dist.send(clock, axis.ranks[0], group=axis.group)
                    dist.recv(clock, axis.ranks[0], group=axis.group)
                    answer = clock.item()  # on CUDA waits until it is there
                    if (trip := perf_counter() - asked) < fastest:
                        lead, fastest = asked + trip / 2 - answer, trip
    return lead
