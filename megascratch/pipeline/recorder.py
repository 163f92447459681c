"""Records when each action of a pipeline step began and ended on a rank; pass a `Recorder` to `runtime.run`.

On CUDA the times are events on the rank's stream, so they show when the GPU worked, not when the work was launched.
"""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

import torch

from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import barrier
from megascratch.parallel.pending import named
from megascratch.pipeline.schedule import Action
from megascratch.pipeline.simulate import TimedAction

Mark = float | torch.cuda.Event
ROUNDS = 8  # requests to the clock of the first rank; the fastest answer counts


class RankTiming(NamedTuple):
    """One step of one rank, in seconds on the clock of the first rank."""

    spans: Sequence[TimedAction]
    waits: Mapping[Action, float]  # receive -> seconds for which the rank waited for its message


class NullRecorder:
    """Records nothing: the default of the runtime."""

    def begins(self, action: Action) -> None:
        """Called when the runtime starts `action`."""

    def arrived(self, receive: Action) -> None:
        """Called when the message that the current action waits for has arrived."""

    def ends(self, action: Action) -> None:
        """Called when the runtime has finished `action`; a transfer: has posted it."""


class Recorder(NullRecorder):
    """Records one step of one rank; created right before the step, by all ranks of a pipeline together.

    Args:
        pp: the pipeline; its ranks synchronise here and measure the offset to the clock of the first rank.
    """

    def __init__(self, pp: Axis, device: torch.device):
        self.cuda = device.type == "cuda"
        self.current = Action("F", 0)
        self.begun: dict[Action, Mark] = {}  # in the order of execution
        self.ended: dict[Action, Mark] = {}
        self.turned: dict[Action, Mark] = {}  # receive -> when an action began to wait for it
        self.lead = clock_offset(pp, device)
        barrier(pp)
        self.zero = perf_counter()
        self.zero_mark = self._now()

    def begins(self, action: Action) -> None:
        self.current = action
        self.begun[action] = self._now()

    def arrived(self, receive: Action) -> None:
        self.turned[receive] = self.begun[self.current]
        now = self._now()
        self.ended[receive] = now
        self.begun[self.current] = now

    def ends(self, action: Action) -> None:
        self.ended[action] = self._now()

    def notes(self) -> RankTiming:
        """The record of this rank, to be sent to the others."""
        return RankTiming(self.spans(), self.waits())

    def spans(self) -> list[TimedAction]:
        """The actions in the order of execution, in seconds on the clock of the first rank. Compute starts when its
        input has arrived; a send has no duration (`trace.Trace` gets its end from the receiver)."""
        return [
            TimedAction(action, self._seconds(begun), self._seconds(self.ended[action]))
            for action, begun in self.begun.items()
        ]

    def waits(self) -> dict[Action, float]:
        """The `waits` of `RankTiming`."""
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
    """Seconds by which the clock of this rank is ahead of the first rank's, exact to half of the fastest round trip,
    on the assumption that the answer was sent in the middle (Cristian 1989, Distributed Computing 3)."""
    lead = 0.0
    if axis.transport is None:
        return lead
    transport = axis.transport
    fastest = float("inf")
    clock = torch.zeros(1, dtype=torch.float64, device=transport.carried_by(device))
    with named("reading the clocks", axis.name, axis.rank, axis.size):
        for peer in range(1, axis.size):
            for _ in range(ROUNDS):
                asked = perf_counter()
                if axis.is_first:
                    transport.receive(clock, peer).wait()
                    transport.send(clock.fill_(perf_counter()), peer).wait()
                elif axis.rank == peer:
                    transport.send(clock, 0).wait()
                    transport.receive(clock, 0).wait()
                    answer = clock.item()  # on CUDA waits until it is there
                    if (trip := perf_counter() - asked) < fastest:
                        fastest = trip
                        lead = asked + trip / 2 - answer
    return lead
