"""Times two things fairly on a noisy machine: in turn, after a warm-up, and the median of the ratios pair by pair."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Pair(NamedTuple):
    """Medians over the rounds."""

    ours: float  # seconds
    theirs: float
    ratio: float  # theirs / ours: above 1 we are faster
    low: float  # quartiles of the ratio
    high: float

    def __str__(self) -> str:
        return (
            f"ours {self.ours * 1e3:8.1f} ms   theirs {self.theirs * 1e3:8.1f} ms   "
            f"speed {self.ratio:.3f}x (quartiles {self.low:.3f} to {self.high:.3f})"
        )


def alternate(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    warmup: int = 3,
    between: Callable[[], object] = lambda: None,
) -> Pair:
    """Runs A B, B A, A B ... so that neither side always comes first; `between` behind each, outside of the clock."""
    times: list[tuple[float, float]] = []
    for i in range(warmup + rounds):
        order = (ours, theirs) if i % 2 == 0 else (theirs, ours)
        seconds = {}
        for side in order:
            seconds[side] = _seconds(side)
            between()
        if i >= warmup:
            times.append((seconds[ours], seconds[theirs]))
    ratios = [b / a for a, b in times]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Pair(
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        middle,
        low,
        high,
    )


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
