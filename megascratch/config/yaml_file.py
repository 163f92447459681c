"""A YAML file of settings in, typed values with their lines and a list of problems out."""

from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from megascratch.config.errors import SettingError
from megascratch.config.fields import HINTS, SECTION_OF, SECTIONS, meant, nearest

LARGEST_FILE = 1 << 20  # bytes: every setting with its comment has 2**14
MOST_SHOWN = 6  # items of a list in a complaint

Entry = tuple[str, str | None, Any, int]
"""(key as a field name, section it stands in, raw value, line counted from 1)"""


def read_settings(file: str) -> tuple[dict[str, Any], dict[str, str], list[str], set[str]]:
    """(values by setting, 'FILE:LINE' by setting, problems, settings that have one) of one file, flat or sectioned.

    Raises SettingError when the file cannot be read or is not YAML, a doubled key included.
    """
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    problems: list[str] = []
    unread: set[str] = set()
    for key, section, raw, line in _entries(_tree(file)):
        place = f"{file}:{line}"
        complaint = _misplaced(key, section)
        if complaint is None and key in places:
            complaint = f"{key} is given a second time (first at {places[key]})"
        if complaint is None:
            places[key] = place
            try:
                values[key] = typed(raw, HINTS[key])
            except TypeError as error:
                complaint = f"{key} must be {error}, not {_shown(raw)}"
        if complaint is not None:
            problems.append(f"{place}: {complaint}")
            unread.add(key if key in SECTION_OF else meant(key))
    return values, places, problems, unread & SECTION_OF.keys()


def typed(raw: Any, hint: Any) -> Any:
    """The YAML value as plain Python of this type; whole numbers pass for floats and numbers for text in a list.

    Raises TypeError whose text says what the value must be.
    """
    if get_origin(hint) in (Union, UnionType):
        inner = [kind for kind in get_args(hint) if kind is not type(None)]
        return None if raw is None else typed(raw, inner[0])
    if get_origin(hint) is Literal:
        if raw in get_args(hint):
            return str(raw)
        raise TypeError("one of " + ", ".join(get_args(hint)))
    if get_origin(hint) is list:
        return _typed_list(raw, get_args(hint)[0])
    if hint is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        return float(raw)
    if isinstance(raw, hint) and isinstance(raw, bool) == (hint is bool):
        return hint(raw)  # ruamel's ScalarInt and quoted strings become int and str
    raise TypeError({int: "a whole number", float: "a number", bool: "true or false", str: "text (in quotes)"}[hint])


def _typed_list(raw: Any, item: type) -> list[Any]:
    kind = {int: "whole numbers", str: "texts"}[item]
    if not isinstance(raw, list):
        raise TypeError(f"a list of {kind} like [a, b]")
    if item is str:  # data_path mixes weights and prefixes: [0.3, a, 0.7, b]
        raw = [str(part) if isinstance(part, int | float) and not isinstance(part, bool) else part for part in raw]
    try:
        return [typed(part, item) for part in raw]
    except TypeError:
        raise TypeError(f"a list of {kind}") from None


def _tree(file: str) -> Any:
    try:
        with Path(file).open("rb") as source:
            content = source.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise SettingError(f"config file {file} has more than {LARGEST_FILE:,} bytes: it holds no settings")
        return YAML(typ="rt", pure=True).load(content.decode())
    except RecursionError:
        raise SettingError(f"config file {file} is nested too deep") from None
    except OSError as error:
        raise SettingError(f"config file {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingError(f"config file {file} is not UTF-8 text: {error}") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SettingError(f"{file}:{line}: {error.problem}") from None
    except YAMLError as error:
        raise SettingError(f"{file}: not YAML: {error}") from None


def _entries(tree: Any) -> list[Entry]:
    """The settings of the file in order; a section without entries (None) is empty."""
    if tree is None:
        return []
    if not isinstance(tree, CommentedMap):
        raise SettingError(f"a config file holds `setting: value` lines, not a {type(tree).__name__}")
    entries: list[Entry] = []
    for key, raw in tree.items():
        name, line = _field(key), tree.lc.key(key)[0] + 1
        if name in SECTIONS and isinstance(raw, CommentedMap):
            entries += [(_field(inner), name, value, raw.lc.key(inner)[0] + 1) for inner, value in raw.items()]
        elif name not in SECTIONS or raw is not None:
            entries.append((name, None, raw, line))
    return entries


def _field(key: Any) -> str:
    return str(key).replace("-", "_")


def _misplaced(key: str, section: str | None) -> str | None:
    if key in SECTIONS:
        return f"section {key} must hold `setting: value` lines"
    if key not in SECTION_OF:
        return f"unknown setting {key}{nearest(key, [*SECTION_OF, *SECTIONS])}"
    if section not in (None, SECTION_OF[key]):
        return f"{key} stands in section {section} but belongs to section {SECTION_OF[key]}"
    return None


def _shown(raw: Any, deep: int = 1) -> str:
    """A value in a complaint, but not all of one that unfolds to gigabytes."""
    if isinstance(raw, str):
        return repr(str(raw)) if len(raw) <= 80 else f"{str(raw)[:80]!r}..."
    if isinstance(raw, list) and deep:
        more = ", ..." if len(raw) > MOST_SHOWN else ""
        return f"[{', '.join(_shown(item, deep - 1) for item in raw[:MOST_SHOWN])}{more}]"
    return f"a {type(raw).__name__}" if isinstance(raw, list | dict) else str(raw)[:80]
