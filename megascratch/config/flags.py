"""Parses the flags of a command line into settings and reports every bad flag at once.

A flag library stops at the first bad flag and would hide the other problems, so each flag is parsed on its own here.
"""

from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from megascratch.config.fields import HINTS, SECTION_OF, flag, meant, nearest

OTHERS = {"config": str, "print_config": bool}
"""Flags that are not settings, with their types."""


class Words(NamedTuple):
    """A parsed command line."""

    values: dict[str, Any]
    """The valid values of settings and OTHERS that were given."""
    given: list[str]
    """Settings that were given, with a valid value or not."""
    problems: list[str]
    unread: set[str]
    """Settings whose value is unknown, because it is invalid or a misspelt flag probably means them."""


class _Group(NamedTuple):
    """`--name` and the words after it."""

    name: str  # as a field name
    negated: bool  # --no-name
    values: list[str]


def read_words(argv: Sequence[str]) -> Words:
    """Parses and checks every flag of a command line."""
    groups, stray = _groups(argv)  # stray: words before the first flag
    names = [group.name for group in groups]
    values: dict[str, Any] = {}
    problems: list[str] = []
    unread: set[str] = set()
    if stray:
        problems.append(
            f"unrecognized arguments: {' '.join(stray)}: put the flag in front of each value"
        )
    for position, group in enumerate(groups):
        try:
            values[group.name] = _value(group, names)
        except ValueError as error:
            if names.index(group.name) == position:  # a repeated flag is reported once
                problems.append(str(error))
            if group.name in SECTION_OF:
                unread.add(group.name)
            else:
                unread.add(meant(group.name))
    given = [name for name in names if name in SECTION_OF]
    return Words(values, given, problems, unread & SECTION_OF.keys())


def _groups(argv: Sequence[str]) -> tuple[list[_Group], list[str]]:
    """The flags with their values, and the words before the first flag."""
    groups: list[_Group] = []
    stray = []
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            head, *value = word[2:].split("=", 1)
            name = head.replace("-", "_")
            without_no = name.removeprefix("no_")
            negated = without_no != name and without_no in SECTION_OF
            groups.append(_Group(without_no if negated else name, negated, value))
        elif groups:
            groups[-1].values.append(word)
        else:
            stray.append(word)
    return groups, stray


def _value(group: _Group, names: list[str]) -> Any:
    """The value of a flag. Raises: ValueError whose text is the message to the user."""
    text = flag(group.name)
    hint = HINTS.get(group.name) or OTHERS.get(group.name)
    if hint is None:
        known = [flag(name) for name in (*SECTION_OF, *OTHERS, "help")]
        raise ValueError(f"unknown flag {text}{nearest(text, known)}")
    times = names.count(group.name)
    if times > 1:
        raise ValueError(f"{text} is given {times} times: give it once")
    if hint is bool:
        if group.values:
            raise ValueError(f"{text} does not accept a value (given: {' '.join(group.values)})")
        return not group.negated
    if group.negated:
        raise ValueError(f"--no-{text[2:]} does not exist: {text} needs a value")
    if not group.values:
        raise ValueError(f"{text} needs a value")
    return _typed(text, hint, group.values)


def _typed(text: str, hint: Any, values: list[str]) -> Any:
    """The words after the flag `text` as a value of this type. Raises: ValueError."""
    if get_origin(hint) in (Union, UnionType):
        if values == ["None"]:
            return None
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        hint = kinds[0]
    if get_origin(hint) is list:
        item = get_args(hint)[0]
        return [_item(text, item, value) for value in values]
    if len(values) > 1:
        raise ValueError(
            f"{text} accepts one value: unrecognized arguments: {' '.join(values[1:])}"
        )
    return _item(text, hint, values[0])


def _item(text: str, hint: Any, value: str) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            choices = ", ".join(get_args(hint))
            raise ValueError(
                f"invalid choice '{value}' for argument '{text}': use one of {choices}"
            )
        return value
    try:
        return hint(value)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from error
