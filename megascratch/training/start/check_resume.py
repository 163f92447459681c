"""Compares the settings, data and tokenizer of a run with those of the checkpoint that it resumes from. Changes that
are allowed become notices; changes that are not are refused in one error (the table is in `config/resume_rules.py`).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megascratch.checkpoint import read_manifest
from megascratch.checkpoint.steps import manifest_text
from megascratch.config.errors import SettingError, UserError
from megascratch.config.fields import flat
from megascratch.config.resume_rules import Side, compare_configs
from megascratch.config.settings import Config
from megascratch.storage.path import Place


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
    sections = state.get("config", {})
    saved = {name: value for section in sections.values() for name, value in section.items()}
    before = Side(saved, state.get("data_files", {}), state.get("tokenizer_fingerprint"))
    consumed = state.get("train_state", {}).get("consumed_samples", 0)
    forced = [name.replace("-", "_") for name in config.guard.force_resume or ()]
    notices, refusals = compare_configs(before, Side(flat(config), files, tokenizer), consumed, forced)
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
