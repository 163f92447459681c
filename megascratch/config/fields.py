"""The table of all settings, by name without their section, as flags, YAML keys and laws use them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

from megascratch.config.declare import Setting, settings_of
from megascratch.config.ranges import Interval
from megascratch.config.settings import Config

SECTIONS: dict[str, type] = get_type_hints(Config)
"""Section name -> its dataclass."""

SETTINGS: dict[str, Setting] = settings_of(SECTIONS)
"""Setting -> its declaration, in the order of the sections."""

ALIASES = {"import": "imports"}
"""Other spellings of a setting; Python does not allow a field with the name `import`."""

RANGES: dict[str, Interval] = {
    name: setting.interval for name, setting in SETTINGS.items() if setting.interval is not None
}


def flat(config: Config) -> dict[str, Any]:
    """Setting -> value, in the order of the sections."""
    values = {}
    for name, setting in SETTINGS.items():
        values[name] = getattr(getattr(config, setting.section), name)
    return values


def with_fields(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with some settings replaced. Raises: KeyError for an unknown name (a bug of ours, not the user's)."""
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        changes.setdefault(SETTINGS[name].section, {})[name] = value
    sections = {}
    for section, new in changes.items():
        sections[section] = dataclasses.replace(getattr(config, section), **new)
    return dataclasses.replace(config, **sections)


def flag(name: str) -> str:
    """`lr_decay_iters` -> `--lr-decay-iters`."""
    return "--" + name.replace("_", "-")
