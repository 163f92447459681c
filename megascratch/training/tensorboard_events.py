"""TensorBoard's events of a run, written by a thread of its own; a disk that takes none of them stops nothing."""

import threading
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter


class Events:
    """Numbers of rows as curves.

    A writer whose thread has failed never writes again, so the first error is the last: it is raised once, and
    whatever comes later is dropped.
    """

    def __init__(self, folder: str, purge_step: int | None):
        self.folder, self.purge_step = folder, purge_step
        self.failed = False
        self._writer: SummaryWriter | None = None
        self._hook_before = threading.excepthook
        threading.excepthook = self._hook

    def add(self, row: dict[str, Any]) -> None:
        """The numbers of a row. Raises: OSError, once."""
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
        """Raises: OSError where the last events are not on the disk."""
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
        """The writer's thread keeps its error for the next call, and needs no traceback beside it."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._hook_before(failure)
