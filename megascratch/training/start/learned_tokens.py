"""Is there anything to learn? Each split is looked at before a run starts: a loss mask, the end of a document or
padding can cover every token that would be read, and then there is no loss.
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
    """Reads samples until one has a learned token, which nearly always is the first.

    Args:
        first_step: that the run goes on from; only a new one has its first training steps looked at.

    Raises: UserError with one line for each split that has nothing to learn: where all that validations and the test
    read, or the steps of the first log lines, have no learned token.
    """
    problems = Problems()
    training = config.training
    batch = training.global_batch_size or 1
    evaluated = training.eval_iters * batch
    steps = max(training.log_interval, STEPS_TO_JUDGE)
    ends = {"train": min(steps * batch, steps_and_samples(config)[1]), "valid": evaluated, "test": evaluated}
    if config.data.data_order == "megatron" and splits.valid is not None:
        ends["valid"] = len(splits.valid)  # each validation reads other samples
    if first_step > 0:
        ends.pop("train")
    for name, end in ends.items():
        dataset = getattr(splits, name)
        if dataset is not None and end > 0:
            problems.attempt(partial(_require, config, dataset, name, end, eod))
    problems.require_none()


def _require(config: Config, dataset: Dataset, name: str, end: int, eod: int | None) -> None:
    """Raises: UserError where samples [0, end) have no learned token."""
    if name != "train":
        end = min(end, len(dataset))
    masks_ends = config.data.eod_mask_loss
    for sample in range(end):
        batch = collate([dataset[sample]], [sample], config.data.seq_length, eod, eod_mask_loss=masks_ends)
        if batch.loss_mask.any():
            return
    raise UserError(nothing_learned(f"the {name} set", f"{end:,} samples of {config.data.seq_length} tokens"))
