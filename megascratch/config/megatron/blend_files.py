"""Blends that Megatron-LM reads from a file: `--data-args-path` and `--per-split-data-args-path`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from megascratch.config.megatron.command_line import Given

ONE = "data-args-path"
PER_SPLIT = "per-split-data-args-path"
IN_PLACE_OF = {
    ONE: ("data-path",),
    PER_SPLIT: ("data-path", ONE, "train-data-path", "valid-data-path", "test-data-path"),
}
"""Option -> those that name data, too, and cannot be given with it."""


class Blends(NamedTuple):
    """What the files say."""

    settings: dict[str, list[str]]
    """Setting, such as train_data_path -> its words."""
    problems: list[str]


def blends_of_files(options: Mapping[str, Given]) -> Blends:
    """The blends in the files that a command line names. A file is text as on a command line, or, with a blend for each
    split, a JSON object with the keys train, valid and test: a list of words, a text, or null."""
    found = Blends({}, [])
    for name, others in IN_PLACE_OF.items():
        if name not in options:
            continue
        given = options[name]
        for other in others:
            if other in options:
                found.problems.append(f"{given.spelling} and --{other} both name data: remove one")
        try:
            text = Path(given.words[0]).read_text(encoding="utf-8")
            found.settings.update({"data_path": text.split()} if name == ONE else _of_splits(text))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            found.problems.append(f"{given.typed} cannot be read: {reason}")
    return found


def _of_splits(text: str) -> dict[str, list[str]]:
    """Raises: ValueError for anything but JSON with a blend for each split."""
    content = json.loads(text)
    if not isinstance(content, dict) or not {"train", "valid", "test"} <= content.keys():
        raise ValueError("it must be a JSON object with the keys train, valid and test")
    settings = {}
    for split in ("train", "valid", "test"):
        blend = content[split]
        words = blend.split() if isinstance(blend, str) else blend
        if words is None:
            continue
        if not isinstance(words, list):
            raise ValueError(f"{split} must be a list of weights and prefixes, a text or null")
        settings[f"{split}_data_path"] = [str(word) for word in words]
    return settings
