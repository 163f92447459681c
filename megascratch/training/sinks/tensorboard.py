"""Writes the numbers of a run as TensorBoard events."""

import threading

from megascratch.config.printable import printable_lines
from megascratch.training.sinks.sink import Row, RunIdentity, numbers


class TensorBoard:
    """Writes scalars, and the settings as a text, in a thread of TensorBoard. A resumed run replaces the points after
    the step that it resumes from.

    A writer whose thread has failed cannot write any more, and raises the error of its thread in the next call.
    """

    def __init__(self, run: RunIdentity):
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

        self.folder = run.tensorboard_dir
        self._hook_before = threading.excepthook
        threading.excepthook = self._hook
        purge_step = run.first_step + 1 if run.first_step else None
        try:
            self._writer = SummaryWriter(self.folder, purge_step=purge_step)
            text = printable_lines(run.config_text).replace("\n", "\n    ")
            self._writer.add_text("settings", f"    {text}", run.first_step)
        except BaseException:
            threading.excepthook = self._hook_before
            raise

    def add(self, row: Row) -> None:
        """Writes the numbers of a row. Raises: OSError."""
        for tag, value in numbers(row).items():
            self._writer.add_scalar(tag, value, row["step"])

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
