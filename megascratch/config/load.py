"""Loads the config from defaults, a YAML file and command-line flags (later ones win), and records each value's origin.

The YAML file is flat (`lr: 1e-3`) or has sections (`optim: {lr: 1e-3}`); keys may be written with `-` or `_`.
Instead of a file, `--config` may name a preset; given several times, later files win.
Every unknown, repeated or ill-typed setting is reported at once, with its position and the most similar known name.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from megascratch.config.errors import SettingError
from megascratch.config.fields import SECTIONS, flat, with_fields
from megascratch.config.flags import OPTIONS, read_flags
from megascratch.config.imports import run_imports
from megascratch.config.megatron.reading import only_megatrons, read_line
from megascratch.config.presets import find_config
from megascratch.config.printable import printable
from megascratch.config.settings import Config
from megascratch.config.values import ReadSettings
from megascratch.config.verbosity import detail, note
from megascratch.config.yaml_file import read_file

FLAGS_OF = "--flags-of"
"""Says whose flags the command line has: megatron or megascratch."""

_SPLITS = ("train_data_path", "valid_data_path", "test_data_path")
IN_PLACE_OF = {
    "mock_data": ("data_path", "split", *_SPLITS),
    "data_path": ("mock_data", *_SPLITS),
    "train_data_path": ("mock_data", "data_path", "split"),
    "train_iters": ("train_samples",),
    "train_samples": ("train_iters",),
}
"""Setting -> those that cannot be given with it: a later source that chooses it does without them."""


@dataclass(frozen=True)
class Origins:
    """Where the values come from, and what else the command line asks for."""

    places: dict[str, str] = field(default_factory=dict)
    """Setting -> 'FILE:LINE', 'flag' or 'base'; settings that were not given are missing."""
    print_config: bool = False
    """--print-config was given: the command prints `format_config` and does nothing else."""
    notices: list[str] = field(default_factory=list)
    """What the user should know about the values, one sentence each; see `print_notices`."""


class Loaded(NamedTuple):
    """The config of a command line and its file, as far as they can be read."""

    config: Config
    origins: Origins
    problems: list[str]
    """Every unknown, repeated and ill-typed setting of flags and file."""
    unread: set[str]
    """Settings whose value is unknown because of a problem: laws that read them cannot be checked."""


def load_config(argv: Sequence[str], base: Config | None = None) -> tuple[Config, Origins]:
    """Reads `argv` (without the program's name) on top of `base` (default: the default of every setting).

    Raises SettingError with all unknown, repeated and ill-typed settings of file and flags.
    """
    config, origins, problems, _ = read_config(argv, base)
    if problems:
        raise SettingError("\n".join(problems))
    return config, origins


def read_config(argv: Sequence[str], base: Config | None = None) -> Loaded:
    """Like `load_config`, but returns the problems, so that the caller can report more along with them.

    Raises SettingError, with the problems of the flags, if the file cannot be read as settings at all.
    """
    config = base or Config()
    defaults = flat(Config())
    places = {name: "base" for name, value in flat(config).items() if value != defaults[name]}
    found = _read_all(argv, places)
    if found.values.get("imports"):
        run_imports(found.values["imports"])
        found = _read_all(argv, places)  # names that are registered now are valid
    print_config = bool(found.values.get("print_config"))
    for option in OPTIONS:
        found.values.pop(option, None)
        found.places.pop(option, None)
        found.unread.discard(option)
    return Loaded(
        with_fields(config, found.values),
        Origins(found.places, print_config, found.notices),
        found.problems,
        found.unread,
    )


def print_notices(origins: Origins) -> None:
    """Prints what the user should know about the values, on the first rank of a run."""
    if os.environ.get("RANK", "0") == "0":
        for notice in origins.notices:
            note(f"notice: {printable(notice)}")


def _read_all(argv: Sequence[str], places: dict[str, str]) -> ReadSettings:
    """What the command line and its files say; `places` are the origins of values that they may override."""
    found = ReadSettings({}, places, [], set())
    dialect, argv = _dialect(argv)
    if dialect:
        line = _then(found, read_line(argv))
        line.notices.insert(0, dialect)
        return line
    flags = read_flags(argv)
    for word in flags.values.get("config") or []:
        try:
            file = find_config(word)
            values = read_file(file.path, label=file.label)
            found = _then(found, values)
            detail(f"{printable(file.label)}: {len(values.values)} settings")
        except SettingError as error:
            raise SettingError("\n".join([str(error), *flags.problems])) from error
        if file.notice is not None:
            found.notices.append(file.notice)
    return _then(found, flags)


def _dialect(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Why the words are a command line of Megatron-LM, '' if they are none; and the words without --flags-of.

    They are one if --flags-of says so, or if there is no config file and a flag that only Megatron-LM knows.
    """
    words: list[str] = []
    tool = ""
    rest = iter(argv)
    for word in rest:
        head, assigned, value = word.partition("=")
        if head != FLAGS_OF:
            words.append(word)
            continue
        tool = value if assigned else next(rest, "")
        if tool not in ("megatron", "megascratch"):
            wrong = f", not {printable(tool)}" if tool else ""
            raise SettingError(f"{FLAGS_OF} must be megatron or megascratch{wrong}")
    theirs = only_megatrons(words)
    if tool == "megatron":
        return "the flags are read as Megatron-LM reads them", words
    if tool == "" and theirs and not any(word.split("=")[0] == "--config" for word in words):
        return (
            f"the flags are read as Megatron-LM reads them, because of {theirs[0]}; --flags-of megascratch forbids it",
            words,
        )
    return "", words


def _then(earlier: ReadSettings, later: ReadSettings) -> ReadSettings:
    """Both together. What the later source chooses also removes what the earlier one has in its place."""
    replaced: dict[str, str] = {}
    for choice, others in IN_PLACE_OF.items():
        if later.values.get(choice):
            replaced |= {other: choice for other in others if earlier.values.get(other)}
    values = {name: value for name, value in earlier.values.items() if name not in replaced}
    places = {name: place for name, place in earlier.places.items() if name not in replaced}
    notices = []
    for name, choice in replaced.items():
        if name not in later.values:
            notices.append(
                f"{choice} ({later.places[choice]}) replaces {name} ({earlier.places[name]})"
            )
    kept = replace(earlier, values=values, places=places, notices=earlier.notices + notices)
    return kept.then(later)


def format_config(
    config: Config, origins: Origins, derived: Mapping[str, Any] | None = None
) -> str:
    """The config as YAML that `--config` can read, each line with a comment that names the value's origin.

    Args:
        derived: values for settings that are None in `config`, as `resolve.derive` returns them. They are written as
            comments: they follow from the others, and differ on another number of ranks.
    """
    defaults = flat(Config())
    lines = []
    for section in SECTIONS:
        lines.append(f"{section}:")
        for name, value in vars(getattr(config, section)).items():
            setting = f"{name}: {_yaml(value)}"
            if value is None and derived is not None and derived[name] is not None:
                setting = f"# {name}: {_yaml(derived[name])}"
                origin = "derived"
            elif name in origins.places:
                origin = origins.places[name]
            else:
                origin = "default" if value == defaults[name] else "given"
            lines.append(f"  {setting:<64} # {printable(origin)}")
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    """JSON is valid YAML, except for floats like 1e-05, which some YAML readers take for a string."""
    text = json.dumps(value)
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", text)
    return text
