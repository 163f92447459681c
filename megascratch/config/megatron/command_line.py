"""Divides a command line of Megatron-LM into its options, by the rules of argparse.

An option is given as `--name value ...` or `--name=value`. Of an option that is given several times the last one wins.
A word like `-1` is a value. Names are never abbreviated.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from megascratch.config.fields import SETTINGS
from megascratch.config.megatron.options import VALUES_NOT_HERE, Option, option_of


class Given(NamedTuple):
    """An option as the command line gives it."""

    option: Option
    spelling: str
    """As it was typed: `--disable-bias-linear`."""
    words: tuple[str, ...]

    @property
    def typed(self) -> str:
        """`--num-experts 8`."""
        return " ".join([self.spelling, *self.words])

    @property
    def missing(self) -> str:
        """The feature that the option needs and that is not there; '' if it needs none."""
        if self.option.kind == "feature":
            return "" if self.is_neutral else self.option.words
        if self.option.name not in VALUES_NOT_HERE:
            return ""
        known = SETTINGS[self.option.name.replace("-", "_")].choices or ()
        for word in self.words:
            if word in VALUES_NOT_HERE[self.option.name] and word not in known:
                return VALUES_NOT_HERE[self.option.name][word]
        return ""

    @property
    def is_neutral(self) -> bool:
        """Whether the option has no effect at the value that is given."""
        neutral = self.option.neutral
        return "off" in neutral or (
            bool(self.words) and all(word in neutral for word in self.words)
        )


@dataclass
class CommandLine:
    """The options of a command line, and what remains."""

    given: dict[str, Given] = field(default_factory=dict)
    """Name of the option -> as it was given last."""
    ours: list[str] = field(default_factory=list)
    """Flags that Megatron-LM does not know, with their values, in order: settings of ours, or mistakes."""
    replaced: list[str] = field(default_factory=list)
    """One sentence for every option that was given before with another value."""
    problems: list[str] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)
    """Names of the options of which `problems` tell."""


def divided(words: Sequence[str]) -> CommandLine:
    """The options that a command line gives. Values are not checked, only their number."""
    line = CommandLine()
    at = 0
    while at < len(words):
        end = at + 1
        while end < len(words) and not _is_flag(words[end]):
            end += 1
        group = list(words[at:end])
        at = end
        option = option_of(group[0]) if _is_flag(group[0]) else None
        if option is None:
            line.ours += group
            continue
        head, assigned, value = group[0].partition("=")
        values = ([value] if assigned else []) + group[1:]
        given = Given(option, head, tuple(_unquoted(value) for value in values))
        problem = _wrong_number(given)
        if problem:
            line.problems.append(problem)
            line.wrong.add(option.name)
        before = line.given.pop(option.name, None)
        if before is not None and before.typed != given.typed:
            line.replaced.append(f"{given.typed} replaces {before.typed}: the last one is used")
        line.given[option.name] = given
    return line


def _is_flag(word: str) -> bool:
    return re.match(r"--?[A-Za-z_]", word) is not None


def _unquoted(word: str) -> str:
    """Scripts pass quotes that their shell did not remove, as in `--split '99,1,0'` inside an array."""
    found = re.fullmatch(r"(['\"])(.*)\1", word)
    return found[2] if found else word


def _wrong_number(given: Given) -> str:
    """What is wrong with the number of values; '' if nothing."""
    count = len(given.words)
    values = given.option.values
    if values == "0" and count:
        return f"{given.spelling} does not accept a value (given: {' '.join(given.words)})"
    if values in ("1", "+") and count == 0:
        return f"{given.spelling} needs a value"
    if values in ("1", "?") and count > 1:
        return f"{given.spelling} accepts one value: unrecognized arguments: {' '.join(given.words[1:])}"
    if values.isdecimal() and int(values) > 1 and count != int(values):
        return f"{given.spelling} needs {values} values, not {count}"
    return ""
