"""Opens the sinks that the settings name, and keeps an error of a sink away from the run."""

from collections.abc import Callable, Sequence
from functools import partial

from megascratch.config.registry import look_up
from megascratch.training.sinks.open_telemetry import OpenTelemetry
from megascratch.training.sinks.sink import NONE, OpenSink, Row, RunIdentity, Sink
from megascratch.training.sinks.tensorboard import TensorBoard
from megascratch.training.sinks.trackers import Trackio, WandB

SINKS: dict[str, OpenSink] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "otel": OpenTelemetry,
}


DEFAULT = ("tensorboard",)
"""The sinks of a run whose settings name none."""


class GuardedSink:
    """A sink that is opened with the first row. Its first error ends it with a warning; training continues.

    Args:
        warn: prints a warning.
    """

    def __init__(self, name: str, open_sink: Callable[[], Sink], warn: Callable[[str], None]):
        self.name = name
        self._open = open_sink
        self._warn = warn
        self._sink: Sink | None = None
        self._failed = False

    def add(self, row: Row) -> None:
        """Passes a row on."""
        if self._failed:
            return
        try:
            if self._sink is None:
                self._sink = self._open()
            self._sink.add(row)
        except Exception as error:
            self._fail(error)

    def close(self, exit_code: int) -> str:
        """Ends the sink. Returns: how to look at the numbers; '' if they are not all there."""
        sink = self._sink
        self._sink = None
        if sink is None:
            return ""
        try:
            where = sink.close(exit_code)
        except Exception as error:
            self._fail(error)
            return ""
        return "" if self._failed else where

    def _fail(self, error: Exception) -> None:
        if self._failed:
            return
        self._failed = True
        reason = getattr(error, "strerror", None) or str(error) or "no reason given"
        self._warn(
            f"warning: nothing more is logged to {self.name}: {type(error).__name__}: {reason}; training continues"
        )


def chosen_sinks(
    names: Sequence[str], run: RunIdentity, warn: Callable[[str], None]
) -> list[GuardedSink]:
    """The sinks of a run, none of which is open yet."""
    sinks = []
    for name in dict.fromkeys(names):
        if name != NONE:
            opened = partial(look_up("sink", name, SINKS), run)
            sinks.append(GuardedSink(name, opened, warn))
    return sinks
