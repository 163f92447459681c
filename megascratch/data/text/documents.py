"""Reads text records from JSONL, Parquet and text files: the reader of every command with `--input`.

There is one record for each line, row or text file of the sources that `find_sources` finds. (`preprocess` cuts the
same sources into parts for many processes.)

    .jsonl .json .ndjson    a JSON object for each line        .parquet    a row of columns
    .txt .md                the file, or each line of it       each also .gz .zst .bz2 .xz

A line of a text file keeps its newline, so that all texts together are the file, unless the lines are asked for bare.
"""

import codecs
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from megascratch.config.errors import UserError
from megascratch.data.text.jsonl import (
    LONGEST_LINE,
    BadLine,
    decoded,
    parse_record,
    read_lines,
    text_of,
    too_long,
)
from megascratch.data.text.parquet import read_rows
from megascratch.data.text.sources import BROKEN, Source, opened, unreadable

PART_BYTES = 1 << 20
LINES = ("line", "bare-line")
SAMPLE_BY = ("document", *LINES)
"""What becomes one document of a text file: the file, a line with its newline, or a line without it."""


class Record(NamedTuple):
    """One line, row or text file."""

    path: str
    number: int
    """Line or row, from 1."""
    content: dict[str, Any] | BadLine
    raw: bytes | None
    """The unchanged line of a JSONL file; None for other formats."""
    is_text: bool = False
    """Whether it is from a text file, which has no keys."""

    @property
    def place(self) -> str:
        """`file:line`, for messages."""
        return f"{self.path}:{self.number}"

    def fields(self) -> dict[str, Any]:
        """Keys and values. Raises: BadLine."""
        if isinstance(self.content, BadLine):
            raise self.content
        return self.content

    def text(self, key: str) -> str:
        """The text under a key. Raises: BadLine."""
        return text_of(self.fields(), key)

    def line(self) -> bytes:
        """The record as a line of JSONL. Raises: BadLine."""
        if self.raw is not None:
            return self.raw
        return orjson.dumps(self.fields(), default=str)


def read_records(
    sources: Sequence[Source],
    key: str,
    columns: Sequence[str] | None = None,
    sample_by: str = "document",
) -> Iterator[Record]:
    """Every record of the sources, in order.

    Args:
        key: key under which the text of a text file is put.
        columns: columns to read of a Parquet file (None: all).
        sample_by: how a text file is cut: one of SAMPLE_BY, or "part" (1 MiB each, for callers that need text but not
            documents).

    Raises: UserError where a source cannot be read to its end.
    """
    for source in sources:
        if source.format == "parquet":
            yield from _rows(source, columns)
        elif source.format == "jsonl":
            yield from _lines(source)
        elif sample_by in LINES:
            yield from _text_lines(source, key, keep_ends=sample_by == "line")
        else:
            yield from _parts(source, key, as_one=sample_by == "document")


def _lines(source: Source) -> Iterator[Record]:
    for line in read_lines(source.path):
        try:
            yield Record(source.path, line.number, parse_record(line), line.raw)
        except BadLine as reason:
            yield Record(source.path, line.number, reason, line.raw)


def _text_lines(source: Source, key: str, keep_ends: bool) -> Iterator[Record]:
    for line in read_lines(source.path, keep_ends=keep_ends):
        try:
            if line.raw is None:
                raise too_long(LONGEST_LINE)
            yield Record(source.path, line.number, {key: decoded(line.raw)}, None, is_text=True)
        except BadLine as reason:
            yield Record(source.path, line.number, reason, None)


def _parts(source: Source, key: str, as_one: bool) -> Iterator[Record]:
    """The file in parts of PART_BYTES, or as one. Reading ends at the first bytes that are not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    read_bytes = LONGEST_LINE + 1 if as_one else PART_BYTES
    number = 1
    try:
        with opened(source.path, source.compression) as (file, _):
            while True:
                raw = file.read(read_bytes)
                if as_one and len(raw) > LONGEST_LINE:
                    yield Record(source.path, number, too_long(LONGEST_LINE), None)
                    return
                text = decoder.decode(raw, final=as_one or not raw)
                if text or as_one:
                    yield Record(source.path, number, {key: text}, None, is_text=True)
                    number += 1
                if as_one or not raw:
                    return
    except UnicodeDecodeError as error:
        yield Record(
            source.path, number, BadLine(f"not UTF-8: byte 0x{error.object[error.start]:02x}"), None
        )
    except BROKEN as error:
        raise unreadable(source.path, error) from error


def _rows(source: Source, columns: Sequence[str] | None) -> Iterator[Record]:
    if not source.regular:
        raise UserError(
            f"--input {source.path}: Parquet is read from its end and cannot be read from a pipe"
        )
    number = 0
    with tempfile.TemporaryDirectory(prefix="megascratch-") as scratch:
        for rows in read_rows(source.path, source.compression, 0, -1, columns, scratch):
            for values in zip(*rows.columns, strict=True):
                number += 1
                yield Record(source.path, number, _fields(rows.names, values), None)


def _fields(names: Sequence[str], values: Sequence[object]) -> dict[str, Any] | BadLine:
    fields: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        try:
            fields[name] = decoded(value) if isinstance(value, bytes) else value
        except BadLine as reason:
            return BadLine(f"column {name!r} is {reason}")
    return fields
