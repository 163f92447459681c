"""Reads a YAML file of settings, with or without sections, and knows the line of each value.

base: &base {lr: 1e-3, clip_grad: 0.5}      a mapping that is only there to be merged may have any name
optim:
  <<: *base
  lr: 1e-4                                  overrides the merged value
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ruamel.yaml.nodes import MappingNode, ScalarNode

from megascratch.config.declare import Setting
from megascratch.config.errors import SettingError
from megascratch.config.fields import ALIASES, SETTINGS, nearest
from megascratch.config.printable import shown
from megascratch.config.values import ReadSettings, Said, read
from megascratch.config.yaml_nodes import entries, is_template, kind_of, read_tree, value_of

MOST_PROBLEMS = 20  # lines of problems for one file


class _Line(NamedTuple):
    """`key: value` of the file."""

    key: str  # as a field name
    section: str | None  # in which the file has it
    raw: Any
    number: int  # counted from 1


def read_file(
    file: str, settings: Mapping[str, Setting] = SETTINGS, label: str | None = None
) -> ReadSettings:
    """The settings of a file.

    Args:
        label: how messages and origins name the file; default: by its path.

    Raises SettingError if the file cannot be read or is not YAML; a repeated key is an error, too.
    """
    found = read(_said(file, settings, label or file), settings)
    if len(found.problems) <= MOST_PROBLEMS:
        return found
    reported = found.problems[: MOST_PROBLEMS - 1]
    more = len(found.problems) - len(reported)
    return replace(found, problems=[*reported, f"{file}: and {more:,} more problems"])


def _said(file: str, settings: Mapping[str, Setting], label: str) -> Iterator[Said]:
    sections = {setting.section for setting in settings.values()}
    first: dict[str, str] = {}  # setting -> where it is given for the first time
    for key, section, raw, number in _lines(file, settings, sections):
        place = f"{label}:{number}"
        problem = None
        if key in sections:
            problem = f"section {key} must contain `setting: value` lines"
        elif key not in settings:
            problem = f"unknown setting {shown(key)}{nearest(key, [*settings, *sections])}"
        elif section not in (None, settings[key].section):
            problem = (
                f"{key} is in section {section} but belongs to section {settings[key].section}"
            )
        elif key in first:
            problem = f"{key} is given a second time (first at {first[key]})"
        if problem is not None:
            yield Said(key, place, key, problem=f"{place}: {problem}")
            continue
        first[key] = place
        yield Said(key, place, f"{place}: {key}", raw)


def _lines(file: str, settings: Mapping[str, Setting], sections: set[str]) -> Iterator[_Line]:
    """The settings of the file in order; a section may be empty (None)."""
    root = read_tree(file)
    if root is None or (isinstance(root, ScalarNode) and value_of(root) is None):
        return
    if not isinstance(root, MappingNode):
        raise SettingError(
            f"{file}: a config file must contain `setting: value` lines, not {kind_of(root)}"
        )
    for entry in entries(root, file):
        name = _field(entry.key)
        value = value_of(entry.value)
        if name in sections and isinstance(entry.value, MappingNode):
            for inner in entries(entry.value, file):
                yield _Line(_field(inner.key), name, value_of(inner.value), inner.line)
        elif name in sections and value is None:
            continue
        elif name in settings or not is_template(entry.value, root):
            yield _Line(name, None, value, entry.line)


def _field(key: Any) -> str:
    name = str(key).replace("-", "_")
    return ALIASES.get(name, name)
