"""Refuses to overwrite an input file, or an existing corpus without --overwrite."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from megascratch.config.errors import UserError
from megascratch.data.text.sources import find_sources
from megascratch.data.tokens.digests import digests_path, manifest_file
from megascratch.data.tokens.loss_mask import mask_prefix
from megascratch.data.tokens.token_files import bin_path, idx_path

Named = tuple[str, str | Path | None]
"""A flag and a file that it names; None: the flag is not given."""


def corpus_files(prefix: str | Path) -> list[Path]:
    """Every file that a corpus with this prefix may have, including those of its loss mask."""
    prefixes = (str(prefix), mask_prefix(prefix))
    return [path(one) for one in prefixes for path in (bin_path, idx_path, manifest_file, digests_path)]


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
                raise UserError(f"{path} exists: choose another output prefix, or replace the corpus with --overwrite")


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)
