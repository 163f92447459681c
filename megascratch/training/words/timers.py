"""Megatron-LM's timers: the times of the parts of a step over the ranks, as it prints them.

Of its timers there are those of the phases of a step (`runtime.timers`), measured in the steps that have a log line. A
rank's time is its own: waits for other ranks, which are in its timers there, are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from megascratch.runtime.timers import PHASES

Spread = Literal["minmax", "max", "all"]
"""Which of the ranks' times are printed."""

WIDTH = 48
"""Of a name with the dots behind it."""


class Timer(NamedTuple):
    """A timer of Megatron-LM."""

    name: str
    level: int
    """The lowest log level at which it is printed."""
    phase: int
    """Index into PHASES."""


TIMERS = (
    Timer("forward-backward", 1, PHASES.index("forward and backward")),
    Timer("optimizer", 1, PHASES.index("update")),
    Timer("batch-generator", 2, PHASES.index("data")),
)


def timed(own: Sequence[Sequence[float]], level: int) -> dict[str, list[float]]:
    """Timer -> seconds on each rank, for the timers of a log level.

    Args:
        own: [ranks][phases] seconds.
    """
    times = {}
    for timer in TIMERS:
        if timer.level <= level:
            times[timer.name] = [rank[timer.phase] for rank in own]
    return times


def timer_lines(times: Mapping[str, Sequence[float]], spread: Spread) -> str:
    """The lines that print the timers, in ms; '' if there are none."""
    if not times:
        return ""
    if spread == "all":
        lines = ["times across ranks (ms):"]
        for name, seconds in times.items():
            lines.append(f"  {name}:")
            lines += [f"     rank {rank:2d}: {1e3 * one:.2f}" for rank, one in enumerate(seconds)]
        return "\n".join(lines)
    both = spread == "minmax"
    lines = [f"{'(min, max)' if both else 'max'} time across ranks (ms):"]
    for name, seconds in times.items():
        most = f"{1e3 * max(seconds):.2f}"
        value = f"({1e3 * min(seconds):.2f}, {most})" if both else most
        lines.append(f"    {f'{name} '.ljust(WIDTH, '.')}: {value}")
    return "\n".join(lines)
