"""Cuts the input into work units of about equal size; each is encoded into one shard.

    a.jsonl |--------|--------|----|      plain lines: byte ranges; Parquet: row groups
    b.jsonl                        |--|   small files share a unit
    c.jsonl.gz                        |------------------|   a compressed file is one part

The cut depends only on the input, so that a run that resumes after a kill, or on other machines, has the same shards.
(The order of documents is that of the input, so the cut never changes the output, only which process encodes what.)

A pipe cannot be cut, nor can a compressed file: `spool_stream` copies it into plain files in the run's folder, a few at
a time, so that workers can read them in parallel. Each is removed when its shard is complete.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from megascratch.config.errors import UserError
from megascratch.data.preprocess.output_shards import writing
from megascratch.data.text.lines import at_most, stream, whole_lines
from megascratch.data.text.parquet import RowGroupSizes
from megascratch.data.text.sources import BROKEN, Source, opened, unreadable

LEAF_BYTES = 1 << 22
MOST_BYTES = 1 << 26
FEWEST_PIECES = 32
MOST_SPANS = 256


class InputSpan(NamedTuple):
    """A part of one source."""

    source: int
    """Index in the list of sources."""
    name: str
    """The source's path, for messages."""
    path: str
    """The file to read: the source itself, or a file that a pipe was copied to."""
    format: str
    compression: str
    start: int
    stop: int
    """Lines: those that begin in bytes [start, stop); Parquet: row groups [start, stop); stop -1: to the end."""
    begins: bool
    """Whether this is the beginning of the source."""
    digest: tuple[int, int]
    """[first, stop) of the source's bytes that are hashed with this part."""
    raw_bytes: int
    """Size of this part of the input, for the progress display."""


class WorkUnit(NamedTuple):
    """Consecutive parts of the input that one worker encodes into one shard."""

    number: int
    spans: list[InputSpan]


def shard_bytes(sources: Sequence[Source], partitions: int, asked: int | None) -> int:
    """Input bytes per shard: 64 MiB, less if the input is small, or `asked`."""
    if asked is None:
        total = sum(source.bytes for source in sources)
        even = total // max(FEWEST_PIECES, partitions)
        asked = min(MOST_BYTES, max(LEAF_BYTES, even))
    leaf = min(asked, LEAF_BYTES)
    return -(-asked // leaf) * leaf


def cut(
    sources: Sequence[Source], size: int, sample_by: str, keys: Sequence[str]
) -> Iterator[InputSpan]:
    """The parts of all regular files, in order. Raises: UserError where a Parquet file lacks a key."""
    with RowGroupSizes() as sizes:
        for place, source in enumerate(sources):
            yield from spans_of(place, source, size, sample_by, keys, sizes)


def spans_of(
    place: int, source: Source, size: int, sample_by: str, keys: Sequence[str], sizes: RowGroupSizes
) -> Iterator[InputSpan]:
    """The parts of one source."""
    if source.format == "parquet" and not source.compression:
        yield from _row_groups(place, source, size, sizes.of(source.path, keys))
    elif source.compression or (source.format == "text" and sample_by == "document"):
        yield whole_source(place, source)
    else:
        for start in range(0, source.bytes, size):
            stop = min(start + size, source.bytes)
            yield whole_source(place, source)._replace(
                start=start,
                stop=stop,
                begins=start == 0,
                digest=(start, stop),
                raw_bytes=stop - start,
            )


def whole_source(place: int, source: Source) -> InputSpan:
    """A source as one part."""
    return InputSpan(
        source=place,
        name=source.path,
        path=source.path,
        format=source.format,
        compression=source.compression,
        start=0,
        stop=-1,
        begins=True,
        digest=(0, source.bytes),
        raw_bytes=source.bytes,
    )


def _row_groups(
    place: int, source: Source, size: int, groups: Sequence[int]
) -> Iterator[InputSpan]:
    """Parts of consecutive row groups with at least `size` bytes; the file's bytes are divided among them by number."""
    leaf = min(size, LEAF_BYTES)
    leaves = -(-source.bytes // leaf)
    start = 0
    first_byte = 0
    group_bytes = 0
    for stop, group in enumerate(groups, 1):
        group_bytes += group
        if group_bytes >= size or stop == len(groups):
            end_byte = min(leaves * stop // len(groups) * leaf, source.bytes)
            yield whole_source(place, source)._replace(
                start=start,
                stop=stop,
                begins=start == 0,
                digest=(first_byte, end_byte),
                raw_bytes=end_byte - first_byte,
            )
            start = stop
            first_byte = end_byte
            group_bytes = 0


def spool_stream(
    place: int, source: Source, folder: Path, size: int, longest: int, lines: bool
) -> Iterator[InputSpan]:
    """Copies a pipe or compressed file into plain files of at least `size` bytes; without `lines` it is one document.

    Raises: UserError where it cannot be read to its end, or is Parquet, which cannot be read from a pipe.
    """
    if source.format == "parquet":
        raise UserError(
            f"--input {source.path}: Parquet is read from its end and cannot be read from a pipe"
        )
    part = whole_source(place, source)._replace(compression="", digest=(0, 0))
    blocks = _stream_blocks(source, longest, lines)
    file_bytes = size if lines else longest + 1
    for number, first_block in enumerate(blocks):
        path = folder / f"input.{place}.{number}"
        with writing(folder):
            written = _copy_blocks(chain([first_block], blocks), path, file_bytes)
        digest = (0, source.bytes) if number == 0 else (0, 0)
        yield part._replace(path=str(path), begins=number == 0, digest=digest, raw_bytes=written)


def _stream_blocks(source: Source, longest: int, lines: bool) -> Iterator[bytes]:
    """The decompressed source in blocks of whole lines; without `lines` its first `longest` + 1 bytes."""
    try:
        with opened(source.path, source.compression) as (file, _):
            if lines:
                yield from whole_lines(stream(file), longest)
            else:
                yield from at_most(stream(file), longest + 1)
    except BROKEN as error:
        raise unreadable(source.path, error) from error


def _copy_blocks(blocks: Iterator[bytes], path: Path, size: int) -> int:
    """Writes blocks until the file has at least `size` bytes; returns its bytes."""
    written = 0
    with path.open("wb") as file:
        for block in blocks:
            written += file.write(block)
            if written >= size:
                break
    return written


def gather(spans: Iterable[InputSpan], size: int) -> Iterator[WorkUnit]:
    """Groups consecutive parts into units of at least `size` bytes."""
    number = 0
    gathered: list[InputSpan] = []
    gathered_bytes = 0
    for span in spans:
        gathered.append(span)
        gathered_bytes += span.raw_bytes
        if gathered_bytes >= size or len(gathered) == MOST_SPANS:
            yield WorkUnit(number, gathered)
            number += 1
            gathered = []
            gathered_bytes = 0
    if gathered:
        yield WorkUnit(number, gathered)


def leaves(span: InputSpan, leaf: int) -> range:
    """Start of each block of `leaf` bytes to hash in this part; none for a pipe, which cannot be read again."""
    return range(*span.digest, leaf)


def digests(span: InputSpan, leaf: int) -> Iterator[str]:
    """sha256 of each block of `leaves`. Raises: UserError where the file cannot be read."""
    starts = leaves(span, leaf)
    if not starts:
        return
    try:
        with open(span.name, "rb") as file:
            file.seek(starts.start)
            for at in starts:
                block = file.read(min(leaf, starts.stop - at))
                yield hashlib.sha256(block).hexdigest()
    except OSError as error:
        raise unreadable(span.name, error) from error


def file_digest(leaves: Iterable[str]) -> str:
    """sha256 over the hashes of all blocks of a file, in order, so that many processes can compute it together."""
    whole_file = hashlib.sha256()
    for leaf in leaves:
        whole_file.update(bytes.fromhex(leaf))
    return whole_file.hexdigest()
