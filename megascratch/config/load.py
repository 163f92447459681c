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
from typing import Any

import tyro

from megascratch.config.errors import SettingError
from megascratch.config.fields import SECTION_OF, SECTIONS, flag, flat, nearest, with_fields
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


def load_config(
    argv: Sequence[str], base: Config | None = None, prog: str = "megascratch pretrain"
) -> tuple[Config, Origins]:
    """Read `argv` (without the program's name) over `base` (default: every default).

    `--help` prints all settings by section and leaves with SystemExit(0).
    Raises SettingError with all unknown, doubled and ill-typed settings of file and flags.
    """
    start = base or Config()
    changed = {name for name, value in flat(start).items() if value != flat(Config())[name]}
    places = dict.fromkeys((name for name in SECTION_OF if name in changed), "base")
    given, problems = _flags_given(argv)
    file = _file_named(argv)
    if file is not None:
        values, lines, file_problems = read_settings(file)
        start = with_fields(start, values)
        places |= lines
        problems = file_problems + problems
    if problems and not {"-h", "--help"} & set(argv):
        raise SettingError("\n".join(problems))
    command = _parse(argv, start, prog)
    return command.settings, Origins(places | dict.fromkeys(given, "flag"), command.print_config)


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


def _names_in(argv: Sequence[str]) -> list[str]:
    """The settings named by the `--flags` of argv, as fields: `--no-x=1` -> x."""
    words = [word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--") and len(word) > 2]
    return [word[3:] if word.startswith("no_") and word[3:] in SECTION_OF else word for word in words]


def _flags_given(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(settings given as flags, problems: unknown or doubled flags)."""
    names, extra = _names_in(argv), {"config", "print_config", "help"}
    known = [flag(name) for name in (*SECTION_OF, *sorted(extra))]
    problems = []
    for name in dict.fromkeys(names):
        if name not in SECTION_OF and name not in extra:
            problems.append(f"unknown flag {flag(name)}{nearest(flag(name), known)}")
        elif names.count(name) > 1:
            problems.append(f"{flag(name)} is given {names.count(name)} times: give it once")
    return [name for name in names if name in SECTION_OF], problems


def _file_named(argv: Sequence[str]) -> str | None:
    """The word after --config, or behind `--config=`; None also when the word is missing (tyro reports that)."""
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
