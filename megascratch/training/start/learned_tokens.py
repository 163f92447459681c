"""Refuses a run whose data has no token to learn. A loss mask, the end of a document or padding can cover every token
of a split, and then there is no loss. Each split is checked before the run starts.
"""

from functools import partial

from megascratch.config.batch_size import steps_and_samples
from megascratch.config.errors import Problems, UserError
from megascratch.config.settings import Config
from megascratch.data.samples.batch import collate
from megascratch.data.samples.build import Splits
from megascratch.data.samples.dataset import Dataset
from megascratch.training.health.loss_guard import STEPS_TO_JUDGE, nothing_learned


def require_something_to_learn(config: Config, splits: Splits, eod: int | None, first_step: int) -> None:
    """Reads samples of each split until one has a learned token, which nearly always is the first.

    Args:
        first_step: the step that the run resumes from. The training data is only checked if it is 0.

    Raises: UserError with one line for each split that has no learned token: in all samples that the validations and
    the test read, or in the training steps of the first log lines.
    """
    problems = Problems()
    training = config.training
    batch = training.global_batch_size or 1
    evaluated = training.eval_iters * batch
    steps = max(training.log_interval, STEPS_TO_JUDGE)
    ends = {"train": min(steps * batch, steps_and_samples(config)[1]), "valid": evaluated, "test": evaluated}
    if config.data.data_order == "megatron" and splits.valid is not None:
        ends["valid"] = len(splits.valid)  # each validation reads different samples
    if first_step > 0:
        ends.pop("train")
    for name, end in ends.items():
        dataset = getattr(splits, name)
        if dataset is not None and end > 0:
            problems.attempt(partial(_require, config, dataset, name, end, eod))
    problems.require_none()


def _require(config: Config, dataset: Dataset, name: str, end: int, eod: int | None) -> None:
    """Raises: UserError if samples [0, end) have no learned token."""
    if name != "train":
        end = min(end, len(dataset))
    masks_ends = config.data.eod_mask_loss
    for sample in range(end):
        batch = collate([dataset[sample]], [sample], config.data.seq_length, eod, eod_mask_loss=masks_ends)
        if batch.loss_mask.any():
            return
    raise UserError(nothing_learned(f"the {name} set", f"{end:,} samples of {config.data.seq_length} tokens"))
