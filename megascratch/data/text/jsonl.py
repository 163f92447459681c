"""Reads JSONL files (plain or compressed): numbered lines, the texts under their keys, and why a line is bad.

Memory is bounded by the longest allowed line; a longer one (a file that is not JSONL, a decompression bomb) is a bad
line.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from megascratch.data.text.lines import stream, whole_lines
from megascratch.data.text.sources import BROKEN, compression_of, opened, unreadable

LONGEST_LINE = 1 << 26  # bytes
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# how the reasons of bad lines begin
BROKEN_JSON = "broken JSON"
EMPTY_LINE = "empty line"
NO_KEY = "no key"
NO_OBJECT = "not a JSON object"


class BadLine(Exception):
    """Raised for a line without a usable text; the message is the reason."""


class Line(NamedTuple):
    """One line of a file."""

    number: int
    """From 1."""
    raw: bytes | None
    """The line, usually without its end; None: longer than the limit."""


def read_lines(
    path: str | Path, longest: int = LONGEST_LINE, keep_ends: bool = False
) -> Iterator[Line]:
    """Every line of a file, with `keep_ends` each with its line end. Raises: UserError where it cannot be read to its
    end."""
    path = str(path)
    number = 0
    try:
        with opened(path, compression_of(path)) as (file, _):
            for block in whole_lines(stream(file), longest):
                for raw in lines_of(block, keep_ends):
                    number += 1
                    if number == 1:
                        raw = raw.removeprefix(BYTE_ORDER_MARK)
                    if is_longer(raw, longest):
                        yield Line(number, None)
                    else:
                        yield Line(number, raw if keep_ends else raw.rstrip(b"\r"))
    except BROKEN as error:
        after = f" after line {number}" if number else ""
        raise unreadable(path, error, after) from error


def lines_of(block: bytes, keep_ends: bool = False) -> list[bytes]:
    """The lines of a block, without or with their line ends."""
    lines = block.split(b"\n")
    rest = lines.pop()
    if keep_ends:
        lines = [line + b"\n" for line in lines]
    if rest:
        lines.append(rest)
    return lines


def is_longer(line: bytes, longest: int) -> bool:
    """Whether a line has more than `longest` bytes before its end."""
    return len(line) - line.endswith(b"\n") > longest


def parse(line: Line, keys: Sequence[str]) -> list[str]:
    """The texts under `keys`. Raises: BadLine."""
    record = parse_record(line)
    return [text_of(record, key) for key in keys]


def parse_sequences(line: Line, keys: Sequence[str]) -> list[list[str]]:
    """The texts under each key: a value may be one text or a list of texts, one sequence each. Raises: BadLine."""
    record = parse_record(line)
    return [sequences_of(value_of(record, key), key) for key in keys]


def sequences_of(value: object, key: str) -> list[str]:
    """The texts in a value. Raises: BadLine."""
    texts = value if isinstance(value, list) else [value]
    return [_text(text, key) for text in texts]


def parse_record(line: Line) -> dict[str, Any]:
    """The JSON object of a line. Raises: BadLine."""
    if line.raw is None:
        raise BadLine(f"longer than {LONGEST_LINE:,} bytes")
    try:
        record = orjson.loads(line.raw)
    except orjson.JSONDecodeError:
        record = _parse_slowly(line.raw)
    if not isinstance(record, dict):
        raise BadLine(f"{NO_OBJECT} but {type(record).__name__}")
    return record


def _parse_slowly(raw: bytes) -> Any:
    """Parses with Python's json, which accepts more (NaN, long numbers) and reports the position of an error."""
    if not raw.strip():
        raise BadLine(EMPTY_LINE)
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise BadLine(not_utf8(raw, error)) from error
    except json.JSONDecodeError as error:
        raise BadLine(f"{BROKEN_JSON}: {error.msg} at column {error.colno}") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # a number with too many digits, a thousand brackets
        raise BadLine(f"{BROKEN_JSON}: {error}") from error


def decoded(raw: bytes) -> str:
    """The text of UTF-8 bytes. Raises: BadLine where they are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadLine(not_utf8(raw, error)) from error


def too_long(longest: int) -> BadLine:
    """The error for a line that is too long."""
    return BadLine(f"longer than {longest:,} bytes (--max-document-bytes)")


def not_utf8(raw: bytes, error: UnicodeDecodeError) -> str:
    """The message for bytes that are not UTF-8."""
    return f"not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}"


def value_of(record: dict[str, Any], key: str) -> Any:
    """The value under a key. Raises: BadLine."""
    if key not in record:
        known = ", ".join(map(repr, list(record)[:5])) or "none"
        raise BadLine(f"{NO_KEY} {key!r} (it has {known})")
    return record[key]


def text_of(record: dict[str, Any], key: str) -> str:
    """The text under a key. Raises: BadLine."""
    return _text(value_of(record, key), key)


def _text(text: object, key: str) -> str:
    if not isinstance(text, str):
        raise BadLine(f"key {key!r} holds {type(text).__name__}, not a text")
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise BadLine(
            f"key {key!r} holds half a surrogate pair at place {error.start + 1}: not a text"
        ) from error
    return text
