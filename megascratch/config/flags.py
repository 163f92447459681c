"""The words of a command line in, each setting's words and everything that is wrong with them out: all of it at once.

tyro reads the values in the end, but gives up at the first bad one; here each flag is judged alone, and what is left
for tyro is legal.
"""

from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from megascratch.config.fields import HINTS, SECTION_OF, flag, meant, nearest

OTHERS = {"config": str, "print_config": bool}
"""Flags beside the settings."""


class Words(NamedTuple):
    """A command line, sorted."""

    legal: list[str]
    """What can be read."""
    given: list[str]
    """Settings that were given, legally or not."""
    problems: list[str]
    unread: set[str]
    """Settings whose value is not known, because their words are wrong or look like a misspelt flag of theirs."""


class _Group(NamedTuple):
    """`--name` and the words behind it."""

    name: str  # as a field
    negated: bool  # --no-name
    words: list[str]  # as they were given, the flag first
    values: list[str]


def sort_words(argv: Sequence[str]) -> Words:
    """Judges every flag of a command line."""
    groups, stray = _groups(argv)
    names = [group.name for group in groups]
    legal, problems, unread = [], [], set()
    if stray:
        problems.append(f"unrecognized arguments: {' '.join(stray)}: every value needs its flag in front of it")
    for place, group in enumerate(groups):
        complaint = _complaint(group, names, place)
        if complaint is None:
            legal += group.words
        else:
            problems.append(complaint)
            unread.add(group.name if group.name in SECTION_OF else meant(group.name))
    given = [name for name in names if name in SECTION_OF]
    return Words(legal, given, list(filter(None, problems)), unread & SECTION_OF.keys())


def _groups(argv: Sequence[str]) -> tuple[list[_Group], list[str]]:
    """The flags with their values, and words in front of the first flag."""
    groups: list[_Group] = []
    stray = []
    for word in argv:
        if word in ("-h", "--help"):
            groups.append(_Group("help", False, [word], []))
        elif word.startswith("--") and len(word) > 2:
            head, *value = word[2:].split("=", 1)
            name = head.replace("-", "_")
            negated = name.startswith("no_") and name[3:] in SECTION_OF
            groups.append(_Group(name[3:] if negated else name, negated, [word], value))
        elif groups:
            groups[-1].words.append(word)
            groups[-1].values.append(word)
        else:
            stray.append(word)
    return groups, stray


def _complaint(group: _Group, names: list[str], place: int) -> str | None:
    """What is wrong with a flag; '' where another flag says it already."""
    name, text = group.name, flag(group.name)
    if name == "help":
        return None
    hint = HINTS.get(name) or OTHERS.get(name)
    if hint is None:
        first = names.index(name) == place
        known = [flag(known) for known in (*SECTION_OF, *OTHERS, "help")]
        return f"unknown flag {text}{nearest(text, known)}" if first else ""
    if names.count(name) > 1:
        return f"{text} is given {names.count(name)} times: give it once" if names.index(name) == place else ""
    if hint is bool:
        return f"{text} takes no value, not {' '.join(group.values)}" if group.values else None
    if group.negated:
        return f"--no-{text[2:]} is no flag: {text} takes a value"
    return _wrong_value(text, hint, group.values)


def _wrong_value(text: str, hint: Any, values: list[str]) -> str | None:
    if not values:
        return f"Missing value for argument '{text}'"
    if get_origin(hint) in (Union, UnionType):
        if values == ["None"]:
            return None
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    item = hint
    if get_origin(hint) is list:
        item = get_args(hint)[0]
    elif len(values) > 1:
        return f"{text} takes one value: unrecognized arguments: {' '.join(values[1:])}"
    if get_origin(item) is Literal:
        choices = get_args(item)
        wrong = [value for value in values if value not in choices]
        return f"invalid choice '{wrong[0]}' for argument '{text}': use one of {', '.join(choices)}" if wrong else None
    return _wrong_item(text, item, values)


def _wrong_item(text: str, item: type, values: list[str]) -> str | None:
    for value in values:
        try:
            item(value)
        except ValueError as error:
            return f"{text}: {error}"
    return None
