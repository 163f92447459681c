"""Megatron-LM's words (its 0.20 of August 2026): the console line that its parsers read, and its tags in TensorBoard.

What each number means is as there, also where ours means something else:

learning rate       of the step that follows, because it is read after the schedule has moved
lm loss             in TensorBoard of one step; on the console the mean of the steps' losses since the last line
... vs samples      the same numbers over the consumed samples instead of the step

Different from there: the first rank writes them, not the last one; the mean on the console never counts the first step
twice; throughput counts operations as MFU does (`model.flops`); the test has a tag of its own.
"""

import math
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from megascratch.training.words.interface import ITERATION, Points, Row
from megascratch.training.words.timers import Spread, timed, timer_lines

MOST_EXPONENT = 20
"""Perplexity is cut at exp of this."""


class RunFacts(NamedTuple):
    """What the words need to know about a run."""

    total_steps: int
    first_step: int
    consumed_samples: int
    world_size: int
    tp: int
    pp: int
    flops_per_token: float
    save: str
    """The folder of checkpoints."""
    timing_level: int
    spread: Spread


class MegatronWords:
    """A line for each log interval and tags for each step."""

    each_step = True

    def __init__(self, run: RunFacts):
        self.run = run
        self.samples = run.consumed_samples  # up to the newest step
        self.says_memory = True

    def begin(self) -> str:
        """The start of training."""
        return f"training ...\n[before the start of training step] datetime: {_now():%Y-%m-%d %H:%M:%S} "

    def log_line(self, row: Row, seconds_left: float) -> str:
        """` [TIME] iteration        2/       8 | consumed samples:           16 | ...`."""
        step = row["step"]
        figures = [
            f" [{_now():%Y-%m-%d %H:%M:%S.%f}] iteration {step:8d}/{self.run.total_steps:8d}",
            f"consumed samples: {row['consumed_samples']:12d}",
            f"elapsed time per iteration (ms): {row['step_seconds'] * 1000:.1f}",
            f"throughput per GPU (TFLOP/s/GPU): {self._throughput(row):.1f}",
            f"learning rate: {row['next_learning_rate']:.6E}",
            f"global batch size: {row['batch_size']:5d}",
        ]
        if row["mean_loss"] is not None:
            figures.append(f"lm loss: {row['mean_loss']:.6E}")
        for name, loss in _side_losses(row):
            if loss is not None:
                figures.append(f"{name}: {loss:.6E}")
        figures.append(f"loss scale: {row['loss_scale']:.1f}")
        if row["grad_norm"] is not None:
            figures.append(f"grad norm: {row['grad_norm']:.3f}")
        if "num_zeros" in row:
            figures.append(f"num zeros: {row['num_zeros']}")
        if "params_norm" in row:
            figures.append(f"params norm: {row['params_norm']:.3f}")
        figures.append(f"number of skipped iterations: {row['skipped']:3d}")
        figures.append(f"number of nan iterations: {row['not_finite']:3d}")
        lines = [" | ".join(figures) + " |"]
        if timers := timer_lines(self._timed(row), self.run.spread):
            lines.append(timers)
        if self.says_memory:
            lines.append(_memory_line(row))
            # after the second step the optimizer has its state
            self.says_memory = step <= self.run.first_step + 1
        return "\n".join(lines)

    def evaluation(self, row: Row) -> str:
        """` validation loss at iteration 8 | lm loss value: ... | lm loss PPL: ... | ` between two lines of dashes."""
        place = f"iteration {row['step']}"
        if row["split"] != "valid":
            place += f" on {row['split']} set"
        elif row["step"] >= self.run.total_steps:
            place += " on validation set"
        text = f" validation loss at {place} | "
        for name, loss in _losses(row):
            if loss is not None:
                text += f"{name} value: {loss:.6E} | {name} PPL: {_perplexity(loss):.6E} | "
        dashes = "-" * (len(text) + 1)
        return f"{dashes}\n{text}\n{dashes}"

    def event(self, row: Row, text: str) -> str:
        """A complete checkpoint has a line that its parsers know, followed by ours; other events are in our words."""
        if row["event"] != "save" or "error" in row:
            return text
        saved = (
            f"  [{_now():%Y-%m-%d %H:%M:%S.%f}] successfully saved checkpoint from iteration {row['step']:7d} "
            f"to {self.run.save} [ t 1/{self.run.tp}, p 1/{self.run.pp} ]"
        )
        return f"{saved}\n{text}"

    def end(self, step: int, stopped_early: bool) -> str:
        """The end of training, or why it ends earlier."""
        why = f"exiting program at iteration {step}" if stopped_early else "after training is done"
        return f"[{why}] datetime: {_now():%Y-%m-%d %H:%M:%S} "

    def points(self, row: Row) -> Points:
        """The numbers of a row: of a step, of a log line (time, throughput, norm of the weights) or of a validation."""
        if row.get("event") == ITERATION:
            return self._of_a_step(row)
        if "event" in row:
            return Points({}, {}, self.samples)
        if "split" in row:
            return self._of_an_evaluation(row)
        by_samples = {"params-norm": row["params_norm"]} if "params_norm" in row else {}
        by_step = by_samples | {"throughput": self._throughput(row)}
        if row["step"] > self.run.first_step + 1:  # the first step of a process takes longer
            by_step["iteration-time"] = row["step_seconds"]
        return Points(by_step, by_samples, self.samples)

    def _of_a_step(self, row: Row) -> Points:
        self.samples = row["consumed_samples"]
        numbers = {
            "learning-rate": row["next_learning_rate"],
            "batch-size": row["batch_size"],
            "loss-scale": row["loss_scale"],
            "world-size": row["world_size"],
            "grad-norm": row["grad_norm"],
            "num-zeros": row.get("num_zeros"),
            **dict(_losses(row)),
        }
        by_samples = {tag: value for tag, value in numbers.items() if value is not None}
        memory = row["memory"]
        by_step = by_samples | {
            "samples vs steps": self.samples,
            "mem-reserved-bytes": memory.reserved,
            "mem-allocated-bytes": memory.allocated,
            "mem-max-allocated-bytes": memory.most_allocated,
            "mem-allocated-count": memory.blocks,
        }
        for name, seconds in self._timed(row).items():
            by_step[f"{name}-time"] = max(seconds)
        return Points(by_step, by_samples, self.samples)

    def _of_an_evaluation(self, row: Row) -> Points:
        what = "validation" if row["split"] == "valid" else row["split"]
        numbers = {}
        for name, loss in _losses(row):
            if loss is not None:
                numbers[f"{name} {what}"] = loss
                numbers[f"{name} {what} ppl"] = _perplexity(loss)
        return Points(numbers, numbers, self.samples)

    def _timed(self, row: Row) -> dict[str, list[float]]:
        """Timer -> seconds on each rank; {} if the row has none."""
        times = row.get("times")
        return timed(times, self.run.timing_level) if times else {}

    def _throughput(self, row: Row) -> float:
        """TFLOP/s of each rank."""
        return self.run.flops_per_token * row["tokens_per_second"] / self.run.world_size / 1e12


def _losses(row: Row) -> Iterator[tuple[str, float | None]]:
    """The loss of the language model and those of side terms, by name."""
    yield "lm loss", row["loss"]
    yield from _side_losses(row)


def _side_losses(row: Row) -> Iterator[tuple[str, float | None]]:
    for column, value in row.items():
        if column.endswith("_loss") and column != "mean_loss":
            yield column.replace("_", " "), value


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, MOST_EXPONENT))


def _memory_line(row: Row) -> str:
    memory = row["memory"]
    mebibytes = {
        "allocated": memory.allocated,
        "max allocated": memory.most_allocated,
        "reserved": memory.reserved,
        "max reserved": memory.most_reserved,
    }
    figures = [f"{name}: {number / 2**20:.2f}" for name, number in mebibytes.items()]
    return f"[Rank 0] (after {row['step']} iterations) memory (MB) | {' | '.join(figures)}"


def _now() -> datetime:
    return datetime.now()
