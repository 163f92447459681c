"""Finds the input files that --input names, detects their format and compression, and opens them.

    corpus.jsonl  a/*.txt  folder/  dump.parquet  -      each also .gz .zst .bz2 .xz

An argument may be a file, a folder (every file below it with a known suffix), or a pattern (every match); the last two
are sorted by name. `-` is the standard input.
"""

import bz2
import glob
import gzip
import importlib
import importlib.util
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.hub_names import text_hint

STANDARD_INPUT = "-"
FORMATS = ("jsonl", "text", "parquet")
SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".md": "text",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
BROKEN: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, lzma.LZMAError)
if importlib.util.find_spec(ZSTD.split(".")[0]) and importlib.util.find_spec(ZSTD):
    BROKEN += (importlib.import_module(ZSTD).ZstdError,)


class Source(NamedTuple):
    """One input."""

    path: str
    format: str
    """One of FORMATS."""
    compression: str
    """One of COMPRESSIONS, or nothing."""
    bytes: int
    """Size on disk."""
    changed_ns: int
    regular: bool
    """Whether it can be read again and from any position; False for a pipe."""


def find_sources(inputs: Sequence[str], format: str | None = None) -> list[Source]:
    """Every input in order. `format`: for all of them (default: by suffix, else JSONL).

    Raises: UserError for an argument that matches nothing.
    """
    sources = []
    for word in inputs:
        for path in _paths(word, format):
            sources.append(_source(path, format))
    return sources


def _paths(word: str, format: str | None) -> list[str]:
    if os.path.isdir(word):
        return _below(word, format)
    if word == STANDARD_INPUT or os.path.lexists(word) or not glob.has_magic(word):
        return [word]  # a missing file is refused later, by its own name
    matches = [path for path in glob.glob(word, recursive=True) if not os.path.isdir(path)]
    if not matches:
        raise UserError(f"--input {word}: the pattern matches no file")
    return sorted(matches)


def _below(folder: str, format: str | None) -> list[str]:
    files = []
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            files.append(str(path))
    known = [path for path in files if format or format_of(path)]
    if not known:
        raise UserError(
            f"--input {folder}: none of the {len(files)} files in this folder ends in {', '.join(SUFFIXES)} "
            f"(or these with {', '.join(COMPRESSIONS)}); name the files, or give --input-format"
        )
    return known


def compression_of(path: str) -> str:
    """One of COMPRESSIONS, or nothing."""
    return _suffixes(path)[1]


def format_of(path: str) -> str | None:
    """One of FORMATS by the suffix; None: an unknown suffix."""
    return SUFFIXES.get(_suffixes(path)[0])


def _suffixes(path: str) -> tuple[str, str]:
    """Suffix of the content and of the compression."""
    stem, last = os.path.splitext(path)
    if last not in COMPRESSIONS:
        return last, ""
    _, content = os.path.splitext(stem)
    return content, last


def _source(path: str, format: str | None) -> Source:
    compression = compression_of(path)
    format = format or format_of(path) or "jsonl"
    if path == STANDARD_INPUT:
        return Source(path, format, "", 0, 0, False)
    try:
        status = os.stat(path)
    except OSError as error:
        hint = text_hint(path)
        raise UserError(f"{path} cannot be read: {error.strerror}{hint}") from error
    return Source(
        path, format, compression, status.st_size, status.st_mtime_ns, stat.S_ISREG(status.st_mode)
    )


@contextmanager
def opened(path: str, compression: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The decompressed file, and the file on disk (its `tell` shows how far it has been read)."""
    piped = path == STANDARD_INPUT
    where = sys.stdin.fileno() if piped else path
    with open(where, "rb", closefd=not piped) as raw, _unpacked(raw, compression) as file:
        yield file, raw


def _unpacked(raw: IO[bytes], compression: str) -> IO[bytes]:
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if compression == ".bz2":
        return bz2.BZ2File(raw)
    if compression == ".xz":
        return lzma.LZMAFile(raw)
    if compression == ".zst":
        return needed(ZSTD, "zstd", "a .zst file").open(raw)
    return raw


def needed(module: str, extra: str, what: str) -> ModuleType:
    """Imports an optional library. Raises: UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what} needs {module}: pip install 'megascratch[{extra}]' ({error})"
        ) from error


def unreadable(path: str, error: Exception, after: str = "") -> UserError:
    """The UserError to raise for one of BROKEN."""
    reason = getattr(error, "strerror", None) or error
    return UserError(f"{path} cannot be read{after}: {reason}")
