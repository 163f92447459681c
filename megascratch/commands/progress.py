"""Shows the progress of a command: a bar on a terminal, otherwise lines in its log; nothing with --quiet."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from megascratch.commands.input_output import BadLines
from megascratch.config.verbosity import is_quiet, note
from megascratch.data.preprocess.encode import EncodeStep
from megascratch.data.preprocess.output_shards import KeyCounts

SHARES = 10
"""Lines that `Steps` prints where there is no terminal."""


class Steps:
    """Shows how many of a known number of equal steps are done.

    Args:
        what: the steps, such as 'batches'.
    """

    def __init__(self, what: str):
        self._what = what
        self._bar: _Bar | None = None
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` steps are done; called after each step. A log has no line for the last
        one, because the result follows."""
        if is_quiet():
            return
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = _Bar(total, counts_bytes=False)
            self._bar.advance(1, f"{done:,} of {total:,} {self._what}")
            if done == total:
                self._bar.stop()
        elif done < total and done * SHARES // total > self._shown:
            self._shown = done * SHARES // total
            note(f"{done:,} of {total:,} {self._what}")


class Progress:
    """Counts and shows what `megascratch preprocess` encodes.

    Args:
        interval: documents per line.
        total: bytes of the input; None: unknown.
    """

    def __init__(self, interval: int, total: int | None):
        self._interval = interval
        self._bar = _Bar(total) if sys.stderr.isatty() and not is_quiet() else None
        self._documents = 0
        self._tokens = 0
        self._text_bytes = 0
        self._started = time.monotonic()
        self.bad_lines = BadLines()

    def step(self, step: EncodeStep) -> None:
        """Adds what a step of the encoding has done."""
        previous = self._documents
        self._documents += step.documents
        self._tokens += step.tokens
        self._text_bytes += step.text_bytes
        if self._bar:
            self._bar.advance(step.raw_bytes, self._rate())
        elif self._documents // self._interval > previous // self._interval:
            line = f"{self._documents:,} documents, {self._tokens:,} tokens, {self._rate()}"
            note(line)

    def found(self, raw_bytes: int) -> None:
        """Adds input that an earlier run has already encoded."""
        if self._bar:
            self._bar.skip(raw_bytes)

    def bad(self, line: str) -> None:
        """Reports a line that gives no document."""
        self.bad_lines.add(line)

    def summary(self, counts: Sequence[KeyCounts], bad_lines: int) -> str:
        """The final counts and speed in one line."""
        tokens = sum(key.tokens for key in counts)
        text_bytes = sum(key.text_bytes for key in counts)
        return (
            f"{counts[0].documents:,} documents, {tokens:,} tokens, {text_bytes:,} bytes of text, {self._rate()}, "
            f"{bad_lines} bad line{'' if bad_lines == 1 else 's'}"
        )

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return (
            f"{self._text_bytes / seconds / 1e6:.2f} MB/s, {self._tokens / seconds:,.0f} tokens/s"
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()


class _Bar:
    """A progress bar; rich is imported only if there is a terminal."""

    def __init__(self, total: int | None, counts_bytes: bool = True):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns: list[Any] = [BarColumn()]
        if counts_bytes:
            columns.append(DownloadColumn())
        columns += [TextColumn("{task.fields[rate]}"), TimeRemainingColumn()]
        self._bars = Bars(*columns, console=Console(stderr=True))
        self._task = self._bars.add_task("", total=total, rate="")
        self._bars.start()

    def advance(self, amount: int, rate: str) -> None:
        """Adds bytes or steps; `rate` is shown next to the bar."""
        self._bars.update(self._task, advance=amount, rate=rate)

    def skip(self, raw_bytes: int) -> None:
        """Adds work of an earlier run, which must not count for the estimate of the time left."""
        self._bars.update(self._task, advance=raw_bytes)
        self._bars.reset(self._task, completed=int(self._bars.tasks[0].completed), rate="")

    def stop(self) -> None:
        self._bars.stop()
