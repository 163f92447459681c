"""Resuming, before the ranks meet: finds the checkpoint of --auto-resume, and compares the settings, data and tokenizer
of a run with those of its checkpoint. Changes that are allowed become notices; changes that are not are refused in one
error (the rules are in `config/resume_effects.py`).
"""

import hashlib
from collections.abc import Mapping
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
from megascratch.config.imports import import_digests
from megascratch.config.resolve import Values
from megascratch.config.resume_effects import Side
from megascratch.config.resume_rules import compare_configs
from megascratch.storage.path import Place


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

    @property
    def step(self) -> int:
        """The steps that the run had trained."""
        return step_number(self.start)


def newest_valid(settings: Values) -> str | None:
    """The name of the step that `find_checkpoint` would find in a folder of steps; None if it looks at none.

    Raises: UserError if no step is valid.
    """
    load = _load_of(settings)
    if load is None or is_step(load):
        return None
    return resolve(load).name


def find_checkpoint(
    settings: Values, batch_is_given: bool, proved: str | None = None
) -> Resume | None:
    """Finds the checkpoint to resume from; None for a new run. With auto_resume it is the newest one in `save`, as soon
    as there is one.

    Args:
        settings: derived.
        batch_is_given: the user gives a global batch size, so that of the checkpoint does not matter.
        proved: the name of a step whose files another rank has checked; they are not opened if it is the newest here.

    Raises: UserError if there is no checkpoint at `load`, or if the run would have to overwrite a newer one.
    """
    load = _load_of(settings)
    if load is None:
        _require_nothing_newer(settings["save"], None)
        return None
    start = _resolved(load, proved)
    _require_nothing_newer(settings["save"], start)
    state = read_manifest(start).state
    digest = hashlib.sha256(manifest_text(start)).hexdigest()
    batch = None
    if not batch_is_given:
        batch = state.get("config", {}).get("training", {}).get("global_batch_size")
    rows = None
    if settings["padded_vocab_in_softmax"] and settings["padded_vocab_size"] is None:
        rows = state.get("config", {}).get("model", {}).get("padded_vocab_size")
    return Resume(start, load, batch, rows, state, digest)


def _load_of(settings: Values) -> str | None:
    """Where the run looks for its checkpoint."""
    load: str | None = settings["load"]
    if settings["auto_resume"] and list_steps(settings["save"]):
        load = settings["save"]
    elif load is not None and not settings["exit_on_missing_checkpoint"] and not _has_steps(load):
        load = None
    return None if load is None else str(checkpoints_of(load))


def starts_fresh(settings: Values) -> str | None:
    """A notice if `load` names no checkpoint and the run begins from scratch because that is allowed."""
    load = settings["load"]
    if load is None or settings["exit_on_missing_checkpoint"] or _load_of(settings) is not None:
        return None
    return f"load ({load}) has no checkpoint: the run starts from scratch"


def _has_steps(load: str) -> bool:
    """Whether a path names a step or contains steps, readable or not. Raises: StoreError if a store does not answer."""
    found = checkpoints_of(load)
    return is_step(found) or bool(list_steps(found))


def _resolved(load: str, proved: str | None) -> Place:
    if proved is not None and not is_step(load):
        steps = list_steps(load)
        if steps and steps[0].name == proved:
            return steps[0]
    return resolve(load)


def _require_nothing_newer(save: str, start: Place | None) -> None:
    """Raises: UserError if the run would have to overwrite a newer checkpoint, before it trains."""
    first_step = step_number(start) if start else 0
    newer = [path for path in list_steps(save) if step_number(path) > first_step]
    valid = [path for path in newer if not problem_of(path)]
    if valid:
        begin = f"step {first_step}" if start else "scratch"
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
        checkpoint: the one that the run resumes from.
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
    notices, refusals = compare_configs(before, now, consumed, forced)
    if refusals:
        name = checkpoint.start.name
        raise SettingError("\n".join(f"{name}: {refusal}" for refusal in refusals))
    return notices


def consumed_samples(checkpoint: Resume) -> int:
    """The number of samples that the run had read at a checkpoint, which `check_resume` has accepted."""
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
