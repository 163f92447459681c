"""Writes a run's metrics as TensorBoard events, in a thread of TensorBoard. A write error never stops training."""

import threading
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter


class Events:
    """Writes the numbers of the report's rows as TensorBoard scalars.

    A writer whose thread has failed cannot write any more, so the first error is raised once and all later rows are
    dropped.
    """

    def __init__(self, folder: str, purge_step: int | None):
        self.folder, self.purge_step = folder, purge_step
        self.failed = False
        self._writer: SummaryWriter | None = None
        self._hook_before = threading.excepthook
        threading.excepthook = self._hook

    def add(self, row: dict[str, Any]) -> None:
        """Writes the numbers of a row. Raises: OSError, once."""
        if self.failed:
            return
        kind = row.get("event") or row.get("split", "train")
        try:
            if self._writer is None:
                self._writer = SummaryWriter(self.folder, purge_step=self.purge_step)
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    self._writer.add_scalar(f"{kind}/{name}", value, row["step"])
        except OSError:
            self.failed = True
            raise

    def close(self) -> None:
        """Writes the remaining events. Raises: OSError if they cannot be written."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None and not self.failed:
                writer.flush()
                writer.close()
        except OSError:
            self.failed = True
            raise
        finally:
            if threading.excepthook == self._hook:
                threading.excepthook = self._hook_before

    def _hook(self, failure: threading.ExceptHookArgs) -> None:
        """Suppresses the traceback of TensorBoard's thread, which raises its error again in the next call."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._hook_before(failure)
