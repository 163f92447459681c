"""Detects a bad step (a loss or gradient norm that is not finite, or a loss spike) and handles it: the run stops, skips
the step, or rolls back to its last checkpoint and skips the samples that it has read since. All ranks judge numbers
that all ranks agree on, so all do the same.

    step        50        51   52   53 (bad)         back at 50    51         52
    samples     ... 800)  800  816  832 ... 848)                   848        864

Samples [800, 848) are recorded next to the checkpoints (`skipped_samples.py`), and neither this nor any later run of
the folder reads them again.
"""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megascratch.checkpoint import latest, load
from megascratch.checkpoint.consensus import on_first_rank
from megascratch.config.resolve import ResolvedTraining
from megascratch.config.settings import GuardConfig
from megascratch.data.inspect.audit import uses_of
from megascratch.data.samples.dataset import Dataset
from megascratch.data.samples.views import SkipSamples, merge_ranges, original_index
from megascratch.parallel.mesh import Mesh
from megascratch.storage.path import Place, storage_path
from megascratch.training.health.skipped_samples import records, write_down
from megascratch.training.state import TrainState
from megascratch.training.trainer import StepResult, Trainer, not_finite, nothing_updated

FILE = "bad_steps.jsonl"
MOST_LISTED = 8  # documents in a line of the console; the file has all


class LossGuard:
    """Compares each step with the losses of the previous good steps. These are kept in the state, so that a resumed
    run judges its steps in the same way."""

    def __init__(self, guard: GuardConfig, state: TrainState):
        self.guard = guard
        self.state = state

    def judge(self, loss: float, grad_norm: float) -> str:
        """What is wrong with a step; '' if nothing is."""
        guard = self.guard
        if guard.check_for_nan_in_loss_and_grad:
            wrong = not_finite(loss, grad_norm)
            if wrong:
                return wrong
        past = self.state.recent_losses
        if not guard.check_for_spiky_loss or len(past) < guard.spiky_loss_window:
            return ""
        median = statistics.median(past)
        if median <= 0 or loss <= guard.spiky_loss_factor * median:  # nothing is a multiple of 0
            return ""
        return (
            f"the loss {loss:.6g} is {loss / median:.2f} times the median {median:.6g} of the last {len(past)} "
            f"(--spiky-loss-factor {guard.spiky_loss_factor:g})"
        )

    def good(self, loss: float) -> None:
        """Records a step that was applied: resets the count of bad steps and keeps the loss for later comparisons."""
        self.state.bad_steps = 0
        if self.guard.check_for_spiky_loss and math.isfinite(loss):
            losses = [*self.state.recent_losses, loss]
            self.state.recent_losses = losses[-self.guard.spiky_loss_window :]


class BadSteps:
    """Stops, skips or rolls back, as --on-bad-step says.

    Args:
        state: the state of the run; a rollback changes it in place.
        settle: waits until no save is in progress, so that a rollback finds the newest checkpoint.
        say: prints a line for the user, on the first rank only.
    """

    def __init__(
        self,
        guard: GuardConfig,
        training: ResolvedTraining,
        mesh: Mesh,
        trainer: Trainer,
        state: TrainState,
        train: Dataset,
        settle: Callable[[], None],
        say: Callable[[str], None],
    ):
        self.guard = guard
        self.training = training
        self.mesh = mesh
        self.trainer = trainer
        self.state = state
        self.train = train
        self.settle = settle
        self.say = say

    def act(self, result: StepResult, samples: int) -> bool:
        """Called after a bad step, which is counted but was not applied.

        Returns: True if the run was rolled back to a checkpoint.

        Raises: FloatingPointError if the run has to stop.
        """
        state = self.state
        read = range(state.consumed_samples - samples, state.consumed_samples)
        self._report(result, read)
        if self.guard.on_bad_step == "stop":
            raise FloatingPointError(nothing_updated(result.wrong, state.step))
        if self.guard.on_bad_step == "rollback":
            self._roll_back(result.wrong)
            return True
        state.bad_steps += 1
        if state.bad_steps > self.guard.max_bad_steps:
            raise FloatingPointError(
                self._too_many(f"{state.bad_steps} bad steps in a row", result.wrong)
            )
        return False

    def _too_many(self, what: str, wrong: str) -> str:
        return (
            f"{what} (--max-bad-steps {self.guard.max_bad_steps}), the last one step {self.state.step}: {wrong}; "
            "skipping does not help: look at the data, lower --lr, or resume from an older checkpoint"
        )

    def _roll_back(self, wrong: str) -> None:
        """Loads the last checkpoint; the samples read since then will be skipped."""
        self.settle()
        state = self.state
        folder = storage_path(self.training.save)
        path = on_first_rank(self.mesh.control, lambda: latest(folder))
        if path is None:
            raise FloatingPointError(
                f"{nothing_updated(wrong, state.step)}; there is no checkpoint in {folder} to roll back to"
            )
        before = list(state.skipped_samples)
        last_read = original_index(state.consumed_samples - 1, before)
        stop = last_read + 1
        saved = load(path, self.trainer.held(), self.mesh.control)
        restored = TrainState.from_dict(saved["train_state"])
        back_to = restored.step
        start = original_index(restored.consumed_samples, before)
        record = {
            "first": start,
            "stop": stop,
            "back_to": back_to,
            "step": state.step,
            "reason": wrong,
        }
        rollbacks = on_first_rank(self.mesh.control, lambda: _written(folder, record))
        if rollbacks > self.guard.max_bad_steps:
            raise FloatingPointError(self._too_many(f"{rollbacks} rollbacks to {path}", wrong))
        restored.skipped_samples = merge_ranges(before, [[start, stop]])
        vars(state).update(vars(restored))
        self.trainer.restore(state)
        self.say(
            f"rolled back to step {back_to} ({path}); samples {start:,} to {stop - 1:,} are skipped"
        )

    def _report(self, result: StepResult, read: range) -> None:
        """On the first rank: prints a line, and appends a record with every document that the step has read."""
        if not self.mesh.is_first:
            return
        data = SkipSamples(self.train, self.state.skipped_samples)
        first_sample = original_index(read.start, data.ranges)
        last_sample = original_index(read.stop - 1, data.ranges)
        uses = []
        documents = []
        for sample in read:
            for use in uses_of(data, self.state.step, sample):
                uses.append(
                    {
                        "sample": original_index(use.sample, data.ranges),
                        "corpus": use.corpus,
                        "document": use.document,
                        "first_token": use.first_token,
                        "tokens": use.tokens,
                    }
                )
                documents.append(f"{use.corpus}:{use.document}")
        documents = list(dict.fromkeys(documents))  # each once
        record: dict[str, Any] = {
            "step": self.state.step,
            "wrong": result.wrong,
            "loss": _finite(result.global_loss),
            "grad_norm": _finite(result.grad_norm),
            "does": self.guard.on_bad_step,
            "first_sample": first_sample,
            "last_sample": last_sample,
            "documents": uses,
        }
        file = Path(self.training.output_dir) / FILE
        try:
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")
            where = f"all in {file}"
        except OSError as error:  # a report must never stop training
            where = f"{file} cannot be written: {error.strerror}"
        listed = ", ".join(documents[:MOST_LISTED])
        more = f" and {len(documents) - MOST_LISTED} more" if len(documents) > MOST_LISTED else ""
        self.say(
            f"bad step {self.state.step}: {result.wrong} | samples {first_sample:,} to {last_sample:,} | "
            f"documents {listed}{more} ({where}) | {self.guard.on_bad_step}"
        )


def _finite(number: float) -> float | None:
    """None for nan and infinity, which JSON cannot store."""
    return number if math.isfinite(number) else None


def _written(folder: Place, rollback: dict[str, Any]) -> int:
    """Records a rollback. Returns: the number of rollbacks to the same checkpoint so far."""
    write_down(folder, rollback)
    return sum(record["back_to"] == rollback["back_to"] for record in records(folder))
