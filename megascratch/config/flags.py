"""Reads the flags of a command line, all of them, whatever is wrong with some.

A flag library stops at the first bad flag and would hide the other problems, so each flag is parsed on its own here.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args, get_origin

from megascratch.config.declare import Setting, settings_of
from megascratch.config.fields import ALIASES, SETTINGS, flag, nearest
from megascratch.config.registry import how_to_add
from megascratch.config.values import ReadSettings, Said, read


@dataclass(frozen=True)
class Options:
    """What a command line accepts in addition to settings."""

    config: list[str] | None = None
    """YAML files with settings, or presets (`megascratch init` lists them); later ones override earlier ones, and flags
    override them all."""
    print_config: bool = False
    """Print each setting with its value and origin, and exit."""


OPTIONS: dict[str, Setting] = settings_of({"options": Options})

CAN_BE_REPEATED = ("config", "imports")


class _Group(NamedTuple):
    """`--name` and the words after it."""

    name: str  # as a field name
    negated: bool  # --no-name
    words: list[str]

    def given(self) -> str:
        """The flag with its words, as on the command line."""
        name = flag(f"no_{self.name}" if self.negated else self.name)
        return " ".join([name, *self.words])


def read_flags(argv: Sequence[str], settings: Mapping[str, Setting] = SETTINGS) -> ReadSettings:
    """The settings and options of a command line."""
    known = {**settings, **OPTIONS}
    return read(_said(argv, known), known)


def _said(argv: Sequence[str], known: Mapping[str, Setting]) -> Iterator[Said]:
    groups: dict[str, list[_Group]] = {}
    stray: list[str] = []  # words before the first flag
    last = stray
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            head, *last = word[2:].split("=", 1)
            name = head.replace("-", "_")
            name = ALIASES.get(name, name)
            without_no = name.removeprefix("no_")
            negated = without_no != name and without_no in known
            group = _Group(without_no if negated else name, negated, last)
            groups.setdefault(group.name, []).append(group)
        else:
            last.append(word)
    if stray:
        problem = f"unrecognized arguments: {' '.join(stray)}: put the flag in front of each value"
        yield Said("", "flag", "", problem=problem)
    for name, same in groups.items():
        text = flag(name)
        notice = _replaced(same) if name in known else None
        try:
            yield Said(name, "flag", text, _value(same, known), notice=notice)
        except ValueError as error:
            yield Said(name, "flag", text, problem=str(error))


def _replaced(groups: list[_Group]) -> str | None:
    """A notice that names the values if a flag is given several times with different ones."""
    given = [group.given() for group in groups]
    if groups[0].name in CAN_BE_REPEATED or len(set(given)) == 1:
        return None
    return f"{given[-1]} replaces {', '.join(given[:-1])}: the last one on the command line is used"


def _value(groups: list[_Group], known: Mapping[str, Setting]) -> Any:
    """The value of a flag, given once or several times.

    Raises: ValueError whose text is the message to the user.
    """
    name, negated, words = groups[-1]  # as everywhere on a command line, the last one wins
    text = flag(name)
    if name not in known:
        raise ValueError(f"unknown flag {text}{nearest(text, map(flag, [*known, 'help']))}")
    if name in CAN_BE_REPEATED:
        words = [word for group in groups for word in group.words]
    hint = known[name].hint
    if hint is bool:
        if words:
            raise ValueError(f"{text} does not accept a value (given: {' '.join(words)})")
        return not negated
    if negated:
        raise ValueError(f"--no-{text[2:]} does not exist: {text} needs a value")
    if not words:
        raise ValueError(f"{text} needs a value")
    kind = known[name].kind
    if kind is not hint and words == ["None"]:
        return None
    choices = known[name].choices
    if get_origin(kind) is list:
        item = get_args(kind)[0]
        return [_item(text, item, choices, word) for word in words]
    if len(words) > 1:
        raise ValueError(f"{text} accepts one value: unrecognized arguments: {' '.join(words[1:])}")
    return _item(text, kind, choices, words[0])


def _item(text: str, kind: Any, choices: Collection[str] | None, word: str) -> Any:
    """A word of a command line, which is text, as YAML would have it."""
    if choices is not None:
        if word not in choices:
            one = ", ".join(choices)
            raise ValueError(
                f"invalid choice '{word}' for argument '{text}': use one of {one}{how_to_add(choices)}"
            )
        return word
    try:
        return kind(word)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from error
