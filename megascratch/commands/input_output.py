"""The input and output files of a command: the report of bad lines, and the refusal to overwrite an input or a
corpus."""

import argparse
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from megascratch.config.errors import UserError
from megascratch.config.printable import printable
from megascratch.config.verbosity import is_quiet, note
from megascratch.data.text.bad_lines import BadReasons
from megascratch.data.text.sources import find_sources
from megascratch.data.tokens.digests import digests_path, manifest_file
from megascratch.data.tokens.loss_mask import mask_prefix
from megascratch.data.tokens.token_files import bin_path, idx_path

MOST_PRINTED = 20  # bad lines
Named = tuple[str, str | Path | None]
"""A flag and a file that it names; None: the flag is not given."""


class BadLines:
    """The bad lines of one run. The first of each kind is printed at once, others at the end, MOST_PRINTED in total."""

    def __init__(self) -> None:
        self.reasons = BadReasons()
        self._printed = 0
        self._later: list[str] = []

    @property
    def count(self) -> int:
        """Number of bad lines."""
        return self.reasons.total

    def add(self, line: str) -> None:
        """`line`: FILE:LINE: REASON."""
        is_first = self.reasons.add(line)
        if self._printed + len(self._later) == MOST_PRINTED:
            return
        if is_first:
            self._print(line)
        else:
            self._later.append(line)

    def print_rest(self, listed_in: str | None = None) -> None:
        """Prints the lines that wait, and the number of those that are not printed; for the end of a run that found
        something to read. `listed_in`: a file that has all of them."""
        for line in self._later:
            self._print(line)
        self._later.clear()
        more = self.count - self._printed
        if more:
            where = f"; all are in {printable(listed_in)}" if listed_in else ""
            note(f"skipped {more:,} more{where}")

    def _print(self, line: str) -> None:
        self._printed += 1
        note(f"skipped {printable(line)}")


def print_next(words: Sequence[str]) -> None:
    """Prints the command that usually follows, as a shell reads it, unless the command is quiet; `words` are without
    `megascratch`."""
    if not is_quiet():
        print(f"next: {printable(shlex.join(['megascratch', *words]))}")


def corpus_files(prefix: str | Path) -> list[Path]:
    """Every file that a corpus with this prefix may have, including those of its loss mask."""
    files: list[Path] = []
    for each in (str(prefix), mask_prefix(prefix)):
        files += [bin_path(each), idx_path(each), manifest_file(each), digests_path(each)]
    return files


def of_corpora(flag: str, prefixes: Iterable[str | Path]) -> list[Named]:
    """All files of the corpora that a flag names."""
    return [(flag, path) for prefix in prefixes for path in corpus_files(prefix)]


def input_files(options: argparse.Namespace) -> list[Named]:
    """Every file that `--input` names, including those in folders and patterns."""
    sources = find_sources(options.input, options.input_format)
    return [("--input", source.path) for source in sources]


def require_no_input(outputs: Iterable[Named], inputs: Iterable[Named]) -> None:
    """Raises: UserError if a file to be written is one of the inputs, also under another name (a link)."""
    read = [(flag, Path(path)) for flag, path in inputs if path is not None]
    for flag, path in outputs:
        if path is None:
            continue
        for other, source in read:
            if _same(Path(path), source):
                raise UserError(f"{flag} {path} is also an input ({other}): choose another name")


def require_free(prefixes: Iterable[str | Path], overwrite: bool) -> None:
    """Raises: UserError if a corpus to be written exists, unless `overwrite`."""
    if overwrite:
        return
    for prefix in prefixes:
        for path in corpus_files(prefix):
            if path.exists():
                raise UserError(
                    f"{path} exists: choose another output prefix, or replace the corpus with --overwrite"
                )


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)
