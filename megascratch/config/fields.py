"""The sections of `Config` seen as one flat list of names, because flags, YAML keys and laws speak of names alone."""

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
"""Setting -> the section that holds it; settings are unique across the sections."""

HINTS: dict[str, Any] = {name: hint for record in SECTIONS.values() for name, hint in get_type_hints(record).items()}
"""Setting -> its type."""


def flat(config: Config) -> dict[str, Any]:
    """Every setting by its name, in the order of the sections."""
    return {name: getattr(getattr(config, section), name) for name, section in SECTION_OF.items()}


def with_fields(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with some settings replaced by name; an unknown name is a KeyError (our bug, not the user's)."""
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
    """' - did you mean X?' for the known word nearest to a misspelt one, or '' when none is near."""
    near = _near(word, known)
    return f" - did you mean {near}?" if near else ""


def meant(name: str) -> str:
    """The setting that a misspelt one may mean; '' when none is near."""
    return _near(name, list(SECTION_OF))


def _near(word: str, known: list[str]) -> str:
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.6)), "")
