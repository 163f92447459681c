"""Resuming, before the ranks meet: finds the checkpoint of --auto-resume, and compares the settings, data and tokenizer
of a run with those of its checkpoint. Changes that are allowed become notices; changes that are not are refused in one
error (the rules are in `config/resume_effects.py`).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megascratch.checkpoint import list_steps, read_manifest, resolve
from megascratch.checkpoint.steps import manifest_text
from megascratch.config.errors import SettingError, UserError
from megascratch.config.fields import flat, with_fields
from megascratch.config.resume_effects import Side
from megascratch.config.resume_rules import compare_configs
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
    load = training.load
    if training.auto_resume and list_steps(training.save):
        load = training.save
    if load is None:
        return given
    values: dict[str, Any] = {"load": load}
    if given.training.global_batch_size is None:
        saved = read_manifest(resolve(load)).state.get("config", {})
        values["global_batch_size"] = saved.get("training", {}).get("global_batch_size")
    return with_fields(given, values)


def check_resume(
    start: Place, config: Config, files: Mapping[str, Mapping[str, Any]], tokenizer: str | None
) -> list[str]:
    """Notices about allowed changes, one sentence each.

    Args:
        start: the checkpoint that the run resumes from.
        files: digests of the corpora that this run reads (`data.tokens.fingerprint`).
        tokenizer: the fingerprint of this run's tokenizer, or None.

    Raises: SettingError with one line for each change that is refused.
    """
    state = read_manifest(start).state
    saved: dict[str, Any] = {}
    for section in state.get("config", {}).values():
        saved |= section
    before = Side(saved, state.get("data_files", {}), state.get("tokenizer_fingerprint"))
    now = Side(flat(config), files, tokenizer)
    consumed = state.get("train_state", {}).get("consumed_samples", 0)
    forced = [name.replace("-", "_") for name in config.guard.force_resume or ()]
    notices, refusals = compare_configs(before, now, consumed, forced)
    if refusals:
        raise SettingError("\n".join(f"{start.name}: {refusal}" for refusal in refusals))
    return notices


def consumed_samples(start: Place) -> int:
    """The number of samples that the run had read at a checkpoint, which `check_resume` has accepted."""
    consumed = read_manifest(start).state.get("train_state", {}).get("consumed_samples", 0)
    return consumed if isinstance(consumed, int) else 0


def manifest_digest(start: Place) -> str:
    """sha256 of a checkpoint's manifest. Ranks compare it to prove that they load the same checkpoint."""
    return hashlib.sha256(manifest_text(start)).hexdigest()


def hash_of(path: str | Path | None) -> str:
    """sha256 of a file's content; '' if `path` is None."""
    if path is None:
        return ""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
