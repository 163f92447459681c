"""What becomes of a bad step: the run stops, goes on without it, or goes back to its last checkpoint and past the
samples since then. All ranks judge the same numbers, so all do the same.

    step        50        51   52   53 (bad)         back at 50    51         52
    samples     ... 800)  800  816  832 ... 848)                   848        864

Samples [800, 848) are written down beside the checkpoints (`journal.py`), and are not read again by this or any later
run of the folder.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megascratch.checkpoint import latest, load
from megascratch.checkpoint.consensus import on_first_rank
from megascratch.config.settings import Config
from megascratch.data.inspect.audit import uses_of
from megascratch.data.samples.dataset import Dataset
from megascratch.data.samples.skip_samples import SkipSamples, merge_ranges, original_index
from megascratch.parallel.mesh import Mesh
from megascratch.storage.path import Place, storage_path
from megascratch.training.health.loss_guard import nothing_updated
from megascratch.training.health.skipped_samples import records, write_down
from megascratch.training.state import TrainState
from megascratch.training.trainer import StepResult, Trainer

FILE = "bad_steps.jsonl"
MOST_TOLD = 8  # documents in a line of the console; the file has all


class BadSteps:
    """Acts on bad steps.

    Args:
        state: of the run; a rollback changes it in place.
        settle: waits until no save is under way; a checkpoint in the making is the one to go back to.
        say: tells the user; does something on the first rank alone.
    """

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        trainer: Trainer,
        state: TrainState,
        train: Dataset,
        settle: Callable[[], None],
        say: Callable[[str], None],
    ):
        self.guard, self.training = config.guard, config.training
        self.mesh, self.trainer, self.state, self.train, self.say = mesh, trainer, state, train, say
        self.settle = settle

    def act(self, result: StepResult, samples: int) -> bool:
        """After a step that was not applied, though counted: True if the run went back to a checkpoint.

        Raises: FloatingPointError where the run has to stop.
        """
        state = self.state
        read = range(state.consumed_samples - samples, state.consumed_samples)
        self._tell(result, read)
        if self.guard.on_bad_step == "stop":
            raise FloatingPointError(nothing_updated(result.wrong, state.step))
        if self.guard.on_bad_step == "rollback":
            self._roll_back(result.wrong)
            return True
        state.bad_steps += 1
        if state.bad_steps > self.guard.max_bad_steps:
            raise FloatingPointError(self._too_many(f"{state.bad_steps} bad steps in a row", result.wrong))
        return False

    def _too_many(self, what: str, wrong: str) -> str:
        return (
            f"{what} (--max-bad-steps {self.guard.max_bad_steps}), the last one step {self.state.step}: {wrong}; "
            "skipping does not help: look at the data, lower --lr, or go on from an older checkpoint"
        )

    def _roll_back(self, wrong: str) -> None:
        """To the last checkpoint; everything read since then is not read again."""
        self.settle()
        state, folder = self.state, storage_path(self.training.save or "")
        path = on_first_rank(self.mesh.world, lambda: latest(folder))
        if path is None:
            raise FloatingPointError(
                f"{nothing_updated(wrong, state.step)}; there is no checkpoint in {folder} to go back to"
            )
        before, step = list(state.skipped_samples), state.step
        behind = original_index(state.consumed_samples - 1, before) + 1
        saved = load(path, self.trainer.held(), self.mesh.world)
        restored = TrainState.from_dict(saved["train_state"])
        back_to, start = restored.step, original_index(restored.consumed_samples, before)
        jump = {"first": start, "stop": behind, "back_to": back_to, "step": step, "reason": wrong}
        jumps = on_first_rank(self.mesh.world, lambda: _written(folder, jump))
        if jumps > self.guard.max_bad_steps:
            raise FloatingPointError(self._too_many(f"{jumps} times back to {path}", wrong))
        restored.skipped_samples = merge_ranges(before, [[start, behind]])
        vars(state).update(vars(restored))
        self.trainer.restore(state)
        self.say(f"back to step {back_to} ({path}), without samples {start:,} to {behind - 1:,}")

    def _tell(self, result: StepResult, read: range) -> None:
        """On the first rank: a line, and a record with every document that the step has read."""
        if not self.mesh.is_first:
            return
        data = SkipSamples(self.train, self.state.skipped_samples)
        uses = [use for sample in read for use in uses_of(data, self.state.step, sample)]
        whole = [original_index(sample, data.ranges) for sample in (read.start, read.stop - 1)]
        documents = list(dict.fromkeys((use.corpus, use.document) for use in uses))
        record: dict[str, Any] = {
            "step": self.state.step,
            "wrong": result.wrong,
            "loss": _finite(result.global_loss),
            "grad_norm": _finite(result.grad_norm),
            "does": self.guard.on_bad_step,
            "first_sample": whole[0],
            "last_sample": whole[1],
            "documents": [
                {
                    "sample": original_index(use.sample, data.ranges),
                    "corpus": use.corpus,
                    "document": use.document,
                    "first_token": use.first_token,
                    "tokens": use.tokens,
                }
                for use in uses
            ],
        }
        file = Path(self.training.output_dir) / FILE
        try:
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")
            where = f"all in {file}"
        except OSError as error:  # a report stops no training
            where = f"{file} cannot be written: {error.strerror}"
        told = ", ".join(f"{corpus}:{document}" for corpus, document in documents[:MOST_TOLD])
        more = f" and {len(documents) - MOST_TOLD} more" if len(documents) > MOST_TOLD else ""
        self.say(
            f"bad step {self.state.step}: {result.wrong} | samples {whole[0]:,} to {whole[1]:,} | "
            f"documents {told}{more} ({where}) | {self.guard.on_bad_step}"
        )


def _finite(number: float) -> float | None:
    """JSON knows no nan and no infinity."""
    return number if math.isfinite(number) else None


def _written(folder: Place, jump: dict[str, Any]) -> int:
    """Writes a jump down; how often the same checkpoint was gone back to."""
    write_down(folder, jump)
    return sum(record["back_to"] == jump["back_to"] for record in records(folder))
