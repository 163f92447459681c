"""Spools a pipe (or a compressed file) into plain files, so that workers can read it in parallel.

The files are in the run's folder, a few at a time: each is read by a worker and removed when its shard is complete.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from megascratch.config.errors import UserError
from megascratch.data.preprocess.output_shards import writing
from megascratch.data.preprocess.work_units import InputSpan, whole_source
from megascratch.data.text.lines import at_most, stream, whole_lines
from megascratch.data.text.sources import BROKEN, Source, opened, unreadable


def spool_stream(place: int, source: Source, folder: Path, size: int, longest: int, lines: bool) -> Iterator[InputSpan]:
    """Copies a pipe or compressed file into plain files of at least `size` bytes; without `lines` it is one document.

    Raises: UserError where it cannot be read to its end, or is Parquet, which cannot be read from a pipe.
    """
    if source.format == "parquet":
        raise UserError(f"--input {source.path}: Parquet is read from its end and cannot be read from a pipe")
    part = whole_source(place, source)._replace(compression="", digest=(0, 0))
    blocks = _blocks(source, longest, lines)
    for number, (path, written) in enumerate(_files(blocks, folder, place, size if lines else longest + 1)):
        digest = (0, source.bytes) if number == 0 else (0, 0)
        yield part._replace(path=str(path), begins=number == 0, digest=digest, raw_bytes=written)


def _blocks(source: Source, longest: int, lines: bool) -> Iterator[bytes]:
    try:
        with opened(source.path, source.compression) as (file, _):
            yield from whole_lines(stream(file), longest) if lines else at_most(stream(file), longest + 1)
    except BROKEN as error:
        raise unreadable(source.path, error) from error


def _files(blocks: Iterator[bytes], folder: Path, place: int, size: int) -> Iterator[tuple[Path, int]]:
    for number, first in enumerate(blocks):
        path = folder / f"input.{place}.{number}"
        with writing(folder):
            written = _copy(first, blocks, path, size)
        yield path, written


def _copy(first: bytes, blocks: Iterator[bytes], path: Path, size: int) -> int:
    written = 0
    with path.open("wb") as file:
        for block in chain([first], blocks):
            written += file.write(block)
            if written >= size:
                break
    return written
