"""What the pipeline's tests share: pictures to orders and back."""

from megascratch.pipeline.passes import draw
from megascratch.pipeline.schedule import SCHEDULES, Action


def parse(*lines: str) -> list[list[Action]]:
    """The orders that `draw` prints as these lines."""
    return [[Action.parse(word) for word in line.split()] for line in lines]


def compute_lines(
    schedule: str, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None
) -> list[str]:
    """The compute of every rank."""
    return draw(
        [
            SCHEDULES[schedule].make(rank, ranks, microbatches, chunks, group)
            for rank in range(ranks)
        ]
    )
