"""What a rule about a command line of Megatron-LM reads and says; see `rules.py`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from megascratch.config.megatron.command_line import Given

Options = Mapping[str, Given]
"""Name of the option -> as it is given."""


class Becomes(NamedTuple):
    """A setting that a rule names."""

    setting: str
    value: Any
    """As YAML has it."""
    reason: str
    """The origin of the value: 'GELU is tanh unless --no-bias-gelu-fusion'."""


def words_of(options: Options, name: str) -> tuple[str, ...]:
    """The values of an option; () if it is missing or has none."""
    return options[name].words if name in options else ()


def number_of(options: Options, name: str) -> int | None:
    """The whole number that an option gives; None if it is missing or is not one."""
    words = words_of(options, name)
    return int(words[0]) if words and words[0].isdecimal() else None
