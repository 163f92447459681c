"""Writes the numbers of a run as TensorBoard events."""

import threading

from megascratch.config.printable import printable_lines
from megascratch.training.sinks.sink import RunIdentity
from megascratch.training.words.interface import Row

VS_SAMPLES = " vs samples"
"""Ends the tag of a number whose x axis is the samples."""


class TensorBoard:
    """Writes scalars, and the settings as a text, in a thread of TensorBoard. A resumed run replaces the points after
    the step that it resumes from, unless some are drawn over samples.

    A writer whose thread has failed cannot write any more, and raises the error of its thread in the next call.
    """

    def __init__(self, run: RunIdentity):
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

        self.folder = run.tensorboard_dir
        self._points = run.words.points
        self._hook_before = threading.excepthook
        threading.excepthook = self._hook
        # a reader also purges points over samples whose number is not below purge_step
        purges = run.first_step and not run.words.each_step
        purge_step = run.first_step + 1 if purges else None
        try:
            self._writer = SummaryWriter(self.folder, purge_step=purge_step)
            text = printable_lines(run.config_text).replace("\n", "\n    ")
            self._writer.add_text("settings", f"    {text}", run.first_step)
        except BaseException:
            threading.excepthook = self._hook_before
            raise

    def add(self, row: Row) -> None:
        """Writes the numbers of a row. Raises: OSError."""
        points = self._points(row)
        for tag, value in points.by_step.items():
            self._writer.add_scalar(tag, value, row["step"])
        for tag, value in points.by_samples.items():
            self._writer.add_scalar(f"{tag}{VS_SAMPLES}", value, points.samples)

    def close(self, exit_code: int) -> str:
        """Writes the remaining events. Raises: OSError if they cannot be written."""
        try:
            self._writer.flush()
            self._writer.close()
        finally:
            if threading.excepthook == self._hook:
                threading.excepthook = self._hook_before
        return f"events: tensorboard --logdir {self.folder}"

    def _hook(self, failure: threading.ExceptHookArgs) -> None:
        """Suppresses the traceback of TensorBoard's thread, which raises its error again in the next call."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._hook_before(failure)
