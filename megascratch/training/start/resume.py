"""Resuming, before the ranks meet: finds the checkpoint of --auto-resume, and compares the settings, data and tokenizer
of a run with those of its checkpoint. Changes that are allowed become notices; changes that are not are refused in one
error (the rules are in `config/resume_effects.py`).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megascratch.checkpoint import list_steps, read_manifest, resolve
from megascratch.checkpoint.steps import manifest_text, problem_of, step_number
from megascratch.config.errors import SettingError, UserError
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

    @property
    def step(self) -> int:
        """The steps that the run had trained."""
        return step_number(self.start)


def find_checkpoint(settings: Values, batch_is_given: bool) -> Resume | None:
    """Finds the checkpoint to resume from; None for a new run. With auto_resume it is the newest one in `save`, as soon
    as there is one.

    Args:
        settings: derived.
        batch_is_given: the user gives a global batch size, so that of the checkpoint does not matter.

    Raises: UserError if there is no checkpoint at `load`, or if the run would have to overwrite a newer one.
    """
    load = settings["load"]
    if settings["auto_resume"] and list_steps(settings["save"]):
        load = settings["save"]
    if load is None:
        _require_nothing_newer(settings["save"], None)
        return None
    start = resolve(load)
    _require_nothing_newer(settings["save"], start)
    if batch_is_given:
        return Resume(start, load, None)
    saved = read_manifest(start).state.get("config", {})
    return Resume(start, load, saved.get("training", {}).get("global_batch_size"))


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
    start: Place,
    settings: Values,
    files: Mapping[str, Mapping[str, Any]],
    tokenizer: str | None,
) -> list[str]:
    """Notices about allowed changes, one sentence each.

    Args:
        start: the checkpoint that the run resumes from.
        settings: the resolved settings of this run.
        files: digests of the corpora that this run reads (`data.tokens.fingerprint`).
        tokenizer: the fingerprint of this run's tokenizer, or None.

    Raises: SettingError with one line for each change that is refused.
    """
    state = read_manifest(start).state
    saved: dict[str, Any] = {}
    for section in state.get("config", {}).values():
        saved |= section
    before = Side(saved, state.get("data_files", {}), state.get("tokenizer_fingerprint"))
    now = Side(settings, files, tokenizer)
    consumed = state.get("train_state", {}).get("consumed_samples", 0)
    forced = [name.replace("-", "_") for name in settings["force_resume"] or ()]
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
