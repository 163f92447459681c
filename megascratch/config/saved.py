"""Checks the state that a checkpoint stores in addition to its tensors, and reads its settings as a `Config`."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from megascratch.config.errors import UserError
from megascratch.config.fields import RANGES, SETTINGS, with_fields
from megascratch.config.json_record import (
    COUNT,
    NUMBER,
    OBJECT,
    TEXT,
    Kind,
    list_of,
    object_of,
    optional,
    require_fields,
)
from megascratch.config.printable import shown
from megascratch.config.ranges import out_of_range
from megascratch.config.registry import Kind as PartKind
from megascratch.config.registry import NamesOfKind, words
from megascratch.config.settings import Config, ModelConfig
from megascratch.config.values import Said, read

FILE_DIGEST = Kind(
    "an object with bytes and a digest",
    lambda value: isinstance(value, dict) and COUNT.holds(value.get("bytes", 0)),
)
STATE_FIELDS = {
    "config": object_of(OBJECT),
    "train_state": OBJECT,
    "data_files": object_of(object_of(FILE_DIGEST)),
    "tokenizer_fingerprint": optional(TEXT),
    "imports": object_of(TEXT),
    "valid_loss": optional(NUMBER),
}
"""The fields that training writes into a checkpoint's state; other programs may write other fields."""

TRAIN_STATE_FIELDS = {
    "step": COUNT,
    "consumed_samples": COUNT,
    "loss_scale": object_of(NUMBER),
    "optimizer": object_of(COUNT),
    "recent_losses": list_of(NUMBER),
    "bad_steps": COUNT,
    "skipped_samples": list_of(list_of(COUNT, length=2)),
}
"""The fields of `training.state.TrainState`."""


NAMES_UNCHECKED = {name: setting._replace(names=None) for name, setting in SETTINGS.items()}
"""A checkpoint can be inspected, copied and compared without the code that registers its parts."""


def require_valid_state(state: Mapping[str, Any]) -> None:
    """Raises: UserError, naming the field or all settings, for values that no run could have written."""
    require_fields(state, STATE_FIELDS, "the state")
    require_fields(state.get("train_state", {}), TRAIN_STATE_FIELDS, "train_state")
    said = []
    for name, value in _by_name(state.get("config", {})).items():
        if name in SETTINGS:
            said.append(Said(name, "checkpoint", f"setting {name}", value))
    found = read(said, NAMES_UNCHECKED)
    wrong = out_of_range(dict.fromkeys(SETTINGS) | found.values, RANGES)
    problems = [*found.problems, *wrong.values()]
    if problems:
        raise UserError("; ".join(problems))


def config_from_dict(saved: dict[str, Any]) -> Config:
    """The config of a checkpoint from nested dicts, as `dataclasses.asdict` makes them.

    Settings that are missing because the checkpoint is older get their defaults.
    Raises: UserError for a setting that this version does not know, since ignoring it could change the model.
    """
    values = _by_name(saved)
    unknown = sorted(values.keys() - SETTINGS.keys())
    if unknown:
        raise UserError(
            f"the checkpoint has settings that this version does not know: {shown(', '.join(unknown))}; "
            f"use the version that wrote it"
        )
    return with_fields(Config(), values)


def require_parts(model: ModelConfig, imports: Mapping[str, str]) -> None:
    """Raises: UserError, naming --import, for parts of the model that no code of this process has registered. The code
    that a checkpoint names is never run by itself.

    Args:
        imports: what the run had imported, with digests.
    """
    needed: list[tuple[PartKind, str]] = [("norm", model.normalization)]
    if model.activation_function is not None:
        needed.append(("activation", model.activation_function))
    needed += [("mixer", name) for name in model.mixers or ()]
    needed += [("feed_forward", name) for name in model.feed_forwards or ()]
    missing = []
    for kind, name in dict.fromkeys(needed):
        if name not in NamesOfKind(kind):
            missing.append(f"the {words(kind)} {shown(name)}")
    if missing:
        run = [PurePath(source).name for source in imports if " " not in source]
        was = f" (the run imported {shown(', '.join(run))})" if run else ""
        raise UserError(
            f"this model needs {_listed(missing)}: give --import with the file that registers it{was}"
        )


def _listed(names: list[str]) -> str:
    """a, b and c"""
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last


def _by_name(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Setting -> value."""
    values: dict[str, Any] = {}
    for section in sections.values():
        for name, value in section.items():
            values[name] = value
    return values
