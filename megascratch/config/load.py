"""The command line in, the config and the origin of each value out: defaults, then the YAML file, then the flags.

The YAML file is flat (`lr: 1e-3`) or sectioned (`optim: {lr: 1e-3}`); keys may be written with `-` or `_`.
Every unknown, doubled or ill-typed setting is reported at once, each with its place and the nearest known name.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tyro

from megascratch.config.errors import SettingError
from megascratch.config.fields import SECTION_OF, SECTIONS, flat, with_fields
from megascratch.config.flags import read_words
from megascratch.config.settings import Config
from megascratch.config.yaml_file import read_settings


@dataclass(frozen=True)
class Origins:
    """What the command line said beside the values."""

    places: dict[str, str] = field(default_factory=dict)
    """Setting -> 'FILE:LINE', 'flag' or 'base'; settings that nobody gave are missing."""
    print_config: bool = False
    """--print-config was given: the verb prints `format_config` and does nothing else."""


@dataclass(frozen=True)
class _CommandLine:
    """What --help shows."""

    settings: Config
    config: str | None = None
    """YAML file of settings; flags override it."""
    print_config: bool = False
    """Print each value with its origin, and stop."""


class Loaded(NamedTuple):
    """A command line and its file, as far as they can be read."""

    config: Config
    origins: Origins
    problems: list[str]
    """Every unknown, doubled and ill-typed setting of flags and file."""
    unread: set[str]
    """Settings whose value is not known because of a problem: laws that read them cannot be judged."""


def load_config(
    argv: Sequence[str], base: Config | None = None, prog: str = "megascratch pretrain"
) -> tuple[Config, Origins]:
    """Read `argv` (without the program's name) over `base` (default: every default).

    `--help` prints all settings by section and leaves with SystemExit(0).
    Raises SettingError with all unknown, doubled and ill-typed settings of file and flags.
    """
    config, origins, problems, _ = read_config(argv, base, prog)
    if problems:
        raise SettingError("\n".join(problems))
    return config, origins


def read_config(argv: Sequence[str], base: Config | None = None, prog: str = "megascratch pretrain") -> Loaded:
    """As `load_config`, but problems are given back, so that more can be told beside them.

    Raises SettingError, with the problems of the flags, where the file cannot be read as settings at all.
    """
    start = base or Config()
    changed = {name for name, value in flat(start).items() if value != flat(Config())[name]}
    places = dict.fromkeys((name for name in SECTION_OF if name in changed), "base")
    if {"-h", "--help"} & set(argv):
        _help(start, prog)
    given, names, problems, unread = read_words(argv)
    file = given.pop("config", None)
    if file is not None:
        try:
            values, lines, file_problems, unread_lines = read_settings(file)
        except SettingError as error:
            raise SettingError("\n".join([str(error), *problems])) from error
        start = with_fields(start, values)
        places |= lines
        problems, unread = file_problems + problems, unread | (unread_lines - set(names))
    origins = Origins(places | dict.fromkeys(names, "flag"), given.pop("print_config", False))
    return Loaded(with_fields(start, given), origins, problems, unread)


def format_config(config: Config, origins: Origins) -> str:
    """The config as YAML that `--config` reads back, each line with the value's origin as its comment."""
    defaults = flat(Config())
    lines = []
    for section in SECTIONS:
        lines.append(f"{section}:")
        for name, value in vars(getattr(config, section)).items():
            origin = origins.places.get(name) or ("default" if value == defaults[name] else "derived")
            lines.append(f"  {f'{name}: {_yaml(value)}':<64} # {origin}")
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    """JSON is YAML, but for floats like 1e-05, which some YAML readers take for a word."""
    text = json.dumps(value)
    return re.sub(r"^(-?\d+)e", r"\1.0e", text) if isinstance(value, float) else text


def _help(start: Config, prog: str) -> None:
    """Prints every flag by section, and leaves with SystemExit(0)."""
    tyro.cli(
        _CommandLine,
        prog=prog,
        args=["--help"],
        default=_CommandLine(start),
        description="Settings by section; every flag is also a key of the YAML file.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
