"""The settings of a run as one immutable record: from presets, YAML files and keywords, and back to YAML."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from megascratch.config.errors import SettingError
from megascratch.config.fields import SECTIONS, SETTINGS, flag, flat, with_fields
from megascratch.config.hints import hint
from megascratch.config.layout import Layout
from megascratch.config.load import Loaded, Origins, read_config
from megascratch.config.resolve import derive
from megascratch.config.saved import config_from_dict
from megascratch.config.settings import Config
from megascratch.runtime.atomic_file import explain_write_errors, write_atomically
from megascratch.training.start.settings import legal_settings

_LAUNCHER = ("nproc_per_node", "nnodes", "max_restarts")


class RunConfig:
    """The settings of a run; `megascratch.Config`. They are read like those of the command line, by the same names.

        ms.Config("llama-10m", "mine.yaml", lr=1e-3, data_path=["corpus_text_document"])

    A setting is an attribute: `config.lr`. It is None where it follows from other settings and is not given.

    Args:
        files: names of presets, and YAML files; later ones override earlier ones.
        settings: settings by name, without their section; they override the files.

    Raises: SettingError with every unknown setting and every value that is not of the setting's type. What depends on
        the number of ranks is checked by `check`, `pretrain` and `verify`.
    """

    _values: dict[str, Any]

    def __init__(self, *files: str | Path, **settings: Any) -> None:
        words = []
        for file in files:
            words += ["--config", os.fspath(file)]
        object.__setattr__(self, "_values", _read([*words, *_words(settings)], {}))

    def replace(self, **settings: Any) -> "RunConfig":
        """A copy with some settings replaced. Raises: SettingError as the constructor."""
        return _of(_read(_words(settings), self._values))

    def check(self, nproc_per_node: int = 1) -> None:
        """Checks every rule and every file for a run on so many ranks, as a launcher does before it starts them.

        Raises: SettingError with one line per problem, and the nearest values that pass.
        """
        legal_settings(self._loaded(), nproc_per_node)

    def to_yaml(self, file: str | Path | None = None) -> str:
        """The settings that differ from their default as YAML, by section; `file`: also written there.

        `Config(file)` is this config again. Raises: UserError if the file cannot be written.
        """
        sections: dict[str, dict[str, Any]] = {}
        for name, value in self.to_dict().items():
            sections.setdefault(SETTINGS[name].section, {})[name] = value
        ordered = {section: sections[section] for section in SECTIONS if section in sections}
        text = io.StringIO()
        if ordered:
            YAML().dump(ordered, text)
        if file is not None:
            with explain_write_errors(file):
                write_atomically(file, text.getvalue())
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Setting -> value, for those that differ from their default."""
        defaults = flat(Config())
        return {name: value for name, value in self._values.items() if value != defaults[name]}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in SETTINGS:
            raise AttributeError(f"there is no setting {name}{hint(name, SETTINGS, as_flag=False)}")
        return self._values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a config does not change: use config.replace({name}=...)")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *SETTINGS})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunConfig) and self._values == other._values

    def __hash__(self) -> int:
        return hash(self.to_yaml())

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    def _loaded(self) -> Loaded:
        """As if the command line had named the settings."""
        places = dict.fromkeys(self.to_dict(), "keyword")
        return Loaded(with_fields(Config(), self._values), Origins(places), [], set())


def config_of(given: "RunConfig | str | Path") -> RunConfig:
    """The config, or that of a preset or a YAML file. Raises: SettingError."""
    return given if isinstance(given, RunConfig) else RunConfig(given)


def flags_of(config: RunConfig) -> list[str]:
    """The flags with which a command has these settings."""
    return _words(config.to_dict())


def loaded_of(config: RunConfig) -> Loaded:
    """What a command reads from the flags."""
    return config._loaded()


def config_of_checkpoint(saved: Mapping[str, Any]) -> RunConfig:
    """The config of the run that wrote a checkpoint. What followed from other settings follows from them again, so that
    it may be used on another layout; the device is that of the machine.

    Args:
        saved: its settings by section.
    """
    config = config_from_dict(dict(saved))
    world = Layout.of(config.parallel).world
    given = flat(config)
    derived = derive(given, world)
    for name, setting in SETTINGS.items():
        without = {**given, name: None}
        if setting.kind is not setting.hint and derive(without, world) == derived:
            given = without
    return _of(given | {"device": None})


def _of(values: dict[str, Any]) -> RunConfig:
    made = RunConfig.__new__(RunConfig)
    object.__setattr__(made, "_values", values)
    return made


def _read(words: Sequence[str], base: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a command line on top of others. Raises: SettingError."""
    loaded = read_config(words, with_fields(Config(), base))
    if loaded.problems:
        raise SettingError("\n".join(loaded.problems))
    return flat(loaded.config)


def _words(settings: Mapping[str, Any]) -> list[str]:
    """The flags that say the same as these settings, of which some may not exist.

    Raises: SettingError for what is an argument of `pretrain` and not a setting.
    """
    words = []
    for name, value in settings.items():
        if name in _LAUNCHER:
            raise SettingError(f"{name} is not a setting: give it to ms.pretrain")
        text = flag(name)
        if isinstance(value, bool) and (name not in SETTINGS or SETTINGS[name].kind is bool):
            words.append(text if value else flag(f"no_{name}"))
        elif isinstance(value, list | tuple):
            items = [str(item) for item in value]
            words += [f"{text}={items[0]}", *items[1:]] if items else [text]
        else:
            words.append(f"{text}={value}")
    return words
