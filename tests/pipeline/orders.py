"""What the pipeline's tests share: pictures to orders and back, and a schedule that the package does not know."""

from megascratch.pipeline.passes import draw
from megascratch.pipeline.schedule import SCHEDULES, Action


def parse(*lines: str) -> list[list[Action]]:
    """The orders that `draw` prints as these lines."""
    return [[Action.parse(word) for word in line.split()] for line in lines]


def picture(schedule: str, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None) -> list[str]:
    """The compute of every rank."""
    return draw([SCHEDULES[schedule](rank, ranks, microbatches, chunks, group) for rank in range(ranks)])


def zero_bubble(rank: int, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None) -> list[Action]:
    """1F1B with its backward in two halves: later ranks put more weight gradients off, and fill the end with them (the
    schedule H1 of Qi et al. 2023, arXiv 2401.10241)."""
    warmup = min(ranks - rank - 1, microbatches)
    order = [Action("F", m) for m in range(warmup)]
    for m in range(microbatches):
        order += [Action("F", warmup + m)] if warmup + m < microbatches else []
        order += [Action("I", m)]
        order += [Action("W", m - rank)] if m >= rank else []
    return order + [Action("W", m) for m in range(max(microbatches - rank, 0), microbatches)]
