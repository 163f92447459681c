"""Writes the report of a run: metrics.jsonl, TensorBoard events, console lines, loss.png and summary.json. Only the
first rank writes it.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard.writer import SummaryWriter

from megascratch.config.printable import printable, printable_lines
from megascratch.runtime.atomic_file import atomic_file, write_atomically
from megascratch.training.report_files import ReportRows, read_rows, read_summary, set_aside

Row = dict[str, Any]


class Report:
    """Takes one row for each log interval and each validation.

    On a terminal a progress bar with the newest step is shown below the log; elsewhere there are plain lines. A resumed
    run keeps the rows up to the step that it resumes from.
    """

    def __init__(self, folder: str, tensorboard_dir: str, total_steps: int, first_step: int):
        self.folder = Path(folder)
        self.total = total_steps
        self.metrics: IO[str] | None = None
        self.complaint = ""
        before = read_rows(self.folder / "metrics.jsonl") if first_step else ReportRows([], "")
        self.rows = [row for row in before.rows if row["step"] <= first_step]
        self.events = Events(tensorboard_dir, first_step + 1 if first_step else None)
        self.console = Console(highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("train", total=total_steps, completed=first_step, loss="")
        self.bar.start()
        self.first_step = first_step
        self.started = time.monotonic()
        self._attempt(partial(self.folder.mkdir, parents=True, exist_ok=True))
        if before.damage:
            self._set_aside(before.damage)
        self._attempt(self._rewrite)

    def say(self, text: str) -> None:
        self.bar.console.print(printable_lines(text), markup=False)

    def step(self, row: Row) -> None:
        """Writes and prints a training row."""
        self._write(row)
        step = row["step"]
        loss = f"loss {_number(row['loss'], '.4f')}"
        seconds_a_step = (time.monotonic() - self.started) / (step - self.first_step)
        left = seconds_a_step * (self.total - step)
        self.bar.update(self.task, completed=step, loss=loss)
        figures = [
            f"step {step:>6}/{self.total}",
            loss,
            f"grad norm {_number(row['grad_norm'], '.3f')}",
            f"lr {row['learning_rate']:.3e}",
            f"{row['tokens_per_second']:,.0f} tokens/s",
            f"MFU {row['mfu']:.1%}",
            f"memory {row['memory_bytes'] / 2**30:.2f} GiB",
            f"left {_clock(left)}",
        ]
        figures[2:2] = _side_losses(row)
        if "loss_scale" in row:
            figures.append(f"overflowed {row['skipped_steps']}, loss scale {row['loss_scale']:g}")
        if row.get("steps_without_tokens"):
            figures.append(f"{row['steps_without_tokens']} without a token to learn")
        self.say(" | ".join(figures))

    def evaluation(self, row: Row) -> None:
        """Writes and prints a validation or test row: step, split, loss, tokens. A row that is already there, because a
        finished run was started again, is not written twice."""
        step = row["step"]
        split = row["split"]
        loss = row["loss"]
        if (step, split) not in [(old["step"], old.get("split")) for old in self.rows]:
            self._write(row)
        side_losses = "".join(f" | {figure}" for figure in _side_losses(row))
        perplexity = None if loss is None else math.exp(min(loss, 700))
        self.say(
            f"step {step:>6} | {split} loss {_number(loss, '.4f')} | "
            f"perplexity {_number(perplexity, '.2f')} | {row['tokens']:,} tokens{side_losses}"
        )

    def event(self, row: Row, text: str) -> None:
        """Writes and prints an event, such as a save. `row` has step and event (its kind), and no loss."""
        self._write(row)
        self.say(text)

    def go_back(self, step: int) -> None:
        """Removes the rows after a step, which a rollback has undone."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        self._attempt(self._rewrite)
        self.bar.update(self.task, completed=step)

    def close(self, summary: Row) -> None:
        """Draws the loss curves, writes the summary and prints where each file is."""
        self.bar.stop()
        if self.metrics is None:
            self._attempt(self._rewrite)
        has_all_rows = self.metrics is not None
        written = []
        if self._attempt(self._put_away) and has_all_rows:
            written.append(f"metrics {self.folder / 'metrics.jsonl'}")
        if self._attempt(partial(draw_losses, self.rows, self.folder / "loss.png")):
            written.append(f"curve {self.folder / 'loss.png'}")
        if self._attempt(partial(self._summarize, summary)):
            written.append(f"summary {self.folder / 'summary.json'}")
        if self._attempt(self.events.close) and not self.events.failed:
            written.append(f"events: tensorboard --logdir {self.events.folder}")
        self.say(
            " | ".join(written) or f"no file of the report could be written into {self.folder}"
        )

    def abandon(self) -> None:
        """Closes the files of a run that has failed. Their rows stay; there is no curve and no summary."""
        self.bar.stop()
        self._attempt(self._put_away)
        self._attempt(self.events.close)

    def _write(self, row: Row) -> None:
        self.rows.append(row)
        self._attempt(partial(self._append, row))
        self._attempt(partial(self.events.add, row))

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
        """Writes the summary. A run that had nothing left to train keeps what the previous run has measured."""
        file = self.folder / "summary.json"
        before = read_summary(file) if summary.get("seconds") == 0 else {}
        if before:
            summary = before | {
                name: summary[name] for name in ("layout", "stopped_early", "exit_code")
            }
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

    def _attempt(self, work: Callable[[], object]) -> bool:
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


class Events:
    """Writes the numbers of the report's rows as TensorBoard scalars, in a thread of TensorBoard.

    A writer whose thread has failed cannot write any more, so the first error is raised once and all later rows are
    dropped.
    """

    def __init__(self, folder: str, purge_step: int | None):
        self.folder = folder
        self.purge_step = purge_step
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
        writer = self._writer
        self._writer = None
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


def draw_losses(rows: Iterable[Row], file: Path) -> None:
    """Draws training and validation loss over steps into a PNG file."""
    from matplotlib.figure import Figure  # slow to import, and only the end of a run needs it

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row.get("loss") is not None:
            curve = curves.setdefault(row.get("split", "train"), [])
            curve.append((row["step"], row["loss"]))
    for name, curve in curves.items():
        steps, losses = zip(*curve, strict=True)
        label = printable(name).replace("$", r"\$")  # matplotlib reads formulas
        marker = None if name == "train" else "o"
        axes.plot(steps, losses, label=label, marker=marker, linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if curves:
        axes.legend()
    with atomic_file(file) as picture:
        figure.savefig(picture, dpi=120, format="png")


def _json(row: Row, indent: int | None = None) -> str:
    """A row as JSON. JSON has no nan or infinity (the norm of a step that overflowed), so these become null."""
    finite = {}
    for name, value in row.items():
        not_finite = isinstance(value, float) and not math.isfinite(value)
        finite[name] = None if not_finite else value
    return json.dumps(finite, indent=indent)


def _side_losses(row: Row) -> list[str]:
    """The losses of the side terms, which have columns of their own: NAME_loss."""
    figures = []
    for column, value in row.items():
        if column.endswith("_loss"):
            figures.append(f"{column.removesuffix('_loss')} loss {_number(value, '.4f')}")
    return figures


def _number(value: float | None, form: str) -> str:
    """A number in its format; a dash if there is none."""
    return "-" if value is None else format(value, form)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
