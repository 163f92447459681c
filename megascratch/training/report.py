"""Writes the report of a run: metrics.jsonl, console lines, loss.png, summary.json, and what other sinks take. Only the
first rank writes it.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from megascratch.config.exit_codes import FAILED
from megascratch.config.printable import printable_lines
from megascratch.config.verbosity import is_quiet
from megascratch.runtime.atomic_file import write_atomically
from megascratch.runtime.run_log import RUN_LOG
from megascratch.training.loss_picture import LossPicture
from megascratch.training.report_files import read_rows, read_summary, set_aside
from megascratch.training.sinks.chosen import GuardedSink
from megascratch.training.words.interface import Words
from megascratch.training.words.megascratch import OwnWords, number

Row = dict[str, Any]


class Report:
    """Takes one row for each log interval and each validation.

    On a terminal a progress bar with the newest step is shown below the log; elsewhere there are plain lines. A resumed
    run keeps the rows up to the step that it resumes from.

    Args:
        title: of loss.png.
        words: how it is printed; default: ours.
    """

    def __init__(
        self,
        folder: str,
        title: str,
        total_steps: int,
        first_step: int,
        words: Words | None = None,
    ):
        self.words: Words = words or OwnWords(total_steps)
        self.folder = Path(folder)
        self.total = total_steps
        self.metrics: IO[str] | None = None
        self.complaint = ""
        before = read_rows(self.folder / "metrics.jsonl")
        self.earlier = before.rows
        """The rows of earlier processes, also those after the step that this one resumes from."""
        self.rows = [row for row in before.rows if first_step and row["step"] <= first_step]
        self.sinks: Sequence[GuardedSink] = ()
        self.console = Console(highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=is_quiet() or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("train", total=total_steps, completed=first_step, loss="")
        self.bar.start()
        self.first_step = first_step
        self.started = time.monotonic()
        self.attempt(partial(self.folder.mkdir, parents=True, exist_ok=True))
        if before.damage and first_step:
            self._set_aside(before.damage)
        self.attempt(self._rewrite)
        self.picture: LossPicture | None = None
        self.attempt(partial(self._begin_picture, title))

    def say(self, text: str, always: bool = False) -> None:
        """Prints a message, and keeps it in the log of the run. With --quiet it is printed only if `always`:
        results and warnings."""
        if always or not is_quiet():
            self.bar.console.print(printable_lines(text), markup=False)
        RUN_LOG.info("%s", text)

    def step(self, row: Row, more: Row | None = None) -> None:
        """Writes and prints a training row.

        Args:
            more: what the words need in addition (`Words.log_line`); it is not written.
        """
        self._write(row)
        step = row["step"]
        loss = f"loss {number(row['loss'], '.4f')}"
        seconds_a_step = (time.monotonic() - self.started) / (step - self.first_step)
        left = seconds_a_step * (self.total - step)
        self.bar.update(self.task, completed=step, loss=loss)
        self.say(self.words.log_line({**(more or {}), **row}, left))
        self._look_at_picture()

    def iteration(self, row: Row) -> None:
        """Passes the row of a step on to the sinks only."""
        for sink in self.sinks:
            sink.add(row)

    def evaluation(self, row: Row) -> None:
        """Writes and prints a validation or test row: step, split, loss, tokens. A row that is already there, because a
        finished run was started again, is not written twice."""
        step = row["step"]
        if (step, row["split"]) not in [(old["step"], old.get("split")) for old in self.rows]:
            self._write(row)
        self.say(self.words.evaluation(row), always=True)
        self._look_at_picture()

    def event(self, row: Row, text: str) -> None:
        """Writes and prints an event, such as a save. `row` has step and event (its kind), and no loss."""
        self._write(row)
        self.say(self.words.event(row, text))

    def note(self, row: Row) -> None:
        """Writes an event without printing it."""
        self._write(row)

    def go_back(self, step: int) -> None:
        """Removes the rows after a step, which a rollback has undone."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        self.attempt(self._rewrite)
        self.bar.update(self.task, completed=step)

    def close(self, summary: Row) -> None:
        """Draws the loss curves, writes the summary and prints where each file is."""
        self.bar.stop()
        if self.metrics is None:
            self.attempt(self._rewrite)
        has_all_rows = self.metrics is not None
        written = []
        if self.attempt(self._put_away) and has_all_rows:
            written.append(f"metrics {self.folder / 'metrics.jsonl'}")
        if self.picture is not None and self.attempt(self.picture.finish):
            written.append(f"curve {self.folder / 'loss.png'}")
        if self.attempt(partial(self._summarize, summary)):
            written.append(f"summary {self.folder / 'summary.json'}")
        written += self._close_sinks(summary.get("exit_code", 0))
        self.say(
            " | ".join(written) or f"no file of the report could be written into {self.folder}",
            always=True,
        )

    def abandon(self) -> None:
        """Ends the files, the sinks and the picture of a run that has failed. Its rows stay; there is no summary."""
        self.bar.stop()
        self.attempt(self._put_away)
        if self.picture is not None:
            self.picture.close()
        self._close_sinks(FAILED)

    def attempt(self, work: Callable[[], object]) -> bool:
        """Writes a part of the report. An error never stops training: it is reported once, and missing rows are written
        together with the next one.

        Returns: whether it worked.
        """
        try:
            work()
        except Exception as error:
            with suppress(OSError):
                self._put_away()
            complaint = f"{type(error).__name__}: {error}"
            if isinstance(error, OSError):
                complaint = f"{error.filename or self.folder}: {error.strerror or error}"
            if complaint != self.complaint:
                self.complaint = complaint
                self.say(
                    f"warning: the report of the run cannot be written: {complaint}; training continues"
                )
            return False
        return True

    def _write(self, row: Row) -> None:
        self.rows.append(row)
        self.attempt(partial(self._append, row))
        for sink in self.sinks:
            sink.add(row)

    def _append(self, row: Row) -> None:
        if self.metrics is None:  # an earlier line is missing
            self._rewrite()
        else:
            self.metrics.write(_json(row) + "\n")

    def _rewrite(self) -> None:
        """Writes all rows to a new file, which replaces the old one when it is complete."""
        self._put_away()
        path = self.folder / "metrics.jsonl"
        text = "".join([_json(row) + "\n" for row in self.rows])
        write_atomically(path, text)
        self.metrics = path.open("a", encoding="utf-8", buffering=1)

    def _put_away(self) -> None:
        metrics = self.metrics
        self.metrics = None
        if metrics is not None:
            metrics.close()

    def _summarize(self, summary: Row) -> None:
        """Writes the summary. A run that trained nothing keeps what the run has measured before at the same step."""
        file = self.folder / "summary.json"
        before = read_summary(file) if summary.get("seconds") == 0 else {}
        if before and before.get("steps") == summary.get("steps"):
            kept = ["layout", "stopped_early", "exit_code"]
            if summary.get("valid_loss") is not None:
                kept.append("valid_loss")
            summary = before | {name: summary[name] for name in kept}
        text = _json(summary, indent=2) + "\n"
        write_atomically(file, text)

    def _set_aside(self, damage: str) -> None:
        aside = set_aside(self.folder / "metrics.jsonl")
        kept = (
            f"the damaged file is kept as {aside}"
            if aside
            else "the damaged file could not be kept"
        )
        self.say(f"warning: {damage}; {kept}")

    def _begin_picture(self, title: str) -> None:
        self.picture = LossPicture(self.folder, title)

    def _look_at_picture(self) -> None:
        if self.picture is not None:
            self.attempt(self.picture.look)

    def _close_sinks(self, exit_code: int) -> list[str]:
        """Ends all sinks. Returns: how to look at the numbers of each."""
        wheres = [sink.close(exit_code) for sink in self.sinks]
        return [where for where in wheres if where]


def _json(row: Row, indent: int | None = None) -> str:
    """A row as JSON. JSON has no nan or infinity (the norm of a step that overflowed), so these become null."""
    finite = {}
    for name, value in row.items():
        not_finite = isinstance(value, float) and not math.isfinite(value)
        finite[name] = None if not_finite else value
    return json.dumps(finite, indent=indent)
