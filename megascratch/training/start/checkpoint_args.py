"""Takes the shape of the model and the tokenizer from a checkpoint (use_checkpoint_args), before the laws are checked.
Needs no torch: only the settings in the checkpoint's manifest are read. Loading checks the manifest itself, and that
these settings fit its tensors.
"""

import json
from pathlib import Path
from typing import Any

from megascratch.config.errors import UserError
from megascratch.config.fields import SETTINGS, flag, flat, with_fields
from megascratch.config.load import Loaded
from megascratch.config.printable import shown
from megascratch.config.saved import require_valid_state
from megascratch.storage.path import Place, storage_path
from megascratch.storage.run_folders import CHECKPOINTS, MANIFEST, STEP_NAME, name_of_step
from megascratch.storage.store import Store

TOKENIZER = ("tokenizer_type", "tokenizer_model", "vocab_file", "merge_file")


def with_checkpoint_args(loaded: Loaded) -> Loaded:
    """The settings, with those of the checkpoint in their place if use_checkpoint_args asks for it. One notice names
    what they replace.

    Raises: UserError if there is no checkpoint that must be there, or if its settings cannot be read.
    """
    training = loaded.config.training
    if not training.use_checkpoint_args or training.load is None:
        return loaded
    step = _step(training.load, training.ckpt_step)
    if step is None:
        return loaded  # a fresh start, or an error of the start
    saved = _settings(step)
    given = flat(loaded.config)
    taken = {}
    for name, setting in SETTINGS.items():
        if name in saved and (setting.section == "model" or name in TOKENIZER):
            taken[name] = saved[name]
    replaced = []
    for name, value in taken.items():
        if name in loaded.origins.places and given[name] != value:
            replaced.append(f"{flag(name)} {shown(str(value))} (given: {shown(str(given[name]))})")
    words = ", ".join(replaced) or "nothing that was given"
    loaded.origins.notices.append(f"use-checkpoint-args: {step.name} replaces {words}")
    unread = loaded.unread - taken.keys()
    return loaded._replace(config=with_fields(loaded.config, taken), unread=unread)


def _step(load: str, number: int | None) -> Place | None:
    """The folder of the step whose settings are read; None if there is none."""
    place = storage_path(load)
    if STEP_NAME.fullmatch(place.name):
        return place
    for folder in (place, place / CHECKPOINTS):
        names = sorted((name for name in _names(folder) if STEP_NAME.fullmatch(name)), key=_number)
        if names:
            return folder / (names[-1] if number is None else name_of_step(load, names, number))
    return None


def _number(name: str) -> int:
    return int(name.removeprefix("step_"))


def _names(folder: Place) -> list[str]:
    if not isinstance(folder, Path):
        return Store(folder.url).names(folder.url)
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _settings(step: Place) -> dict[str, Any]:
    """Setting -> value in the manifest of a step. Raises: UserError."""
    file = step / MANIFEST
    try:
        state = json.loads(_content(file))["body"]["state"]
        require_valid_state(state)
        sections = state["config"].values()
        return {name: value for section in sections for name, value in section.items()}
    except (
        UserError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UserError(
            f"--use-checkpoint-args: the settings of {step} cannot be read: {shown(str(error))}"
        ) from error


def _content(file: Place) -> bytes:
    if isinstance(file, Path):
        return file.read_bytes()
    return Store(file.url).content(file.url)
