"""Writes and reads the shards of a preprocessing run; a shard is complete when its last file exists.

A shard has the number of its work unit. Its files, in the run's folder:

    {number}.{key}.bin          ids, back to back
    {number}.{key}.lengths      i32 tokens of each sequence
    {number}.{key}.sequences    i32 sequences of each document
    {number}.bad                a JSON list [part of the unit, row, reason] for each bad line
    {number}.json               counts and checksums; written last: without it the shard is incomplete
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import numpy as np

from megascratch.config.errors import UserError
from megascratch.config.json_record import (
    COUNT,
    INTEGER,
    TEXT,
    Kind,
    list_of,
    parse_object,
    require_fields,
)
from megascratch.runtime.atomic_file import partial_path
from megascratch.runtime.faults import fault_point

KINDS = ("bin", "lengths", "sequences")


class EncodedDocuments(NamedTuple):
    """The ids of consecutive documents."""

    ids: np.ndarray
    """[tokens], concatenated."""
    lengths: np.ndarray
    """[sequences]: tokens of each; no sequence is empty."""
    sequences: np.ndarray
    """[documents]: sequences of each."""
    text_bytes: int
    """UTF-8 bytes of all texts."""


class BadRow(NamedTuple):
    """A bad line: it has no document."""

    part: int
    """Index of its part in the work unit."""
    row: int
    """Line or row number, from 1 in the part."""
    reason: str


class SpanCounts(NamedTuple):
    """What was read from a source."""

    source: int
    rows: int
    digests: list[str]


class KeyCounts(NamedTuple):
    """Counts of the encoded texts of a key."""

    documents: int
    sequences: int
    tokens: int
    min_token: int
    max_token: int
    text_bytes: int
    checksums: list[int]
    """crc32 of each of KINDS."""

    def plus(self, later: "KeyCounts") -> "KeyCounts":
        """The counts of both; the checksums are those of `later`."""
        return KeyCounts(
            documents=self.documents + later.documents,
            sequences=self.sequences + later.sequences,
            tokens=self.tokens + later.tokens,
            min_token=min(self.min_token, later.min_token),
            max_token=max(self.max_token, later.max_token),
            text_bytes=self.text_bytes + later.text_bytes,
            checksums=later.checksums,
        )


NO_COUNTS = KeyCounts(
    documents=0,
    sequences=0,
    tokens=0,
    min_token=0,
    max_token=-1,
    text_bytes=0,
    checksums=[0] * len(KINDS),
)


class Summary(NamedTuple):
    """Counts and checksums of a shard."""

    number: int
    keys: list[KeyCounts]
    spans: list[SpanCounts]
    bad: int
    stopped_at: BadRow | None = None
    """--strict: the first bad line; the shard was not written."""


def _is_row(value: object, kinds: Sequence[Kind]) -> bool:
    if not isinstance(value, list) or len(value) != len(kinds):
        return False
    return all(kind.holds(item) for kind, item in zip(kinds, value, strict=True))


_KEY_FIELDS = [COUNT, COUNT, COUNT, INTEGER, INTEGER, COUNT, list_of(COUNT, len(KINDS))]
_KEY_ROW = Kind("counts of a key", lambda row: _is_row(row, _KEY_FIELDS))
_SPAN_FIELDS = [COUNT, COUNT, list_of(TEXT)]
_SPAN_ROW = Kind("counts of a source", lambda row: _is_row(row, _SPAN_FIELDS))


def shard_path(folder: str | Path, number: int, kind: str) -> Path:
    """Path of one of a shard's files."""
    return Path(folder, f"{number:08d}.{kind}")


def read_summary(folder: str | Path, number: int) -> Summary | None:
    """The counts of a complete shard; None: it is missing or incomplete."""
    file = shard_path(folder, number, "json")
    try:
        record = parse_object(file.read_bytes(), file)
    except FileNotFoundError:
        return None
    require_fields(
        record, {"keys": list_of(_KEY_ROW), "spans": list_of(_SPAN_ROW), "bad": COUNT}, file
    )
    if not {"keys", "spans", "bad"} <= record.keys():
        raise UserError(
            f"{file} is damaged: it must have keys, spans and bad; delete {folder} to start again"
        )
    keys = [KeyCounts(*row) for row in record["keys"]]
    spans = [SpanCounts(*row) for row in record["spans"]]
    return Summary(number, keys, spans, record["bad"])


def remove_shard(folder: str | Path, number: int) -> None:
    """Marks a shard as incomplete; its files will be written again."""
    shard_path(folder, number, "json").unlink(missing_ok=True)


class ShardWriter:
    """Writes one shard under temporary names; `commit` renames the files, an exit without it removes them."""

    def __init__(self, folder: str, number: int, keys: int, dtype: np.dtype):
        self._folder = folder
        self._number = number
        self._dtype = dtype.newbyteorder("<")
        self._counts = [NO_COUNTS] * keys
        self._bad = 0
        self._first_bad = BadRow(0, 0, "")
        self._names: list[str] = []
        for key in range(keys):
            self._names += [f"{key}.{kind}" for kind in KINDS]
        self._names.append("bad")
        self._files: list[IO[bytes]] = []
        self._open = ExitStack()

    def __enter__(self) -> "ShardWriter":
        with writing(self._folder), self._open:
            for name in self._names:
                file = self._partial(name).open("wb")
                self._files.append(self._open.enter_context(file))
            self._open = self._open.pop_all()
        return self

    def _partial(self, name: str) -> Path:
        return partial_path(shard_path(self._folder, self._number, name))

    def add(self, encoded: Sequence[EncodedDocuments], bad: Sequence[BadRow]) -> None:
        """Appends consecutive documents, for each key, and bad lines."""
        with writing(self._folder):
            fault_point("preprocess.write")
            for key, one in enumerate(encoded):
                self._counts[key] = self._append(key, self._counts[key], one)
            for row in bad:
                self._files[-1].write(json.dumps(row).encode() + b"\n")
        if bad and not self._bad:
            self._first_bad = bad[0]
        self._bad += len(bad)

    def _append(self, key: int, before: KeyCounts, one: EncodedDocuments) -> KeyCounts:
        ids = one.ids.astype(self._dtype, copy=False)
        lengths = one.lengths.astype("<i4")
        sequences = one.sequences.astype("<i4")
        first_file = key * len(KINDS)
        checksums = []
        for at, array in enumerate((ids, lengths, sequences)):  # as in KINDS
            raw = np.ascontiguousarray(array).data
            self._files[first_file + at].write(raw)
            checksums.append(zlib.crc32(raw, before.checksums[at]))
        added = KeyCounts(
            documents=len(sequences),
            sequences=len(lengths),
            tokens=len(ids),
            min_token=int(one.ids.min()) if len(ids) else 0,
            max_token=int(one.ids.max()) if len(ids) else -1,
            text_bytes=one.text_bytes,
            checksums=checksums,
        )
        return before.plus(added)

    def commit(self, spans: list[SpanCounts]) -> Summary:
        """Completes the shard: a resumed run will not encode it again."""
        summary = Summary(self._number, self._counts, spans, self._bad)
        with writing(self._folder):
            self._open.close()
            fault_point("preprocess.commit")
            for name in self._names:
                # no fsync for each shard: the checksums find what a power loss has damaged
                os.replace(self._partial(name), shard_path(self._folder, self._number, name))
            record = {"keys": summary.keys, "spans": summary.spans, "bad": summary.bad}
            self._partial("json").write_text(json.dumps(record))
            os.replace(self._partial("json"), shard_path(self._folder, self._number, "json"))
        return summary

    def stopped(self, spans: list[SpanCounts]) -> Summary:
        """The summary when --strict stops at a bad line."""
        return Summary(self._number, self._counts, spans, self._bad, self._first_bad)

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk, already reported
            self._open.close()
        for name in (*self._names, "json"):
            self._partial(name).unlink(missing_ok=True)


@contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """Turns an error of the file system into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be written: {error.strerror}"
        ) from error
