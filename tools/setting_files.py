"""Counts the files of a package that name a setting: those of the machinery of settings, and those that use it.

    python -m tools.setting_files megascratch                    # ten settings, whose uses differ widely
    python -m tools.setting_files megascratch ../old/megascratch # versions side by side
    python -m tools.setting_files megascratch --settings lr seed --names

A file names a setting if its code has it as a name, an attribute or a word of a string (`rotary_base`, `rotary-base`);
comments and docstrings do not count. The sources are parsed, never imported.
"""

import argparse
import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tools.source_tree import Package, SourceFile, is_string

SETTINGS = (
    "async_save",
    "rotary_base",
    "spiky_loss_factor",
    "ddp_bucket_size",
    "use_distributed_optimizer",
    "sequence_parallel",
    "micro_batch_size",
    "log_interval",
    "clip_grad",
    "keep_last_n_checkpoints",
)
USES_IN_CONFIG = (
    "resolve.py",
    "batch_size.py",
    "layers.py",
    "layout.py",
    "pipeline_split.py",
    "stage_string.py",
    "laws",
)
"""Files and folders of `config/` that compute with settings; all others there are machinery."""


class Named(NamedTuple):
    """The files that name a setting."""

    machinery: list[str]
    uses: list[str]


def files_that_name(package: Package, settings: Sequence[str]) -> dict[str, Named]:
    """Setting -> the files that name it, relative to the package."""
    found = {setting: Named([], []) for setting in settings}
    for file in package.files:
        words = _words(file)
        path = file.path.relative_to(package.root)
        is_machinery = path.parts[0] == "config" and path.parts[1] not in USES_IN_CONFIG
        for setting, named in found.items():
            if setting in words:
                (named.machinery if is_machinery else named.uses).append(path.as_posix())
    return found


def _words(file: SourceFile) -> set[str]:
    """The names, attributes and words of strings of the code, with _ in place of -."""
    words: set[str] = set()
    strings: set[ast.Constant] = set()
    documentation: set[ast.AST] = set()
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Expr) and is_string(node.value):
            documentation.add(node.value)
        elif isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.arg | ast.keyword) and node.arg is not None:
            words.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.add(node)
    for string in strings - documentation:
        words.update(re.findall(r"\w+", str(string.value).replace("-", "_")))
    return words


def table(counts: dict[str, dict[str, Named]]) -> str:
    """One line per setting: machinery + uses, for each package."""
    packages = list(counts)
    settings = list(counts[packages[0]])
    width = max(map(len, settings)) + 2
    columns = [max(len(name), 8) + 2 for name in packages]
    lines = ["machinery + uses".ljust(width) + _row(packages, columns)]
    for setting in settings:
        cells = []
        for package in packages:
            named = counts[package][setting]
            cells.append(f"{len(named.machinery)} + {len(named.uses)}")
        lines.append(setting.ljust(width) + _row(cells, columns))
    return "\n".join(lines)


def _row(cells: Sequence[str], columns: Sequence[int]) -> str:
    return "".join(cell.rjust(size) for cell, size in zip(cells, columns, strict=True))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, metavar="NAME")
    parser.add_argument("--names", action="store_true", help="also list the files")
    options = parser.parse_args(argv)
    counts = {}
    for folder in options.packages:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder")
        counts[str(folder)] = files_that_name(Package(folder), options.settings)
    print(table(counts))
    if options.names:
        for package, found in counts.items():
            for setting, named in found.items():
                print(f"\n{package}: {setting}")
                print("  machinery:", *named.machinery)
                print("  uses:", *named.uses)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
