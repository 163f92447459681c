"""Finds what `--config` names: a YAML file, or a preset, which is a config that comes with the package.

Presets are in `megascratch/presets/`. The first line of each is `# NAME: what it is, its parameters; ...`.
Needs no torch.
"""

import os
from pathlib import Path
from typing import NamedTuple

from megascratch.config.errors import SettingError
from megascratch.config.hints import nearest
from megascratch.config.printable import shown

FOLDER = Path(__file__).resolve().parents[1] / "presets"


class ConfigFile(NamedTuple):
    """A file of settings."""

    path: str
    label: str
    """How messages and origins name it: its path, or 'preset NAME'."""
    notice: str | None = None
    """What the user should know about the choice."""


def preset_names() -> list[str]:
    """All presets, by name."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def preset_text(name: str) -> str:
    """The YAML of a preset. Raises: SettingError, with the most similar name, for one that does not exist."""
    if name not in preset_names():
        raise SettingError(
            f"there is no preset {shown(name)}{nearest(name, preset_names())}; "
            f"presets: {', '.join(preset_names())}"
        )
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def preset_summary(name: str) -> str:
    """What a preset is, from its first line: 'GPT-2 small, 124,439,808 parameters.'"""
    return preset_text(name).split("\n", 1)[0].removeprefix(f"# {name}: ")


def find_config(word: str) -> ConfigFile:
    """The file that a word after `--config` means: a file of this name, else a preset of this name.

    Raises: SettingError, with the most similar preset or YAML file, if there is neither.
    """
    is_preset = word in preset_names()
    if os.path.isdir(word) and not is_preset:
        files = sorted(file.name for file in Path(word).glob("*.y*ml"))
        raise SettingError(f"config file {shown(word)} is a folder: give a file{_in_it(files)}")
    if os.path.exists(word) and not os.path.isdir(word):
        notice = None
        if is_preset:
            notice = f"--config {word} is the file of this name here, not the preset"
        return ConfigFile(word, word, notice)
    if is_preset:
        return ConfigFile(str(FOLDER / f"{word}.yaml"), f"preset {word}")
    raise SettingError(
        f"config file {shown(word)}: there is no such file{nearest(word, _there(word))}"
    )


def _in_it(files: list[str]) -> str:
    return f" in it, like {shown(files[0])}" if files else ", or a preset"


def _there(word: str) -> list[str]:
    """What a word after `--config` could have meant."""
    folder = Path(word).parent
    files = [str(file) for file in folder.glob("*.y*ml")] if folder.is_dir() else []
    return [*files, *preset_names()]
