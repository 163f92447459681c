"""Finds files and folders that a run needs and cannot read or create, before anything starts. Needs no torch."""

import os
import tempfile
from functools import partial
from pathlib import Path

from megascratch.config.errors import Problems, UserError
from megascratch.config.hub_names import tokenizer_hint
from megascratch.config.resolve import Values
from megascratch.data.samples.split_spec import named_prefixes
from megascratch.data.tokens.missing import require_corpus
from megascratch.storage.path import storage_path
from megascratch.storage.run_folders import (
    checkpoints_of,
    name_of_step,
    require_checkpoint,
    step_names,
)
from megascratch.storage.store import Store


def missing_files(settings: Values) -> list[str]:
    """One line for each file that the settings name and that cannot be read, even if the settings are not legal."""
    problems = Problems()
    for prefix in named_corpora(settings):
        problems.attempt(partial(require_corpus, prefix))
    problems.attempt(partial(_require_checkpoint, settings))
    if settings["pretrained_checkpoint"] is not None:
        problems.attempt(
            partial(
                require_checkpoint, settings["pretrained_checkpoint"], "--pretrained-checkpoint"
            )
        )
    problems.attempt(partial(_require_library, settings["save"]))
    for name, path in (
        ("--tokenizer-model", settings["tokenizer_model"]),
        ("--vocab-file", settings["vocab_file"]),
        ("--merge-file", settings["merge_file"]),
        ("--pipeline-schedule-csv", settings["pipeline_schedule_csv"]),
    ):
        if path is not None and not os.access(path, os.R_OK):
            hint = tokenizer_hint(path) if name == "--tokenizer-model" else ""
            problems.lines.append(
                f"{name} {path}: cannot be read: there is no readable file or folder of this name{hint}"
            )
    return problems.lines


def named_corpora(settings: Values) -> list[str]:
    """The prefix of every corpus on this machine that the settings name, each once."""
    paths: list[list[str] | None] = [
        settings["data_path"],
        settings["train_data_path"],
        settings["valid_data_path"],
        settings["test_data_path"],
    ]
    for stage in settings["data_stages"] or ():
        paths.append(stage.split()[1:])
    return named_prefixes(paths)


def _require_checkpoint(settings: Values) -> None:
    """Raises: UserError if there is no checkpoint at `load`. With `auto_resume` it need only exist: it is not read once
    the run has checkpoints of its own. If it may be missing, only what is there is checked."""
    load = settings["load"]
    if load is None:
        return
    if settings["pretrained_checkpoint"] is not None or not settings["exit_on_missing_checkpoint"]:
        _require_readable(load)
        return
    where = storage_path(load)
    there = (
        os.access(where, os.R_OK) if isinstance(where, Path) else Store(where.url).names(where.url)
    )
    if not there:
        raise UserError(
            f"--load {load}: no checkpoint: there is no readable file or folder of this name; for one command that "
            "starts a run and resumes it, give --auto-resume instead"
        )
    if settings["auto_resume"]:
        return
    require_checkpoint(load, "--load")
    if settings["ckpt_step"] is not None and isinstance(where, Path):
        name_of_step(load, step_names(checkpoints_of(where)), settings["ckpt_step"])


def _require_readable(load: str) -> None:
    """Raises: UserError if there is something at a local path that is not a folder, or cannot be read."""
    where = storage_path(load)
    if not isinstance(where, Path) or not os.path.lexists(where):
        return
    if not where.is_dir():
        raise UserError(
            f"--load {load}: it is not a folder: name a step, a folder of steps or a run"
        )
    if not os.access(where, os.R_OK | os.X_OK):
        raise UserError(f"--load {load}: it cannot be read: look at its permissions")


def _require_library(save: str | None) -> None:
    """Raises: UserError if the library that accesses the object store is not installed."""
    if save is None:
        return
    where = storage_path(save)
    if not isinstance(where, Path):
        Store(where.url)


def require_folders(settings: Values) -> None:
    """Checks that the folders that a run writes into exist or can be created. Nothing that it creates is left behind.

    Raises: UserError with one line for each folder that cannot be created.
    """
    problems = Problems()
    for flag, name in (
        ("--output-dir", "output_dir"),
        ("--save", "save"),
        ("--tensorboard-dir", "tensorboard_dir"),
        ("--data-cache-path", "data_cache_path"),
    ):
        inside = Path(settings[name] or "").is_relative_to(settings["output_dir"])
        if problems.lines and inside:
            continue  # the folder around it is reported already
        problems.attempt(partial(_require_folder, flag, settings[name]))
    problems.require_none()


def _require_folder(flag: str, path: str | None) -> None:
    """Raises: UserError if a local folder neither exists nor can be created."""
    if path is None or not isinstance(storage_path(path), Path):
        return
    absolute = Path(path).absolute()
    nearest = absolute
    while not os.path.lexists(nearest):  # a link to nowhere is in the way, too
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"{flag} {path} cannot be created: {nearest} is not a folder")
    try:
        with tempfile.TemporaryDirectory(prefix=".megascratch-", dir=nearest) as trial:
            Path(trial, absolute.relative_to(nearest)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{flag} {path} cannot be created: {nearest} cannot be written: {error.strerror}"
        ) from error
