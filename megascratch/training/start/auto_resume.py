"""The settings in, the same with what follows from the checkpoint that the run goes on from out; before any rank meets
another.
"""

from typing import Any

from megascratch.checkpoint import list_steps, read_manifest, resolve
from megascratch.config.fields import with_fields
from megascratch.config.settings import Config, TrainingConfig
from megascratch.storage.path import Place


def resumed(given: Config, training: TrainingConfig) -> Config:
    """With auto_resume, `load` is `save` as soon as there is a checkpoint in it; and where no global batch size is
    given it is the checkpoint's, so that a run that goes on with more or fewer ranks takes the same samples in each
    step. `training` is the derived section of `given`.

    Raises: UserError where `load` names no checkpoint.
    """
    assert training.save is not None
    load = training.save if training.auto_resume and list_steps(training.save) else training.load
    if load is None:
        return given
    values: dict[str, Any] = {"load": load}
    if given.training.global_batch_size is None:
        values["global_batch_size"] = _saved_batch(resolve(load))
    return with_fields(given, values)


def _saved_batch(step: Place) -> int | None:
    """None: a checkpoint that says nothing about it."""
    size: int | None = read_manifest(step).state.get("config", {}).get("training", {}).get("global_batch_size")
    return size
