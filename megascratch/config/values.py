"""Reads what a source says about the settings: a file, the flags of a command line, or any other one.

A source yields `Said`, one for each setting that it mentions, and keeps to itself how it is written. `read` turns them
into typed values and a list of problems; `typed` decides what a value of each type is.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from megascratch.config.declare import Setting, kinds_of
from megascratch.config.hints import meant
from megascratch.config.printable import shown
from megascratch.config.registry import how_to_add
from megascratch.config.yaml_nodes import Foreign

MOST_SHOWN = 6  # items of a list in a message
LARGEST_NUMBER = (1 << 63) - 1
EXACT = 1 << 53  # up to here a float holds every whole number
THOUSANDS = {"k": 1, "m": 2, "g": 3, "b": 3, "t": 4}  # 2k, 1.5M, 3B
TYPE_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text (in quotes)",
}
"""What a value of each type must be, for a message."""


class Said(NamedTuple):
    """What a source says about one setting."""

    name: str
    place: str
    """Where the value comes from: 'FILE:LINE' or 'flag'."""
    label: str
    """The beginning of a message about the value: 'FILE:LINE: lr' or '--lr'."""
    value: Any = None
    """As YAML and JSON have it: a bool, a number, a text, a list of those, or None."""
    problem: str | None = None
    """Why there is no value, such as an unknown name; a whole message."""
    notice: str | None = None
    """What the user should know about the value, such as that it replaces another one."""


@dataclass(frozen=True)
class ReadSettings:
    """The settings of one or several sources."""

    values: dict[str, Any]
    """The valid values, by setting."""
    places: dict[str, str]
    """Setting -> where its value comes from."""
    problems: list[str]
    unread: set[str]
    """Settings whose value is unknown because of a problem: laws that read them cannot be checked."""
    notices: list[str] = field(default_factory=list)
    """What the user should know although nothing is wrong, one sentence each."""

    def then(self, later: "ReadSettings") -> "ReadSettings":
        """Both together; what the later source says replaces what this one says."""
        return ReadSettings(
            self.values | later.values,
            self.places | later.places,
            self.problems + later.problems,
            (self.unread - later.values.keys()) | later.unread,
            self.notices + later.notices,
        )


def read(said: Iterable[Said], settings: Mapping[str, Setting]) -> ReadSettings:
    """The typed values of all settings that a source mentions, and all problems, in order."""
    result = ReadSettings({}, {}, [], set())
    for one in said:
        problem = one.problem
        if one.notice is not None:
            result.notices.append(one.notice)
        if problem is None:
            try:
                result.values[one.name] = _value(one.value, settings[one.name])
                result.places[one.name] = one.place
            except TypeError as error:
                advice = _advice(one.value, settings[one.name].kind)
                problem = f"{one.label} must be {error}, not {_shown(one.value)}{advice}"
        if problem is not None:
            result.problems.append(problem)
            name = one.name if one.name in settings else meant(one.name, settings)
            result.unread.add(name)
    result.unread.discard("")  # the unknown name means no setting
    return result


def _value(raw: Any, setting: Setting) -> Any:
    """The value of a setting. Raises TypeError whose text says what the value must be."""
    value = typed(raw, setting.hint)
    choices = setting.choices
    if choices is None or value is None:
        return value
    given = value if isinstance(value, list) else [value]
    if not all(name in choices for name in given):
        raise TypeError("one of " + ", ".join(choices) + how_to_add(choices))
    return value


def typed(raw: Any, hint: Any) -> Any:
    """Converts a value of YAML or JSON to this type. Integers may stand for floats, floats like 1e3 for integers, and
    numbers for text in a list.

    Raises TypeError whose text says what the value must be.
    """
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return None if raw is None else _typed_as_one_of(raw, kinds_of(hint))
    if origin is Literal and raw not in get_args(hint):
        raise TypeError("one of " + ", ".join(get_args(hint)))
    if origin is Literal:
        return str(raw)
    if origin is list:
        return _typed_list(raw, get_args(hint)[0])
    if isinstance(raw, int) and abs(raw) > LARGEST_NUMBER:
        raise TypeError("a number of at most 64 bits")
    if hint is float and _is_number(raw):
        return float(raw)
    if hint is int and isinstance(raw, float) and raw.is_integer() and abs(raw) <= EXACT:
        return int(raw)
    if hint is str and isinstance(raw, str) and not _is_valid_text(raw):
        raise TypeError("text without NUL characters and lone surrogates")
    if isinstance(raw, hint) and isinstance(raw, bool) == (hint is bool):
        # a bool is an int in Python
        return raw
    raise TypeError(TYPE_NAMES[hint])


def _typed_as_one_of(raw: Any, kinds: Sequence[Any]) -> Any:
    """The value as the first of these types that it can be."""
    wrong = []
    for kind in kinds:
        try:
            return typed(raw, kind)
        except TypeError as error:
            wrong.append(str(error))
    raise TypeError(", or ".join(wrong))


def _advice(raw: Any, kind: Any) -> str:
    """' (write 2000)' for the number that a text probably means; '' if that is not clear."""
    if kind is int and isinstance(raw, float) and math.isfinite(raw) and abs(raw) <= EXACT:
        return f" (use {math.floor(raw)} or {math.ceil(raw)})"
    if kind not in (int, float) or not isinstance(raw, str):
        return ""
    found = re.fullmatch(
        r"([+-]?\d[\d,_ ]*\.?\d*(?:e[+-]?\d+)?)\s*([kmgbt%]?)", raw.strip().lower()
    )
    if found is None:
        return ""
    number = float(re.sub("[,_ ]", "", found[1]))
    if found[2] == "%":
        number /= 100
    elif found[2]:
        number *= 1000 ** THOUSANDS[found[2]]
    if kind is float:
        return f" (write {number:g})"
    return f" (write {number:.0f})" if number.is_integer() else ""


def _is_number(raw: Any) -> bool:
    return isinstance(raw, int | float) and not isinstance(raw, bool)


def _is_valid_text(text: str) -> bool:
    if "\0" in text:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _typed_list(raw: Any, item: Any) -> list[Any]:
    if get_origin(item) is Literal:
        kind = "names out of " + ", ".join(get_args(item))
    else:
        kind = {int: "whole numbers", float: "numbers", str: "texts"}[item]
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
