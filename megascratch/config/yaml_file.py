"""Reads a YAML file of settings, with or without sections, and knows the line of each value.

base: &base {lr: 1e-3, clip_grad: 0.5}      a mapping that is only there to be merged may have any name
optim:
  <<: *base
  lr: 1e-4                                  overrides the merged value
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ruamel.yaml.nodes import MappingNode, ScalarNode

from megascratch.config.declare import Setting
from megascratch.config.errors import SettingError
from megascratch.config.fields import ALIASES, SETTINGS
from megascratch.config.hints import hint, meant
from megascratch.config.printable import shown
from megascratch.config.values import ReadSettings, Said, read
from megascratch.config.yaml_nodes import entries, is_template, kind_of, read_tree, value_of

MOST_PROBLEMS = 5  # lines of problems for one file
HUGGING_FACE = {
    "model_type",
    "architectures",
    "transformers_version",
}  # keys of a model's config.json


class _Line(NamedTuple):
    """`key: value` of the file."""

    key: str  # as a field name
    section: str | None  # in which the file has it
    raw: Any
    number: int  # counted from 1
    inner: Sequence[str] = ()  # the keys, if the value is a mapping


def read_file(
    file: str, settings: Mapping[str, Setting] = SETTINGS, label: str | None = None
) -> ReadSettings:
    """The settings of a file.

    Args:
        label: how messages and origins name the file; default: by its path.

    Raises SettingError if the file cannot be read or is not YAML; a repeated key is an error, too.
    """
    found = read(_said(file, settings, label or file), settings)
    if not found.values and not found.problems:
        found.notices.append(f"config file {label or file} has no settings")
    if len(found.problems) <= MOST_PROBLEMS:
        return found
    reported = found.problems[: MOST_PROBLEMS - 1]
    more = len(found.problems) - len(reported)
    return replace(found, problems=[*reported, f"{label or file}: and {more:,} more problems"])


def _said(file: str, settings: Mapping[str, Setting], label: str) -> Iterator[Said]:
    sections = {setting.section for setting in settings.values()}
    first: dict[str, str] = {}  # setting -> where it is given for the first time
    for key, section, raw, number, inner in _lines(file, settings, sections):
        place = f"{label}:{number}"
        problem = None
        if key in sections:
            problem = f"section {key} must contain `setting: value` lines"
        elif inner and (belongs := _section_of(inner, settings)):
            problem = f"there is no section {shown(key)}: its settings belong to section {belongs}"
        elif key not in settings:
            similar = hint(key, [*settings, *sections], as_flag=False)
            problem = f"unknown setting {shown(key)}{similar}"
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
    lines = entries(root, file)
    if HUGGING_FACE & {entry.key for entry in lines}:
        raise SettingError(
            f"config file {file} describes a model of Hugging Face transformers: its weights cannot be imported yet "
            "(docs/limits.md); docs/coming-from.md has the names of its sizes here, `megascratch init` ready configs"
        )
    for entry in lines:
        name = _field(entry.key)
        value = value_of(entry.value)
        if name in sections and isinstance(entry.value, MappingNode):
            for inner in entries(entry.value, file):
                yield _Line(_field(inner.key), name, value_of(inner.value), inner.line)
        elif name in sections and value is None:
            continue
        elif name in settings or not is_template(entry.value, root):
            below = []
            if isinstance(entry.value, MappingNode):
                below = [_field(inner.key) for inner in entries(entry.value, file)]
            yield _Line(name, None, value, entry.line, below)


def _section_of(names: Sequence[str], settings: Mapping[str, Setting]) -> str:
    """The section that most of these settings belong to; '' if they are none."""
    found = [meant(name, settings) for name in names]
    sections = Counter(settings[name].section for name in found if name)
    return sections.most_common(1)[0][0] if sections else ""


def _field(key: Any) -> str:
    name = str(key).replace("-", "_")
    return ALIASES.get(name, name)
