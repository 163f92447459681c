"""Raw text in: the lines of JSONL files (plain or .gz) with their numbers, and what is wrong with a line in words.

Memory is bounded by the longest line allowed; a longer one (a file that is no JSONL, a compressed bomb) is a bad line.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from megascratch.config.errors import UserError

LONGEST_LINE = 1 << 26  # bytes
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BadLine(Exception):
    """A line that gives no text; the message is the reason."""


class Line(NamedTuple):
    """One line of a file."""

    number: int
    """From 1."""
    raw: bytes | None
    """Without the line end; None: longer than the limit."""


def read_lines(path: str | Path, longest: int = LONGEST_LINE) -> Iterator[Line]:
    """Every line of a file. Raises: UserError where it cannot be read to its end."""
    number = 0
    try:
        with _open(Path(path)) as file:
            while raw := file.readline(longest + 1):
                number += 1
                if number == 1:
                    raw = raw.removeprefix(BYTE_ORDER_MARK)
                yield Line(number, None if _runs_over(file, raw, longest) else raw.rstrip(b"\r\n"))
    except (OSError, EOFError, zlib.error) as error:
        after = f" after line {number}" if number else ""
        raise UserError(f"{path} cannot be read{after}: {getattr(error, 'strerror', None) or error}") from error


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _runs_over(file: gzip.GzipFile | io.BufferedReader, raw: bytes, longest: int) -> bool:
    """Whether the line is too long; its rest is read over."""
    if len(raw) <= longest:
        return False
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(1 << 20)
    return True


def parse(line: Line, keys: Sequence[str]) -> list[str]:
    """The texts under `keys`. Raises: BadLine."""
    if line.raw is None:
        raise BadLine(f"longer than {LONGEST_LINE:,} bytes")
    if not line.raw.strip():
        raise BadLine("empty line")
    try:
        record = json.loads(line.raw.decode())
    except UnicodeDecodeError as error:
        raise BadLine(f"not UTF-8: byte 0x{line.raw[error.start]:02x} at column {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise BadLine(f"broken JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number with too many digits, a thousand brackets
        raise BadLine(f"broken JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadLine(f"not a JSON object but {type(record).__name__}")
    return [_text(record, key) for key in keys]


def _text(record: dict[str, object], key: str) -> str:
    if key not in record:
        raise BadLine(f"no key {key!r} (it has {', '.join(map(repr, list(record)[:5])) or 'none'})")
    text = record[key]
    if not isinstance(text, str):
        raise BadLine(f"key {key!r} holds {type(text).__name__}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadLine(f"key {key!r} holds half a surrogate pair at place {error.start + 1}: not a text") from error
    return text
