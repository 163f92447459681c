"""Checks the state that a checkpoint stores in addition to its tensors, and reads its settings as a `Config`."""

from collections.abc import Mapping
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
from megascratch.config.settings import Config
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


def require_valid_state(state: Mapping[str, Any]) -> None:
    """Raises: UserError, naming the field or all settings, for values that no run could have written."""
    require_fields(state, STATE_FIELDS, "the state")
    require_fields(state.get("train_state", {}), TRAIN_STATE_FIELDS, "train_state")
    said = []
    for name, value in _by_name(state.get("config", {})).items():
        if name in SETTINGS:
            said.append(Said(name, "checkpoint", f"setting {name}", value))
    found = read(said, SETTINGS)
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


def _by_name(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Setting -> value."""
    values: dict[str, Any] = {}
    for section in sections.values():
        for name, value in section.items():
            values[name] = value
    return values
