"""Every setting with values that it cannot have, as flags and in YAML, and every path setting with every wrong kind
of file: tried in one process, which must not import torch.

python -m tests.support.mistakes.sweep WORLD [--all]    prints the failures as JSON; without --all one value per setting
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from megascratch.config.declare import Setting
from megascratch.config.fields import SETTINGS, flag
from megascratch.config.printable import printable
from tests.support.mistakes.judge import Answer, answer, checks_alone, in_folder, make_once

RUN = "pretrain --config ok.yaml"
MOST_LINES = 6
PYTHONS_WORDS = (
    "Traceback",
    "invalid literal",
    "could not convert",
    "[Errno",
    "NoneType",
    "AssertionError",
)
HUGE = "9" * 40

WRONG_FLAGS: dict[Any, list[str]] = {
    int: ["two", "''", "2k", "1.5", "0x10", "1e400", "--", HUGE, "4 5", "' '", "２ｋ"],
    float: ["two", "''", "10%", "1,5", "1.0.0", "--", "1 2", "5ms"],
    bool: ["true", "yes", "1", "''", "false"],
    str: ["a b", "--"],
    list: ["--"],
}
"""Kind of a setting -> what may follow its flag on a command line and is no value of it."""
WRONG_YAML: dict[Any, list[str]] = {
    int: ["two", "'2'", "2.5", "[2]", "{a: 1}", "true", "2001-01-01", ".inf", HUGE, "2k"],
    float: ["two", "'0.1'", "[0.1]", "{a: 1}", "false", "2001-01-01", "0,1", "10%", "1e-3x"],
    bool: ["'true'", "yes", "1", "[true]", "{a: 1}", "on", "Maybe"],
    str: ["1", "true", "[a]", "{a: 1}", "2001-01-01", "1.5"],
    list: ["a", "1", "true", "{a: 1}", "[[a]]", "[{a: 1}]", "[true]"],
}
"""Kind of a setting -> YAML that is no value of it."""
NAMES = ["zzz", "''", "NONE", "-1"]
"""For a setting whose value is one of some names."""


class Case(NamedTuple):
    """One wrong value of one setting."""

    setting: str
    words: str
    yaml: str | None
    """The content of `bad.yaml`; None: the words need none."""


def kind_of(setting: Setting) -> Any:
    """The kind in the tables above."""
    if setting.choices is not None and get_origin(setting.kind) is not list:
        return "name"
    return get_origin(setting.kind) or setting.kind


def cases() -> Iterator[list[Case]]:
    """The wrong values of each setting."""
    for name, setting in SETTINGS.items():
        kind = kind_of(setting)
        found = []
        for text in NAMES if kind == "name" else WRONG_FLAGS[kind]:
            words = "" if text == "--" else text
            found.append(Case(name, f"{RUN} {flag(name)} {words}", None))
        if kind is not bool:
            found.append(Case(name, f"{RUN} --no-{flag(name)[2:]}", None))
        for text in ["zzz", "1", "[a]"] if kind == "name" else WRONG_YAML[kind]:
            found.append(Case(name, f"{RUN} --config bad.yaml", f"{name}: {text}\n"))
        if type(None) not in get_args(setting.hint):
            found.append(Case(name, f"{RUN} --config bad.yaml", f"{name}: null\n"))
        yield found


PATHS = {
    "--config": "pretrain --config {}",
    "--import": f"{RUN} --import {{}}",
    "--data-path": f"{RUN} --data-path {{}}",
    "--train-data-path": "pretrain --config bare.yaml --train-data-path {}",
    "--valid-data-path": "pretrain --config bare.yaml --train-data-path corpus_text_document --valid-data-path {}",
    "--test-data-path": "pretrain --config bare.yaml --train-data-path corpus_text_document --test-data-path {}",
    "--tokenizer-model": f"{RUN} --tokenizer-model {{}}",
    "--pipeline-schedule-csv": f"{RUN} --pipeline-schedule-csv {{}}",
    "--load": f"{RUN} --load {{}}",
}
"""Flag -> a command that reads the path."""
FOLDERS = ("--output-dir", "--save", "--tensorboard-dir", "--data-cache-path")
"""Flags of folders that a run writes into."""
WRONG_FILES = (
    "missing",
    "missing/missing",
    "empty-folder",
    "binary",
    "input.txt/below",
    "dangling",
    "''",
    "'new\nline'",
    "'\x1b[31mred'",
    "x" * 300,
    "~/missing",
    "s3:/one-slash",
    "https://example.org/x",
)
"""What a path may lead to that no flag above can read."""


def path_cases() -> Iterator[Case]:
    """Every path setting with every wrong kind of file."""
    for name, words in PATHS.items():
        for wrong in WRONG_FILES:
            if name == "--load" and "missing" not in wrong:
                continue  # a checkpoint is read with torch
            if name != "--import" or wrong != "empty-folder":  # Python imports any folder
                yield Case(name, words.format(wrong), None)
    for name in FOLDERS:
        for wrong in ("input.txt", "input.txt/below", "dangling/below", "/proc/none/x", "x" * 300):
            yield Case(name, f"{RUN} {name} {wrong}", None)


def make_wrong_files() -> None:
    """In the current folder."""
    Path("empty-folder").mkdir()
    Path("binary").write_bytes(bytes(range(256)) * 4)
    os.symlink("nowhere", "dangling")
    text = Path("ok.yaml").read_text()
    Path("bare.yaml").write_text(text.replace("data_path: [corpus_text_document], ", ""))


def complaints(case: Case, found: Answer) -> list[str]:
    """What is wrong with the answer to a wrong value."""
    wrong = []
    if found.code != 2:
        wrong.append(f"exit code {found.code}")
    if not 1 <= len(found.err.splitlines()) <= MOST_LINES:
        wrong.append(f"{len(found.err.splitlines())} lines")
    for words in PYTHONS_WORDS:
        if words in found.err:
            wrong.append(words)
    if not is_named(case, found.err):
        wrong.append("not named")
    if found.out:
        wrong.append("standard output")
    if found.changed:
        wrong.append(f"changed {found.changed}")
    if "torch" in sys.modules:
        wrong.append("torch is imported")
    return [f"{', '.join(wrong)}: {case.words!r} {case.yaml or ''}: {found.err}"] if wrong else []


def is_named(case: Case, said: str) -> bool:
    """Whether a message has the name of the setting in one of its spellings, or the file that it cannot use."""
    name = case.setting.removeprefix("--").replace("_", "-")
    if name in said.replace("_", "-") or (name == "imports" and "--import" in said):
        return True
    file = shlex.split(case.words)[-1]
    return case.setting.startswith("--") and file != "" and printable(file) in said


def failures(world: Path, everything: bool) -> dict[str, list[str]]:
    """The complaints about flags, YAML and paths."""
    chosen: list[Case] = []
    for number, of_setting in enumerate(cases()):
        chosen += of_setting if everything else [of_setting[number % len(of_setting)]]
    found: dict[str, list[str]] = {"flags": [], "yaml": [], "paths": []}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "place")
        shutil.copytree(world, place)
        with in_folder(place), checks_alone(with_torch=False):
            make_wrong_files()
            for case in chosen:
                if case.yaml is not None:
                    Path("bad.yaml").write_text(case.yaml)
                group = "flags" if case.yaml is None else "yaml"
                found[group] += complaints(case, answer(case.words))
            for case in path_cases():
                found["paths"] += complaints(case, answer(case.words))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world", type=Path)
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    make_once(options.world, with_run=False)
    json.dump(failures(options.world, options.all), sys.stdout)


if __name__ == "__main__":
    main()
