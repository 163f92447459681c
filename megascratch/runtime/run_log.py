"""The log of a run: `RUN_LOG` takes every message of its first rank, `open_log` adds a file that keeps them, with time.

The console shows the messages anyway, so until a file is open, and on all other ranks, the log keeps nothing.
"""

import logging
import sys
from pathlib import Path

from megascratch.config.printable import printable, printable_lines

FILE = "log.txt"
RUN_LOG = logging.getLogger("megascratch.run")
RUN_LOG.setLevel(logging.INFO)
RUN_LOG.propagate = False
RUN_LOG.addHandler(logging.NullHandler())


class LogFile(logging.FileHandler):
    """Appends messages to a file. The first error is reported on stderr; none stops the run."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8")
        self.setFormatter(_Printable("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._complained = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by `logging` when a message could not be written."""
        if not self._complained:
            self._complained = True
            _warn(Path(self.baseFilename), sys.exc_info()[1])


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def open_log(folder: str) -> LogFile | None:
    """From now on `RUN_LOG` also writes to {folder}/log.txt, after what is there. None, with a warning, if that cannot
    be written."""
    path = Path(folder, FILE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = LogFile(path)
    except OSError as error:
        _warn(path, error)
        return None
    RUN_LOG.addHandler(file)
    return file


def close_log(file: LogFile | None) -> None:
    """Ends the file; `RUN_LOG` keeps nothing after it."""
    if file is not None:
        RUN_LOG.removeHandler(file)
        file.close()


def _warn(path: Path, error: BaseException | None) -> None:
    reason = getattr(error, "strerror", None) or error
    text = f"the log cannot be written: {path}: {reason}; training continues"
    print(f"megascratch pretrain: warning: {printable(text)}", file=sys.stderr, flush=True)
