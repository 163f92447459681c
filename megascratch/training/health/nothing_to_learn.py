"""Refuses or ends a run that has no token to learn. A loss mask, the end of a document or padding can cover every
token, and then there is no loss. Each split is checked before the run starts; the loop judges the steps of each log
line.
"""

from functools import partial

from megascratch.config.batch_size import evaluation_batch, steps_and_samples
from megascratch.config.errors import Problems, UserError
from megascratch.config.resolve import ResolvedTraining
from megascratch.config.settings import DataConfig
from megascratch.data.samples.batch import collate
from megascratch.data.samples.build import Splits
from megascratch.data.samples.dataset import Dataset

STEPS_TO_JUDGE = 10
"""After this many steps in a row without a learned token a run ends, even if each step has its own log line."""


class NothingLearnedError(Exception):
    """No token was learned where at least one is needed: in the steps of a log line, or in a validation."""


def nothing_learned(what: str, numbers: str) -> str:
    """The message with which a run stops, or is refused, because no token is learned."""
    return (
        f"no token of {what} is learned ({numbers}): a loss mask, the end of a document or padding covers all of "
        "them; look at the loss mask of the data, or use a longer --seq-length or a larger --global-batch-size"
    )


def require_something_to_learn(
    training: ResolvedTraining,
    data: DataConfig,
    splits: Splits,
    eod: int | None,
    first_step: int,
) -> None:
    """Reads samples of each split until one has a learned token, which nearly always is the first.

    Args:
        first_step: the step that the run resumes from. The training data is only checked if it is 0.

    Raises: UserError with one line for each split that has no learned token: in all samples that the validations and
    the test read, or in the training steps of the first log lines.
    """
    batch = training.global_batch_size
    evaluated = training.eval_iters * evaluation_batch(training).sequences
    to_check = {}  # split -> how many of its first samples
    if first_step == 0 and not training.skip_train:
        steps = max(training.log_interval, STEPS_TO_JUDGE)
        _, all_samples = steps_and_samples(training)
        to_check["train"] = min(steps * batch, all_samples)
    to_check["valid"] = evaluated
    if data.data_order == "megatron" and splits.valid is not None:
        to_check["valid"] = len(splits.valid)  # each validation reads different samples
    to_check["test"] = evaluated
    problems = Problems()
    for name, samples in to_check.items():
        dataset = getattr(splits, name)
        if dataset is not None and samples > 0:
            problems.attempt(partial(_require, data, dataset, name, samples, eod))
    problems.require_none()


def _require(data: DataConfig, dataset: Dataset, name: str, end: int, eod: int | None) -> None:
    """Raises: UserError if samples [0, end) have no learned token."""
    if name != "train":
        end = min(end, len(dataset))
    seq_length = data.seq_length
    masks_ends = data.eod_mask_loss
    for sample in range(end):
        batch = collate([dataset[sample]], [sample], seq_length, eod, eod_mask_loss=masks_ends)
        if batch.loss_mask.any():
            return
    raise UserError(nothing_learned(f"the {name} set", f"{end:,} samples of {seq_length} tokens"))
