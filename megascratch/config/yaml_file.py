"""Reads a YAML file of settings: typed values with their line numbers, and a list of problems.

base: &base {lr: 1e-3, clip_grad: 0.5}      a mapping that is only there to be merged may have any name
optim:
  <<: *base
  lr: 1e-4                                  overrides the merged value
"""

from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from ruamel.yaml.nodes import MappingNode, ScalarNode

from megascratch.config.errors import SettingError
from megascratch.config.fields import HINTS, SECTION_OF, SECTIONS, meant, nearest
from megascratch.config.printable import shown
from megascratch.config.yaml_nodes import (
    Foreign,
    entries,
    is_template,
    kind_of,
    read_tree,
    value_of,
)

MOST_SHOWN = 6  # items of a list in a message
MOST_PROBLEMS = 20  # lines of problems for one file
LARGEST_NUMBER = (1 << 63) - 1
TYPE_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text (in quotes)",
}
"""What a value of each type must be, for a message."""


class FileSettings(NamedTuple):
    """What a file says about the settings."""

    values: dict[str, Any]
    """The valid values, by setting."""
    places: dict[str, str]
    """Setting -> 'FILE:LINE'."""
    problems: list[str]
    unread: set[str]
    """Settings whose value is unknown because of a problem."""


class _Setting(NamedTuple):
    """A setting as it is in the file."""

    key: str  # as a field name
    section: str | None  # in which the file has it
    raw: Any
    line: int  # counted from 1


def read_settings(file: str) -> FileSettings:
    """Reads a file with or without sections.

    Raises SettingError if the file cannot be read or is not YAML; a repeated key is an error, too.
    """
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    problems: list[str] = []
    unread: set[str] = set()
    for key, section, raw, line in _entries(file):
        place = f"{file}:{line}"
        problem = _misplaced(key, section)
        if problem is None and key in places:
            problem = f"{key} is given a second time (first at {places[key]})"
        if problem is None:
            places[key] = place
            try:
                values[key] = typed(raw, HINTS[key])
            except TypeError as error:
                problem = f"{key} must be {error}, not {_shown(raw)}"
        if problem is not None:
            problems.append(f"{place}: {problem}")
            if key in SECTION_OF:
                unread.add(key)
            else:
                unread.add(meant(key))
    if len(problems) > MOST_PROBLEMS:
        reported = problems[: MOST_PROBLEMS - 1]
        more = len(problems) - len(reported)
        problems = [*reported, f"{file}: and {more:,} more problems"]
    return FileSettings(values, places, problems, unread & SECTION_OF.keys())


def typed(raw: Any, hint: Any) -> Any:
    """Converts a value of YAML or JSON to this type. Integers may stand for floats, and numbers for text in a list.

    Raises TypeError whose text says what the value must be.
    """
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        if raw is None:
            return None
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return typed(raw, kinds[0])
    if origin is Literal:
        if raw in get_args(hint):
            return str(raw)
        raise TypeError("one of " + ", ".join(get_args(hint)))
    if origin is list:
        return _typed_list(raw, get_args(hint)[0])
    if isinstance(raw, int) and abs(raw) > LARGEST_NUMBER:
        raise TypeError("a number of at most 64 bits")
    if hint is float and _is_number(raw):
        return float(raw)
    if hint is str and isinstance(raw, str) and not _is_valid_text(raw):
        raise TypeError("text without NUL characters and lone surrogates")
    if isinstance(raw, hint) and isinstance(raw, bool) == (hint is bool):
        # a bool is an int in Python
        return raw
    raise TypeError(TYPE_NAMES[hint])


def _is_number(raw: Any) -> bool:
    return isinstance(raw, int | float) and not isinstance(raw, bool)


def _is_valid_text(text: str) -> bool:
    if "\0" in text:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _typed_list(raw: Any, item: type) -> list[Any]:
    kind = {int: "whole numbers", str: "texts"}[item]
    if not isinstance(raw, list):
        raise TypeError(f"a list of {kind} like [a, b]")
    items = []
    for part in raw:
        if item is str and _is_number(part):
            # data_path mixes weights and prefixes: [0.3, a, 0.7, b]
            part = str(part)
        try:
            items.append(typed(part, item))
        except TypeError:
            raise TypeError(f"a list of {kind}") from None
    return items


def _entries(file: str) -> list[_Setting]:
    """The settings of the file in order; a section may be empty (None)."""
    root = read_tree(file)
    if root is None or (isinstance(root, ScalarNode) and value_of(root) is None):
        return []
    if not isinstance(root, MappingNode):
        raise SettingError(
            f"{file}: a config file must contain `setting: value` lines, not {kind_of(root)}"
        )
    settings: list[_Setting] = []
    for entry in entries(root, file):
        name = _field(entry.key)
        value = value_of(entry.value)
        if name in SECTIONS and isinstance(entry.value, MappingNode):
            for inner in entries(entry.value, file):
                settings.append(
                    _Setting(_field(inner.key), name, value_of(inner.value), inner.line)
                )
        elif name in SECTIONS and value is None:
            continue
        elif name in SECTION_OF or not is_template(entry.value, root):
            settings.append(_Setting(name, None, value, entry.line))
    return settings


def _field(key: Any) -> str:
    return str(key).replace("-", "_")


def _misplaced(key: str, section: str | None) -> str | None:
    if key in SECTIONS:
        return f"section {key} must contain `setting: value` lines"
    if key not in SECTION_OF:
        return f"unknown setting {shown(key)}{nearest(key, [*SECTION_OF, *SECTIONS])}"
    if section not in (None, SECTION_OF[key]):
        return f"{key} is in section {section} but belongs to section {SECTION_OF[key]}"
    return None


def _shown(raw: Any) -> str:
    """A value of any length, for a message."""
    if isinstance(raw, Foreign):
        return raw.words
    if isinstance(raw, str):
        return f"'{shown(raw, 80)}'"
    if isinstance(raw, list):
        items = [_shown(item) for item in raw[:MOST_SHOWN]]
        if len(raw) > MOST_SHOWN:
            items.append("...")
        return f"[{', '.join(items)}]"
    return shown(raw, 80)
