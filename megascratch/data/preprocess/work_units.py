"""Sources in, pieces of work out: neighbouring parts of the input, of about equal size, each encoded into one shard.

    a.jsonl |--------|--------|----|      plain lines: byte ranges; Parquet: row groups
    b.jsonl                        |--|   small files share a piece
    c.jsonl.gz                        |------------------|   a packed file is one part

The cut follows from the input alone, so that a run that goes on after a kill, or on other machines, has the same
shards. (The order of documents is that of the input, so the cut never decides what is written, only who encodes what.)
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from megascratch.data.text.parquet_sizes import RowGroupSizes
from megascratch.data.text.sources import Source, unreadable

LEAF_BYTES = 1 << 22
MOST_BYTES, FEWEST_PIECES = 1 << 26, 32
MOST_SPANS = 256


class InputSpan(NamedTuple):
    """A part of one source."""

    source: int
    """Its place in the list of sources."""
    name: str
    """The source's path, for messages."""
    path: str
    """Where its bytes are read: the source itself, or a file that a pipe was copied to."""
    format: str
    compression: str
    start: int
    stop: int
    """Plain lines: the lines that begin in these bytes; Parquet: row groups; -1: to the end."""
    begins: bool
    """Whether this is the beginning of the source."""
    digest: tuple[int, int]
    """Bytes of the source whose hash belongs to this part."""
    raw_bytes: int
    """How much of the input this is, for the progress."""


class WorkUnit(NamedTuple):
    """What one worker does at a time."""

    number: int
    spans: list[InputSpan]


def shard_bytes(sources: Sequence[Source], partitions: int, asked: int | None) -> int:
    """Input bytes for each shard: 64 MiB, less where the input is small, or as `asked`."""
    if asked is None:
        total = sum(source.bytes for source in sources)
        asked = min(MOST_BYTES, max(LEAF_BYTES, total // max(FEWEST_PIECES, partitions)))
    leaf = min(asked, LEAF_BYTES)
    return -(-asked // leaf) * leaf


def cut(sources: Sequence[Source], size: int, sample_by: str, keys: Sequence[str]) -> Iterator[InputSpan]:
    """The parts of all regular files, in order. Raises: UserError where a Parquet file lacks a key."""
    with RowGroupSizes() as sizes:
        for place, source in enumerate(sources):
            yield from spans_of(place, source, size, sample_by, keys, sizes)


def spans_of(
    place: int, source: Source, size: int, sample_by: str, keys: Sequence[str], sizes: RowGroupSizes
) -> Iterator[InputSpan]:
    """The parts of one file."""
    if source.format == "parquet" and not source.compression:
        yield from _row_groups(place, source, size, sizes.of(source.path, keys))
    elif source.compression or (source.format == "text" and sample_by == "document"):
        yield whole(place, source)
    else:
        for start in range(0, source.bytes, size):
            stop = min(start + size, source.bytes)
            yield whole(place, source)._replace(
                start=start, stop=stop, begins=start == 0, digest=(start, stop), raw_bytes=stop - start
            )


def whole(place: int, source: Source) -> InputSpan:
    """A source in one part."""
    return InputSpan(
        place, source.path, source.path, source.format, source.compression, 0, -1, True, (0, source.bytes), source.bytes
    )


def _row_groups(place: int, source: Source, size: int, groups: Sequence[int]) -> Iterator[InputSpan]:
    """Neighbouring row groups of together at least `size` bytes; the file's bytes are shared out by their number."""
    leaf = min(size, LEAF_BYTES)
    leaves = -(-source.bytes // leaf)
    start, held = 0, 0
    for stop, group in enumerate(groups, 1):
        held += group
        if held >= size or stop == len(groups):
            first, last = (min(leaves * at // len(groups) * leaf, source.bytes) for at in (start, stop))
            yield whole(place, source)._replace(
                start=start, stop=stop, begins=start == 0, digest=(first, last), raw_bytes=last - first
            )
            start, held = stop, 0


def gather(spans: Iterable[InputSpan], size: int) -> Iterator[WorkUnit]:
    """Neighbouring parts until they have `size` bytes together."""
    number, held = 0, list[InputSpan]()
    for span in spans:
        held.append(span)
        if sum(one.raw_bytes for one in held) >= size or len(held) == MOST_SPANS:
            yield WorkUnit(number, held)
            number, held = number + 1, []
    if held:
        yield WorkUnit(number, held)


def leaves(span: InputSpan, leaf: int) -> range:
    """Where each `leaf` bytes of the part's share of its file begin; none of a pipe, which cannot be read again."""
    return range(*span.digest, leaf)


def digests(span: InputSpan, leaf: int) -> Iterator[str]:
    """sha256 of each leaf of the part. Raises: UserError where it cannot be read."""
    starts = leaves(span, leaf)
    if not starts:
        return
    try:
        with open(span.name, "rb") as file:
            file.seek(starts.start)
            for at in starts:
                yield hashlib.sha256(file.read(min(leaf, starts.stop - at))).hexdigest()
    except OSError as error:
        raise unreadable(span.name, error) from error


def file_digest(leaves: Iterable[str]) -> str:
    """sha256 over the hashes of all parts of a file, in order: many processes find it together."""
    whole_file = hashlib.sha256()
    for leaf in leaves:
        whole_file.update(bytes.fromhex(leaf))
    return whole_file.hexdigest()
