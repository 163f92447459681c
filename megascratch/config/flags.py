"""Reads the flags of a command line, all of them, whatever is wrong with some.

A flag library stops at the first bad flag and would hide the other problems, so each flag is parsed on its own here.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args, get_origin

from megascratch.config.declare import Setting, settings_of
from megascratch.config.fields import ALIASES, SETTINGS, flag
from megascratch.config.hints import hint, meant, plain_name
from megascratch.config.presets import preset_names
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
MOST_STRAY = 4  # words without a flag in a message
LONG_DASHES = ("–", "—")  # what some editors make of --
ASSIGNMENT = re.compile(r"([+~]{0,2}[A-Za-z_][\w./-]*)=(.*)", re.DOTALL)


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
    groups, stray = _grouped(argv, known)
    found = read(_said(groups, known), known)
    if not stray:
        return found
    problems = _stray_problems(stray, known)
    # what the stray words would have set is not known, so no law can be checked
    return replace(found, problems=problems + found.problems, unread=set(known))


def _grouped(
    argv: Sequence[str], known: Mapping[str, Setting]
) -> tuple[dict[str, list[_Group]], list[str]]:
    """The flags by name, each with its words, and the words that belong to none."""
    groups: dict[str, list[_Group]] = {}
    stray: list[str] = []
    group = None
    for word in argv:
        if _is_flag(word):
            group = _group(word, known)
            groups.setdefault(group.name, []).append(group)
        elif group is None or (_is_full(group, known) and _is_assignment(word, known)):
            stray.append(word)
        else:
            group.words.append(word)
    return groups, stray


def _is_flag(word: str) -> bool:
    """Whether a word begins like a flag, well spelt or not: `--lr`, `-lr`, `—lr`; a number is none."""
    if word.startswith(("--", *LONG_DASHES)):
        return len(word) > 2
    return re.match(r"-[A-Za-z_]", word) is not None and not isinstance(_number(word), float)


def _group(word: str, known: Mapping[str, Setting]) -> _Group:
    head, *words = word.split("=", 1)
    if not head.startswith("--"):
        return _Group(head, False, words)
    name = head[2:].replace("-", "_")
    name = ALIASES.get(name, name)
    without_no = name.removeprefix("no_")
    negated = without_no != name and without_no in known
    return _Group(without_no if negated else name, negated, words)


def _is_full(group: _Group, known: Mapping[str, Setting]) -> bool:
    """Whether a flag has the words that it needs, so that a word more may be a mistake."""
    return group.name == "config" or bool(group.words) or _is_switch(group.name, known)


def _is_switch(name: str, known: Mapping[str, Setting]) -> bool:
    return name in known and known[name].hint is bool


def _is_assignment(word: str, known: Mapping[str, Setting]) -> bool:
    """Whether a word is like `lr=1e-2` or `+model.num_layers=4`, as other tools write settings."""
    found = ASSIGNMENT.fullmatch(word)
    return found is not None and bool(meant(found[1], known)) and not os.path.exists(word)


def _stray_problems(stray: Sequence[str], known: Mapping[str, Setting]) -> list[str]:
    """One line for each word without a flag that says how to write it, and one for the rest."""
    problems = []
    rest = []
    for word in stray:
        found = ASSIGNMENT.fullmatch(word)
        if found is not None and plain_name(found[1]) in known:
            problems.append(f"{word}: write {_assigned(plain_name(found[1]), found[2], known)}")
        elif found is not None and hint(found[1], known, as_flag=True):
            problems.append(f"unknown setting {word}{hint(found[1], known, as_flag=True)}")
        elif word in preset_names() or word.endswith((".yaml", ".yml", ".json")):
            problems.append(f"{word}: to read settings from it, write --config {word}")
        else:
            rest.append(word)
    if rest:
        words = " ".join(rest)
        problems.insert(0, f"unrecognized arguments: {words}: put the flag in front of each value")
    if len(problems) > MOST_STRAY:
        more = len(problems) - MOST_STRAY
        problems[MOST_STRAY:] = [f"and {more:,} more words without a flag"]
    return problems


def _assigned(name: str, value: str, known: Mapping[str, Setting]) -> str:
    """`num_layers=4` as a flag."""
    if not _is_switch(name, known):
        return f"{flag(name)} {value}"
    return flag(f"no_{name}" if value.lower() in ("false", "0", "no", "off") else name)


def _said(groups: Mapping[str, list[_Group]], known: Mapping[str, Setting]) -> Iterator[Said]:
    for name, same in groups.items():
        text = flag(name) if name[0] not in "-–—" else name
        if name not in known:
            problem = f"unknown flag {text}{hint(text, [*known, 'help'], as_flag=True)}"
            yield Said(name, "flag", text, problem=problem)
            continue
        try:
            yield Said(name, "flag", text, _value(same, known[name]), notice=_replaced(same))
        except ValueError as error:
            yield Said(name, "flag", text, problem=str(error))


def _replaced(groups: list[_Group]) -> str | None:
    """A notice that names the values if a flag is given several times with different ones."""
    given = [group.given() for group in groups]
    if groups[0].name in CAN_BE_REPEATED or len(set(given)) == 1:
        return None
    return f"{given[-1]} replaces {', '.join(given[:-1])}: the last one on the command line is used"


def _value(groups: list[_Group], setting: Setting) -> Any:
    """The value of a flag, given once or several times, as YAML would have it.

    Raises: ValueError whose text is the message to the user.
    """
    name, negated, words = groups[-1]  # as everywhere on a command line, the last one wins
    text = flag(name)
    if name in CAN_BE_REPEATED:
        words = [word for group in groups for word in group.words]
    if setting.hint is bool:
        if words:
            raise ValueError(
                f"{text} does not accept a value (given: {' '.join(words)}): write {text} or --no-{text[2:]}"
            )
        return not negated
    if negated:
        raise ValueError(f"--no-{text[2:]} does not exist: {text} needs a value")
    if not words:
        raise ValueError(f"{text} needs a value")
    if setting.kind is not setting.hint and words == ["None"]:
        return None
    if setting.may_be_text and len(words) == 1 and isinstance(_number(words[0]), str):
        return words[0]
    if get_origin(setting.kind) is list:
        item = get_args(setting.kind)[0]
        return [_item(text, item, setting.choices, word) for word in words]
    if len(words) > 1:
        raise ValueError(f"{text} accepts one value: unrecognized arguments: {' '.join(words[1:])}")
    return _item(text, setting.kind, setting.choices, words[0])


def _item(text: str, kind: Any, choices: Collection[str] | None, word: str) -> Any:
    """A word of a command line, which is text, as YAML would have it."""
    if choices is not None and word not in choices:
        one = ", ".join(choices)
        raise ValueError(
            f"invalid choice '{word}' for argument '{text}': use one of {one}{how_to_add(choices)}"
        )
    return _number(word) if kind in (int, float) else word


def _number(word: str) -> Any:
    """A number, or the word if it is none."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
