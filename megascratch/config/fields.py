"""Reads and replaces settings by name, without their section, as flags, YAML keys and laws do."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, get_type_hints

from megascratch.config.settings import Config

SECTIONS: dict[str, type] = get_type_hints(Config)
"""Section name -> its dataclass."""

SECTION_OF: dict[str, str] = {}
"""Setting -> its section; the names are unique across the sections."""

HINTS: dict[str, Any] = {}
"""Setting -> its type."""

for _section, _record in SECTIONS.items():
    _hints = get_type_hints(_record)
    SECTION_OF.update(dict.fromkeys(_hints, _section))
    HINTS.update(_hints)


def flat(config: Config) -> dict[str, Any]:
    """Setting -> value, in the order of the sections."""
    values = {}
    for name, section in SECTION_OF.items():
        record = getattr(config, section)
        values[name] = getattr(record, name)
    return values


def with_fields(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with some settings replaced. Raises: KeyError for an unknown name (a bug of ours, not the user's)."""
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        changes.setdefault(SECTION_OF[name], {})[name] = value
    sections = {}
    for section, new in changes.items():
        sections[section] = dataclasses.replace(getattr(config, section), **new)
    return dataclasses.replace(config, **sections)


def flag(name: str) -> str:
    """`lr_decay_iters` -> `--lr-decay-iters`."""
    return "--" + name.replace("_", "-")


def nearest(word: str, known: list[str]) -> str:
    """' - did you mean X?' with the known word most similar to a misspelt one; '' if none is similar."""
    similar = _most_similar(word, known)
    return f" - did you mean {similar}?" if similar else ""


def meant(name: str) -> str:
    """The setting that a misspelt name probably means; '' if none is similar."""
    return _most_similar(name, list(SECTION_OF))


def _most_similar(word: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return matches[0] if matches else ""
