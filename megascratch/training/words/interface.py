"""What the words of a run are: how its rows are printed, and the tags of their numbers."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

Row = Mapping[str, Any]
"""A row of metrics.jsonl, or of one step (`iteration`), which is not written there."""

ITERATION = "iteration"
"""The event of the row of one step. Its numbers are those of this step, where a log line has means over its steps:

step, consumed_samples, batch_size, world_size; loss, NAME_loss and grad_norm, None where there is none;
next_learning_rate: of the step that follows; loss_scale: 1 without fp16; memory: `hardware.Memory`;
num_zeros, if they are counted; times: [ranks][phases] seconds (`RunMonitor.times`), of a step with a log line.
"""


class Points(NamedTuple):
    """The numbers of a row by tag."""

    by_step: dict[str, float]
    by_samples: dict[str, float]
    """Also drawn over the samples consumed so far."""
    samples: int
    """Consumed so far."""


class Words(Protocol):
    """How a run reports."""

    each_step: bool
    """Whether sinks get a row of each step (ITERATION) in addition to those of log lines."""

    def begin(self) -> str:
        """Printed before the first step; '' for nothing."""

    def log_line(self, row: Row, seconds_left: float) -> str:
        """A log line.

        Args:
            row: a training row of metrics.jsonl; if `each_step`, also with what the newest step's row has and it has
                not, and with mean_loss (of the steps that were applied), skipped and not_finite (steps).
            seconds_left: until the run is done.
        """

    def evaluation(self, row: Row) -> str:
        """The lines of a validation or test row."""

    def event(self, row: Row, text: str) -> str:
        """The lines of an event, such as a save.

        Args:
            text: what it is in our words.
        """

    def end(self, step: int, stopped_early: bool) -> str:
        """Printed after the last step of this process; '' for nothing."""

    def points(self, row: Row) -> Points:
        """The numbers of a row."""
