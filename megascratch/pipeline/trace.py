"""Compares the measured timeline of one pipeline step with a simulation of the same orders and times."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from statistics import fmean, median

from megascratch.pipeline.passes import LinkKey, Orders, RankAction, link_of
from megascratch.pipeline.recorder import RankTiming
from megascratch.pipeline.schedule import COMPUTE, Action, Placement
from megascratch.pipeline.simulate import TimedAction, Timeline, simulate
from megascratch.pipeline.stage_times import StageTimes, cost_of

WAITED = 1e-4  # seconds: receiving a message that has already arrived takes less


@dataclass(frozen=True)
class Trace:
    """One step of one pipeline."""

    orders: Orders  # as compiled
    placement: Placement
    happened: Timeline  # times from the first start of any rank
    waits: Sequence[Mapping[Action, float]]  # for each rank: receive -> seconds for which it waited

    @classmethod
    def of(cls, orders: Orders, placement: Placement, ranks: Sequence[RankTiming]) -> "Trace":
        """`ranks`: `Recorder.notes` of each. A send ends when its receiver has the message."""
        ended: dict[RankAction, float] = {}
        for rank, notes in enumerate(ranks):
            for action, _, end in notes.spans:
                ended[rank, action] = end
        zero = min(span.start for notes in ranks for span in notes.spans)
        shifted = []
        for rank, notes in enumerate(ranks):
            spans = []
            for action, start, end in notes.spans:
                if action.op in ("SF", "SB"):
                    receive = placement.other_end(rank, action)
                    end = ended.get(receive, end)
                spans.append(TimedAction(action, start - zero, end - zero))
            shifted.append(spans)
        return cls(orders, placement, Timeline(shifted), [notes.waits for notes in ranks])

    @cached_property
    def played(self) -> Timeline:
        """The simulation with the measured time of each action; `happened` is longer by the overhead of the runtime."""
        seconds = {(rank, action): end - start for rank, action, start, end in self._spans()}
        links = self._transfers()

        def cost(rank: int, action: Action) -> float:
            if action.op in COMPUTE:
                return seconds[rank, action]
            return links[link_of(rank, action, self.placement)]

        return simulate(self.orders, cost, self.placement)

    @cached_property
    def typical(self) -> Timeline:
        """The simulation with the mean times per virtual stage, as in `schedule simulate --times`."""
        return simulate(self.orders, cost_of(self.times, self.placement), self.placement)

    @cached_property
    def times(self) -> list[StageTimes]:
        """Mean times in seconds, a row per virtual stage, so that the total compute time of a rank is unchanged. A
        combined backward is listed under B with W = 0."""
        links = self._transfers()
        rows = []
        for virtual in range(self.placement.stages):
            rank, chunk = self.placement.place(virtual)
            took: dict[str, list[float]] = defaultdict(list)
            sent: list[float] = []
            for action, start, end in self.happened.spans[rank]:
                if action.chunk != chunk:
                    continue
                took[action.op].append(end - start)
                if action.op in ("SF", "SB"):
                    sent.append(links[link_of(rank, action, self.placement)])
            rows.append(
                StageTimes(
                    F=fmean(took["F"]),
                    B=fmean(took["I"] or took["B"]),
                    W=fmean(took["W"] or [0.0]),
                    comm=fmean(sent or [0.0]),
                )
            )
        return rows

    @property
    def disorder(self) -> str | None:
        """Describes the first action that ran out of order; None if all ran as compiled."""
        for rank, (order, spans) in enumerate(zip(self.orders, self.happened.spans, strict=True)):
            for wanted, span in zip_longest(order, spans):
                ran = span.action if span is not None else None
                if ran != wanted:
                    return f"rank {rank} ran {ran or 'nothing'} where its order has {wanted or 'nothing'}"
        return None

    def _spans(self) -> list[tuple[int, Action, float, float]]:
        """(rank, action, start, end) of everything that happened."""
        found = []
        for rank, spans in enumerate(self.happened.spans):
            found += [(rank, *span) for span in spans]
        return found

    def _transfers(self) -> dict[LinkKey, float]:
        """The typical transfer time of each link, from the moment both ends were ready: the median of the messages that
        the receiver waited for. For other messages only the time of the check is known, not of the arrival; the fastest
        of these is used if a link has no messages of the first kind."""
        ready = {(rank, action): start for rank, action, start, _ in self._spans()}
        awaited: dict[LinkKey, list[float]] = defaultdict(list)
        looked_at: dict[LinkKey, list[float]] = defaultdict(list)
        for rank, action, start, end in self._spans():
            if action.op in ("RF", "RB"):
                link = link_of(rank, action, self.placement)
                sent = ready.get(self.placement.other_end(rank, action), start)
                seconds = max(0.0, end - max(start, sent))
                waited = self.waits[rank].get(action, 0.0)
                kind = awaited if waited > WAITED else looked_at
                kind[link].append(seconds)
        fastest = {link: min(seconds) for link, seconds in looked_at.items()}
        typical = {link: median(seconds) for link, seconds in awaited.items()}
        return fastest | typical
