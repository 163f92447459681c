"""Reads the documents of one part of the input in batches; bad lines are collected with their numbers and reasons."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from megascratch.data.preprocess.work_units import InputSpan
from megascratch.data.text.jsonl import (
    BYTE_ORDER_MARK,
    BadLine,
    Line,
    decoded,
    is_longer,
    lines_of,
    parse_sequences,
    sequences_of,
    too_long,
)
from megascratch.data.text.lines import part, stream, whole_lines
from megascratch.data.text.parquet import read_rows
from megascratch.data.text.sources import BROKEN, opened, unreadable
from megascratch.runtime.faults import fault_point


class ReadOptions(NamedTuple):
    """How documents are read."""

    keys: tuple[str, ...]
    sample_by: str
    """How a text file is cut: one of `data.text.documents.SAMPLE_BY`."""
    longest: int
    """Most bytes of a line, row or text file; a longer one is bad."""
    scratch: str
    """A folder for decompressed files."""


class DocumentBatch(NamedTuple):
    """Consecutive documents."""

    rows: int
    """Lines (or rows, or files) read, good or not."""
    numbers: list[int]
    """Line number of each document, from 1 in this batch."""
    documents: list[list[list[str]]]
    """The texts of each document and key, one sequence each."""
    bad: list[tuple[int, str]]
    """Numbers of bad lines, and the reasons."""
    raw_bytes: int
    """Input bytes since the last batch."""


def read_span(span: InputSpan, reading: ReadOptions) -> Iterator[DocumentBatch]:
    """All documents of a part. Raises: UserError where it cannot be read to its end."""
    rows = 0
    try:
        for batch in _FORMATS[span.format](span, reading):
            fault_point("preprocess.read")
            rows += batch.rows
            yield batch
    except BROKEN as error:
        after = f" after line {rows}" if rows and span.begins else ""
        raise unreadable(span.name, error, after) from error


def _jsonl(span: InputSpan, reading: ReadOptions) -> Iterator[DocumentBatch]:
    def texts(raw: bytes) -> list[list[str]]:
        return parse_sequences(Line(0, raw), reading.keys)

    return _line_batches(span, reading, texts)


def _text(span: InputSpan, reading: ReadOptions) -> Iterator[DocumentBatch]:
    if reading.sample_by == "line":
        return _line_batches(span, reading, lambda raw: [[decoded(raw)]], keep_ends=True)
    if reading.sample_by == "bare-line":
        return _line_batches(span, reading, lambda raw: [[decoded(raw.removesuffix(b"\r"))]])
    return _file_batch(span, reading)


def _line_batches(
    span: InputSpan,
    reading: ReadOptions,
    texts: Callable[[bytes], list[list[str]]],
    keep_ends: bool = False,
) -> Iterator[DocumentBatch]:
    begins = span.begins
    for block, raw_bytes in _line_blocks(span, reading.longest):
        bare = block.removeprefix(BYTE_ORDER_MARK) if begins else block
        batch = _batch(lines_of(bare, keep_ends), reading.longest, texts, raw_bytes)
        del block, bare  # a long line must not stay in memory while its text is encoded
        yield batch
        begins = False


def _batch(
    lines: list[bytes], longest: int, texts: Callable[[bytes], list[list[str]]], raw_bytes: int
) -> DocumentBatch:
    batch = DocumentBatch(len(lines), [], [], [], raw_bytes)
    for number, raw in enumerate(lines, 1):
        try:
            if is_longer(raw, longest):
                raise too_long(longest)
            batch.documents.append(texts(raw))
            batch.numbers.append(number)
        except BadLine as reason:
            batch.bad.append((number, str(reason)))
    return batch


def _line_blocks(span: InputSpan, longest: int) -> Iterator[tuple[bytes, int]]:
    """Blocks of complete lines, with the input bytes that were read for each."""
    with opened(span.path, span.compression) as (file, raw):
        to_the_end = span.stop < 0
        blocks = stream(file) if to_the_end else part(file, span.start, span.stop)
        before = 0
        for block in whole_lines(blocks, longest):
            at = raw.tell() if to_the_end else before + len(block)
            at = min(at, span.raw_bytes)
            handed_on = [(block, at - before)]  # so that only the receiver holds a long line
            del block
            yield handed_on.pop()
            before = at


def _file_batch(span: InputSpan, reading: ReadOptions) -> Iterator[DocumentBatch]:
    with opened(span.path, span.compression) as (file, _):
        raw = file.read(reading.longest + 1).removeprefix(BYTE_ORDER_MARK)
    yield _batch([raw], reading.longest, lambda text: [[decoded(text)]], span.raw_bytes)


def _parquet(span: InputSpan, reading: ReadOptions) -> Iterator[DocumentBatch]:
    for rows in read_rows(
        span.path, span.compression, span.start, span.stop, reading.keys, reading.scratch
    ):
        batch = DocumentBatch(len(rows.columns[0]), [], [], [], int(rows.share * span.raw_bytes))
        for number, values in enumerate(zip(*rows.columns, strict=True), 1):
            try:
                texts = []
                for key, value in zip(reading.keys, values, strict=True):
                    texts.append(_row_texts(value, key, reading.longest))
                batch.documents.append(texts)
                batch.numbers.append(number)
            except BadLine as reason:
                batch.bad.append((number, str(reason)))
        yield batch


def _row_texts(value: object, key: str, longest: int) -> list[str]:
    if isinstance(value, bytes):
        if len(value) > longest:
            raise too_long(longest)
        return [decoded(value)]
    return sequences_of(value, key)


_FORMATS: dict[str, Callable[[InputSpan, ReadOptions], Iterator[DocumentBatch]]] = {
    "jsonl": _jsonl,
    "text": _text,
    "parquet": _parquet,
}
