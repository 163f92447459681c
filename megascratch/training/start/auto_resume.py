"""Implements --auto-resume: fills in `load` and the global batch size from the newest checkpoint in --save, if there is
one. Runs before the ranks meet.
"""

from typing import Any

from megascratch.checkpoint import list_steps, read_manifest, resolve
from megascratch.config.fields import with_fields
from megascratch.config.settings import Config, TrainingConfig
from megascratch.storage.path import Place


def resumed(given: Config, training: TrainingConfig) -> Config:
    """The settings with `load` and `global_batch_size` filled in.

    With auto_resume, `load` becomes `save` as soon as `save` holds a checkpoint. If no global batch size is given, the
    checkpoint's is used, so that a run that resumes on more or fewer ranks reads the same samples in each step.

    Args:
        given: the settings as the user gave them.
        training: the derived training section of `given`.

    Raises: UserError if there is no checkpoint at `load`.
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
    """The global batch size stored in a checkpoint; None if it stores none."""
    size: int | None = read_manifest(step).state.get("config", {}).get("training", {}).get("global_batch_size")
    return size
