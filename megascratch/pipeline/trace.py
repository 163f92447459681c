"""What all ranks did in one step in, beside it the same orders as the simulator plays them with the measured times."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from statistics import fmean, median

from megascratch.pipeline.passes import LinkKey, Orders, link_of
from megascratch.pipeline.recorder import RankTiming
from megascratch.pipeline.schedule import COMPUTE, Action, Placement
from megascratch.pipeline.simulate import TimedAction, Timeline, simulate
from megascratch.pipeline.stage_times import StageTimes, cost_of

STOOD_STILL = 1e-4  # seconds: a message that is there already is taken in less


@dataclass(frozen=True)
class Trace:
    """One step of one pipeline."""

    orders: Orders  # as compiled
    placement: Placement
    happened: Timeline  # from the first start of any rank on
    waits: Sequence[Mapping[Action, float]]  # of each rank: receive -> seconds for which it stood still

    @classmethod
    def of(cls, orders: Orders, placement: Placement, ranks: Sequence[RankTiming]) -> "Trace":
        """`ranks`: `Recorder.notes` of each. A send ends when its receiver has it."""
        spans = [notes.spans for notes in ranks]
        zero = min(span.start for of_rank in spans for span in of_rank)
        got = {(rank, span.action): span.end for rank, of_rank in enumerate(spans) for span in of_rank}

        def end(rank: int, span: TimedAction) -> float:
            sends = span.action.op in ("SF", "SB")
            return got.get(placement.other_end(rank, span.action), span.end) if sends else span.end

        shifted = [
            [TimedAction(s.action, s.start - zero, end(rank, s) - zero) for s in of_rank]
            for rank, of_rank in enumerate(spans)
        ]
        return cls(orders, placement, Timeline(shifted), [notes.waits for notes in ranks])

    @cached_property
    def played(self) -> Timeline:
        """Each action takes what it took: what is left beside `happened` is the runtime's own loss."""
        seconds = {(rank, action): end - start for rank, action, start, end in self._spans() if action.op in COMPUTE}
        links = self._transfers()

        def cost(rank: int, action: Action) -> float:
            if action.op in COMPUTE:
                return seconds[rank, action]
            return links[link_of(rank, action, self.placement)]

        return simulate(self.orders, cost, self.placement)

    @cached_property
    def typical(self) -> Timeline:
        """Each action takes what its kind took on its virtual stage: as `schedule simulate --times` shows it."""
        return simulate(self.orders, cost_of(self.times, self.placement), self.placement)

    @cached_property
    def times(self) -> list[StageTimes]:
        """Means in seconds, a row per virtual stage: so a rank computes as long as it did. A backward that ran in one
        piece stands under B with W = 0."""
        links, rows = self._transfers(), []
        for virtual in range(self.placement.stages):
            rank, chunk = self.placement.place(virtual)
            of_stage = [span for span in self.happened.spans[rank] if span.action.chunk == chunk]
            took = {op: [s.end - s.start for s in of_stage if s.action.op == op] for op in COMPUTE}
            sent = [links[link_of(rank, s.action, self.placement)] for s in of_stage if s.action.op in ("SF", "SB")]
            rows.append(
                StageTimes(
                    fmean(took["F"]), fmean(took["I"] or took["B"]), fmean(took["W"] or [0.0]), fmean(sent or [0.0])
                )
            )
        return rows

    @property
    def disorder(self) -> str | None:
        """The first action that ran where the order has another; None: all ran as compiled."""
        for rank, (order, spans) in enumerate(zip(self.orders, self.happened.spans, strict=True)):
            for wanted, span in zip_longest(order, spans):
                ran = span.action if span is not None else None
                if ran != wanted:
                    return f"rank {rank} ran {ran or 'nothing'} where its order has {wanted or 'nothing'}"
        return None

    def _spans(self) -> list[tuple[int, Action, float, float]]:
        return [(rank, *span) for rank, spans in enumerate(self.happened.spans) for span in spans]

    def _transfers(self) -> dict[LinkKey, float]:
        """Of each link the median time of a message from the moment both ends were ready, over those whose receiver
        stood and waited. When another one came is not known, only when it was looked at: where there are no others,
        the fastest of them."""
        ready = {(rank, action): start for rank, action, start, _ in self._spans()}
        awaited: dict[LinkKey, list[float]] = defaultdict(list)
        looked_at: dict[LinkKey, list[float]] = defaultdict(list)
        for rank, action, start, end in self._spans():
            if action.op in ("RF", "RB"):
                link = link_of(rank, action, self.placement)
                sent = ready.get(self.placement.other_end(rank, action), start)
                kind = awaited if self.waits[rank].get(action, 0.0) > STOOD_STILL else looked_at
                kind[link].append(max(0.0, end - max(start, sent)))
        return {
            link: median(awaited[link]) if awaited[link] else min(looked_at[link]) for link in {*awaited, *looked_at}
        }
