"""Resuming, before the ranks meet: finds the checkpoint of --auto-resume, and compares the settings, data and tokenizer
of a run with those of its checkpoint. Changes that are allowed become notices; changes that are not are refused in one
error (the rules are in `config/resume_effects.py`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from megascratch.checkpoint import list_steps, read_manifest, resolve
from megascratch.checkpoint.steps import (
    checkpoints_of,
    is_step,
    manifest_text,
    problem_of,
    step_number,
)
from megascratch.config.errors import SettingError, UserError
from megascratch.config.fields import SETTINGS
from megascratch.config.imports import import_digests
from megascratch.config.resolve import Values
from megascratch.config.resume_effects import ABOUT_WEIGHTS, FIXED_OPTIMIZER, Side
from megascratch.config.resume_rules import compare_configs
from megascratch.storage.path import Place
from megascratch.storage.run_folders import name_of_step, require_no_foreign_checkpoint


class Resume(NamedTuple):
    """The checkpoint that a run starts from, and what it says about the settings."""

    start: Place
    """The folder of the step."""
    load: str
    """The `load` of the run: the user's, or `save` with auto_resume."""
    batch: int | None
    """The checkpoint's global batch size, if the user gives none: a run on more or fewer ranks then reads the same
    samples in each step."""
    padded_vocab_size: int | None
    """The checkpoint's rows of the vocabulary if its padding is trained and the user gives no number: they depend on
    the layout of its run."""
    state: dict[str, Any]
    """What the checkpoint stores next to its tensors."""
    digest: str
    """sha256 of the manifest. Ranks compare it to prove that they load the same checkpoint."""
    begins: bool = False
    """Its weights begin a new run (finetune, pretrained_checkpoint); nothing else of it is used."""
    weights_only: bool = False
    """Nothing of the optimizer is used."""

    @property
    def step(self) -> int:
        """The step that the run starts from."""
        return 0 if self.begins else step_number(self.start)


class _Source(NamedTuple):
    """Where a run looks for its checkpoint."""

    path: str
    """A step, or a folder of steps."""
    begins: bool
    weights_only: bool
    """Both as in `Resume`."""


def newest_valid(settings: Values) -> str | None:
    """The name of the step that `find_checkpoint` would find in a folder of steps; None if it looks at none.

    Raises: UserError if no step is valid.
    """
    source = _source_of(settings)
    if source is None or is_step(source.path):
        return None
    return resolve(source.path).name


def find_checkpoint(
    settings: Values, batch_is_given: bool, proved: str | None = None
) -> Resume | None:
    """Finds the checkpoint to start from; None for a new run. With auto_resume it is the newest one in `save`, as soon
    as there is one; otherwise that of `load`, and if there is none the weights of `pretrained_checkpoint`.

    Args:
        settings: derived.
        batch_is_given: the user gives a global batch size, so that of the checkpoint does not matter.
        proved: the name of a step whose files another rank has checked; they are not opened if it is the newest here.

    Raises: UserError if there is no checkpoint where one must be, or if the run would have to overwrite a newer one.
    """
    source = _source_of(settings)
    writes = not settings["skip_train"]
    if source is None:
        if writes:
            _require_nothing_newer(settings["save"], "scratch", 0)
        return None
    start = _resolved(source.path, proved)
    if writes:
        first_step = 0 if source.begins else step_number(start)
        _require_nothing_newer(settings["save"], f"step {first_step}", first_step)
    state = read_manifest(start).state
    digest = hashlib.sha256(manifest_text(start)).hexdigest()
    batch = None
    if not batch_is_given and not source.begins:
        batch = state.get("config", {}).get("training", {}).get("global_batch_size")
    rows = None
    if settings["padded_vocab_in_softmax"] and settings["padded_vocab_size"] is None:
        rows = state.get("config", {}).get("model", {}).get("padded_vocab_size")
    parts = source.begins, source.weights_only
    return Resume(start, source.path, batch, rows, state, digest, *parts)


def _source_of(settings: Values) -> _Source | None:
    """Where the run looks for its checkpoint; None if it starts from scratch.

    Raises: UserError if `load` has none although it must, or one of another tool, or not the step of `ckpt_step`.
    """
    load: str | None = settings["load"]
    pretrained: str | None = settings["pretrained_checkpoint"]
    if settings["auto_resume"] and list_steps(settings["save"]):
        return _Source(str(checkpoints_of(settings["save"])), begins=False, weights_only=False)
    may_be_missing = pretrained is not None or not settings["exit_on_missing_checkpoint"]
    if load is not None and not (may_be_missing and is_missing(load)):
        path = checkpoints_of(load)
        if settings["ckpt_step"] is not None:
            names = [step.name for step in list_steps(path)]
            path = path / name_of_step(load, names, settings["ckpt_step"])
        weights_only = settings["finetune"] or not settings["load_optim"]
        return _Source(str(path), settings["finetune"], weights_only)
    if pretrained is None:
        return None
    return _Source(str(checkpoints_of(pretrained)), begins=True, weights_only=True)


def is_missing(load: str) -> bool:
    """Whether nothing at `load` could be a checkpoint: a damaged one is not missing, nor is a step that is named.

    Raises: UserError for a checkpoint of Megatron-LM, which a start from scratch would pass over.
    """
    require_no_foreign_checkpoint(load)
    path = checkpoints_of(load)
    return not is_step(path) and not list_steps(path)


def _resolved(load: str, proved: str | None) -> Place:
    if proved is not None and not is_step(load):
        steps = list_steps(load)
        if steps and steps[0].name == proved:
            return steps[0]
    return resolve(load)


def _require_nothing_newer(save: str, begin: str, first_step: int) -> None:
    """Raises: UserError if the run would have to overwrite a newer checkpoint, before it trains."""
    newer = [path for path in list_steps(save) if step_number(path) > first_step]
    valid = [path for path in newer if not problem_of(path)]
    if valid:
        raise UserError(
            f"--save {save} already holds {valid[0].name} and this run starts from {begin}: a checkpoint is "
            "never overwritten; use --auto-resume to resume from it, another --output-dir, or delete it"
        )


def check_resume(
    checkpoint: Resume,
    settings: Values,
    files: Mapping[str, Mapping[str, Any]],
    tokenizer: str | None,
) -> list[str]:
    """Notices about allowed changes, one sentence each.

    Args:
        checkpoint: the one that the run starts from. Where only its weights are used, only what they mean matters.
        settings: the resolved settings of this run.
        files: digests of the corpora that this run reads (`data.tokens.fingerprint`).
        tokenizer: the fingerprint of this run's tokenizer, or None.

    Raises: SettingError with one line for each change that is refused.
    """
    state = checkpoint.state
    saved: dict[str, Any] = {}
    for section in state.get("config", {}).values():
        saved |= section
    before = Side(
        saved,
        state.get("data_files", {}),
        state.get("tokenizer_fingerprint"),
        state.get("imports", {}),
    )
    now = Side(settings, files, tokenizer, import_digests())
    consumed = state.get("train_state", {}).get("consumed_samples", 0)
    forced = [name.replace("-", "_") for name in settings["force_resume"] or ()]
    compared = {}
    for setting_name, setting in SETTINGS.items():
        means_weights = setting.on_resume in ABOUT_WEIGHTS and setting.section != "optim"
        if checkpoint.begins and not means_weights:
            continue
        if checkpoint.weights_only and setting.on_resume == FIXED_OPTIMIZER:
            continue
        compared[setting_name] = setting
    if checkpoint.begins:
        before = replace(before, files={})
    notices, refusals = compare_configs(before, now, consumed, forced, compared)
    name = checkpoint.start.name
    if not checkpoint.weights_only and not saved.get("save_optim", True):
        raise SettingError(
            f"{name} was saved without the state of the optimizer: give --no-load-optim to continue without it, or "
            "--finetune to begin a new run with its weights"
        )
    if refusals:
        raise SettingError("\n".join(f"{name}: {refusal}" for refusal in refusals))
    return notices


def consumed_samples(checkpoint: Resume) -> int:
    """The number of samples that the run had read at a checkpoint, which `check_resume` has accepted."""
    if checkpoint.begins:
        return 0
    consumed = checkpoint.state.get("train_state", {}).get("consumed_samples", 0)
    return consumed if isinstance(consumed, int) else 0


def hash_of(path: str | Path | None) -> str:
    """sha256 of a file's content; '' if `path` is None."""
    if path is None:
        return ""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
