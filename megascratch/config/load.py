"""The command line in, the config and the origin of each value out: defaults, then the YAML file, then the flags.

The YAML file is flat (`lr: 1e-3`) or sectioned (`optim: {lr: 1e-3}`); keys may be written with `-` or `_`.
Every unknown, doubled or ill-typed setting is reported at once, each with its place and the nearest known name.
"""

import contextlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tyro

from megascratch.config.errors import SettingError
from megascratch.config.fields import SECTION_OF, SECTIONS, flat, with_fields
from megascratch.config.flags import sort_words
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
    legal, given, problems, unread = sort_words(argv)
    if {"-h", "--help"} & set(argv):
        _parse(["--help"], start, prog)
    file = _file_named(legal)
    if file is not None:
        try:
            values, lines, file_problems, unread_lines = read_settings(file)
        except SettingError as error:
            raise SettingError("\n".join([str(error), *problems])) from error
        start = with_fields(start, values)
        places |= lines
        problems, unread = file_problems + problems, unread | (unread_lines - set(given))
    command = _parse(legal, start, prog)
    origins = Origins(places | dict.fromkeys(given, "flag"), command.print_config)
    return Loaded(command.settings, origins, problems, unread)


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


def _file_named(argv: Sequence[str]) -> str | None:
    """The word after --config, or behind `--config=`."""
    for here, word in enumerate(argv):
        if word == "--config" and here + 1 < len(argv):
            return argv[here + 1]
        if word.startswith("--config="):
            return word.removeprefix("--config=")
    return None


def _parse(argv: Sequence[str], start: Config, prog: str) -> _CommandLine:
    """tyro's reading of the flags over `start`; its framed complaint becomes a SettingError."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                _CommandLine,
                prog=prog,
                args=list(argv),
                default=_CommandLine(start),
                description="Settings by section; every flag is also a key of the YAML file.",
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
    raise SettingError(_unframed(said.getvalue()))


def _unframed(box: str) -> str:
    """The text of tyro's complaint without its frame and its title."""
    rows = [row.strip("│ ") for row in box.splitlines() if row.startswith("│")]
    text = " ".join(row for row in rows if not set(row) <= {"─"})
    return re.sub(r"\s*For full helptext.*", "", text) or box.strip()
