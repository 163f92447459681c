"""The format of `manifest.json`, the table of contents of a checkpoint: writes, parses and checks it.

    {"sha256": "hex digest of the bytes of body",
    "body": {"format": 3,
             "step": 123,
             "state": {...},                              scalars and settings, any JSON
             "table": "chunks.bin",                       the file with a row for each data file and for each chunk
             "files": {"number": 2,                       of data files
                       "bytes": 2096,                     of all of them together
                       "xxh3_64": "16 hex digits"},       of their rows
             "tensors": {name: {"shape": [4, 6],          of the full tensor, without padding
                                "dtype": "float32",
                                "chunks": 3,              the number of chunks
                                "xxh3_64": "..."}}}}      of their rows

The rows are in the order of the names, without gaps, so their places follow from the numbers of chunks. The manifest
names no ranks and no layout: a reader takes the chunks that overlap the boxes it wants. Steps of format 2, which have
their chunks in the manifest itself, are read as well.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from xxhash import xxh3_64_intdigest

from megascratch.checkpoint.format.boxes import volume
from megascratch.checkpoint.format.chunk_table import (
    DTYPES,
    FILE_ROW,
    ChunkRows,
    DataFile,
    StoredBox,
    check_coverage,
    check_files_are_full,
    check_rows,
    encode_files,
    row_bytes,
)
from megascratch.config.json_record import parse_json
from megascratch.config.printable import shown
from megascratch.config.saved import require_valid_state
from megascratch.storage.run_folders import MANIFEST

FILE = MANIFEST
FORMAT = 3
MOST_TABLE_BYTES = 1 << 30
MOST_DIMS = 64  # of a tensor in PyTorch
MOST_TENSOR_BYTES = (1 << 63) - 1

_HEAD = b'{"sha256": "'
_MIDDLE = b'",\n"body": '
_TAIL = b"}\n"
_TABLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.bin")
_DIGEST = re.compile(r"[0-9a-f]{16}")


class TableRange(NamedTuple):
    """A part of the table of chunks, in bytes."""

    offset: int
    nbytes: int
    xxh3_64: int


@dataclass(frozen=True)
class TensorEntry:
    """A tensor, and where in the table the rows of its chunks are."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: int  # how many there are
    rows: TableRange

    def chunk_bytes(self, chunk: StoredBox) -> int:
        return volume(chunk.box) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds; the rows of its data files and chunks are in the table."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, TensorEntry]
    table: str  # the name of the table's file
    file_rows: TableRange
    number_of_files: int
    nbytes: int  # of all data files together
    table_content: bytes | None = None  # the table itself, where the step has no file for it

    @property
    def table_bytes(self) -> int:
        """The size of the table."""
        return self.file_rows.nbytes + sum(whole.rows.nbytes for whole in self.tensors.values())


class StepContents(NamedTuple):
    """Both files that describe the data files of a step, and what they say of them."""

    manifest: bytes
    table: bytes
    files: list[DataFile]


class TensorChunks(NamedTuple):
    """A tensor and all its chunks."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: ChunkRows


def contents_of(
    step: int,
    state: dict[str, Any],
    files: list[DataFile],
    tensors: dict[str, TensorChunks],
    table_name: str,
) -> StepContents:
    """The manifest and the table of a step.

    Raises: TypeError for a state that is not JSON; ValueError unless the chunks fill every tensor and every file
    exactly once.
    """
    table = [encode_files(files)]
    entries = {}
    for name, (shape, dtype, rows) in sorted(tensors.items()):
        check_rows(name, shape, dtype, rows, len(files))
        check_coverage(name, shape, rows)
        table.append(rows.numbers.tobytes())
        entries[name] = {
            "shape": list(shape),
            "dtype": str(dtype).removeprefix("torch."),
            "chunks": len(rows),
            "xxh3_64": _hex(table[-1]),
        }
    check_files_are_full(files, ((dtype, rows) for _, dtype, rows in tensors.values()))
    body = {
        "format": FORMAT,
        "step": step,
        "state": state,
        "table": table_name,
        "files": {
            "number": len(files),
            "bytes": sum(file.bytes for file in files),
            "xxh3_64": _hex(table[0]),
        },
        "tensors": entries,
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return StepContents(signed(text), b"".join(table), files)


def signed(body: bytes) -> bytes:
    """Puts the digest of a body in front of it."""
    return _HEAD + _digest(body) + _MIDDLE + body + _TAIL


def unsigned(text: bytes) -> dict[str, Any]:
    """The body of a manifest whose digest is right. Raises: ValueError or UserError for any other text."""
    digest_end = len(_HEAD) + 64
    digest = text[len(_HEAD) : digest_end]
    body_text = text[digest_end + len(_MIDDLE) : -len(_TAIL)]
    if text != _HEAD + digest + _MIDDLE + body_text + _TAIL:
        raise ValueError("it is not a manifest file")
    if digest != _digest(body_text):
        raise ValueError("its sha256 does not match its content")
    body: dict[str, Any] = parse_json(body_text)
    return body


def parse(body: dict[str, Any], table_content: bytes | None = None) -> Manifest:
    """The manifest of a body of format 3. Raises: ValueError, KeyError, TypeError or UserError if it is not valid.

    Args:
        table_content: the table, where the step has no file for it.
    """
    tensors = {}
    count = require_number(body["files"]["number"])
    files = TableRange(0, count * FILE_ROW.itemsize, require_checksum(body["files"]["xxh3_64"]))
    end = files.nbytes
    for name, record in sorted(body["tensors"].items()):
        tensors[name] = _tensor_entry(name, record, end)
        end += tensors[name].rows.nbytes
    if end > MOST_TABLE_BYTES:
        raise ValueError(
            f"its table of chunks would have {end:,} bytes, more than {MOST_TABLE_BYTES:,}"
        )
    table = body["table"]
    if not isinstance(table, str) or not _TABLE_NAME.fullmatch(table):
        raise ValueError(f"{shown(table)} is not a valid name of a table of chunks")
    state = dict(body["state"])
    require_valid_state(state)
    step = require_number(body["step"])
    nbytes = require_number(body["files"]["bytes"])
    return Manifest(step, state, tensors, table, files, count, nbytes, table_content)


def _tensor_entry(name: str, record: dict[str, Any], offset: int) -> TensorEntry:
    dtype = DTYPES[record["dtype"]]
    shape = require_shape(name, record["shape"], dtype)
    chunks = require_number(record["chunks"])
    checksum = require_checksum(record["xxh3_64"])
    return TensorEntry(
        shape, dtype, chunks, TableRange(offset, chunks * row_bytes(len(shape)), checksum)
    )


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _hex(content: bytes) -> str:
    return f"{xxh3_64_intdigest(content):016x}"


def require_number(value: Any) -> int:
    """Raises: ValueError unless the value is a whole number, 0 or more."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number, 0 or more")
    return value


def require_shape(name: str, values: Any, dtype: torch.dtype) -> tuple[int, ...]:
    """The shape of a tensor. Raises: ValueError unless it is a list of whole numbers that a tensor can have."""
    shape = tuple(map(require_number, values))
    if len(shape) > MOST_DIMS or math.prod(shape) * dtype.itemsize > MOST_TENSOR_BYTES:
        raise ValueError(f"tensor {shown(name)} has an impossible shape: {shown(list(shape), 80)}")
    return shape


def require_checksum(value: Any) -> int:
    """The number that 16 hex digits are. Raises: ValueError for anything else."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"{value!r} is not a checksum")
    return int(value, 16)
