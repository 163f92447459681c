"""What a run tells: metrics.jsonl, TensorBoard events, console lines, loss.png and summary.json; on the first rank
only.
"""

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard.writer import SummaryWriter

Row = dict[str, Any]


class Report:
    """Takes a row per log interval and per validation.

    On a terminal the newest step stands under the log as a live bar; elsewhere there are plain lines. A resumed run
    keeps the rows up to the step that it goes on from.
    """

    def __init__(self, folder: str, tensorboard_dir: str, total_steps: int, first_step: int):
        self.folder, self.total = Path(folder), total_steps
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = _rows_until(self.folder / "metrics.jsonl", first_step)
        self.metrics = (self.folder / "metrics.jsonl").open("w", encoding="utf-8", buffering=1)
        self.metrics.writelines(_json(row) + "\n" for row in self.rows)
        self.events = SummaryWriter(tensorboard_dir, purge_step=first_step + 1 if first_step else None)
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
        self.first_step, self.started = first_step, time.monotonic()

    def say(self, text: str) -> None:
        self.bar.console.print(text, markup=False)

    def step(self, row: Row) -> None:
        """A training row."""
        self._write(row)
        left = (time.monotonic() - self.started) / (row["step"] - self.first_step) * (self.total - row["step"])
        self.bar.update(self.task, completed=row["step"], loss=f"loss {row['loss']:.4f}")
        self.say(
            f"step {row['step']:>6}/{self.total} | loss {row['loss']:.4f} | grad norm {row['grad_norm']:.3f} | "
            f"lr {row['learning_rate']:.3e} | {row['tokens_per_second']:,.0f} tokens/s | MFU {row['mfu']:.1%} | "
            f"memory {row['memory_bytes'] / 2**30:.2f} GiB | left {_clock(left)}"
            + (f" | overflowed {row['skipped_steps']}, loss scale {row['loss_scale']:g}" if "loss_scale" in row else "")
        )

    def evaluation(self, row: Row) -> None:
        """A validation or test row: step, split, loss, tokens; written once, though a run that is done starts again."""
        if not any(old["step"] == row["step"] and old.get("split") == row["split"] for old in self.rows):
            self._write(row)
        self.say(
            f"step {row['step']:>6} | {row['split']} loss {row['loss']:.4f} | perplexity "
            f"{math.exp(min(row['loss'], 700)):.2f} | {row['tokens']:,} tokens"
        )

    def event(self, row: Row, text: str) -> None:
        """Something that happens now and then: `row` has step and event (its kind), and no loss."""
        self._write(row)
        self.say(text)

    def go_back(self, step: int) -> None:
        """The rows behind a step are no longer part of the run."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        self.metrics.seek(0)
        self.metrics.truncate()
        self.metrics.writelines(_json(row) + "\n" for row in self.rows)
        self.bar.update(self.task, completed=step)

    def close(self, summary: Row) -> None:
        """Draws the curves, writes the summary and says where everything lies."""
        self.bar.stop()
        self.events.close()
        self.metrics.close()
        draw_losses(self.rows, self.folder / "loss.png")
        (self.folder / "summary.json").write_text(_json(summary, indent=2) + "\n", encoding="utf-8")
        self.say(
            f"metrics {self.folder / 'metrics.jsonl'} | curve {self.folder / 'loss.png'} | "
            f"summary {self.folder / 'summary.json'} | events: tensorboard --logdir {self.events.log_dir}"
        )

    def _write(self, row: Row) -> None:
        self.rows.append(row)
        self.metrics.write(_json(row) + "\n")
        kind = row.get("event") or row.get("split", "train")
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self.events.add_scalar(f"{kind}/{name}", value, row["step"])


def draw_losses(rows: Iterable[Row], file: Path) -> None:
    """Training and validation loss over steps as a picture."""
    from matplotlib.figure import Figure  # slow to import, and only the end of a run needs it

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in (row for row in rows if "loss" in row):
        curves.setdefault(row.get("split", "train"), []).append((row["step"], row["loss"]))
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name, marker=None if name == "train" else "o", linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if curves:
        axes.legend()
    figure.savefig(file, dpi=120)


def _rows_until(file: Path, step: int) -> list[Row]:
    if step == 0 or not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return [row for row in rows if row["step"] <= step]


def _json(row: Row, indent: int | None = None) -> str:
    """JSON knows no nan and no infinity (the norm of a step that overflowed): null."""
    return json.dumps(
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}, indent=indent
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
