"""Reads and replaces settings by name, without their section, as flags, YAML keys and laws do."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, get_type_hints

from megascratch.config.settings import Config

SECTIONS: dict[str, type] = get_type_hints(Config)
"""Section name -> its dataclass."""

SECTION_OF: dict[str, str] = {
    field.name: section for section, record in SECTIONS.items() for field in dataclasses.fields(record)
}
"""Setting -> its section; the names are unique across the sections."""

HINTS: dict[str, Any] = {name: hint for record in SECTIONS.values() for name, hint in get_type_hints(record).items()}
"""Setting -> its type."""


def flat(config: Config) -> dict[str, Any]:
    """Setting -> value, in the order of the sections."""
    return {name: getattr(getattr(config, section), name) for name, section in SECTION_OF.items()}


def with_fields(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with some settings replaced. Raises: KeyError for an unknown name (a bug of ours, not the user's)."""
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        changes.setdefault(SECTION_OF[name], {})[name] = value
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **new) for section, new in changes.items()}
    )


def flag(name: str) -> str:
    """`lr_decay_iters` -> `--lr-decay-iters`."""
    return "--" + name.replace("_", "-")


def nearest(word: str, known: list[str]) -> str:
    """' - did you mean X?' with the known word most similar to a misspelt one; '' if none is similar."""
    near = _near(word, known)
    return f" - did you mean {near}?" if near else ""


def meant(name: str) -> str:
    """The setting that a misspelt name probably means; '' if none is similar."""
    return _near(name, list(SECTION_OF))


def _near(word: str, known: list[str]) -> str:
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.6)), "")
