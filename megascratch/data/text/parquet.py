"""Reads columns of Parquet files with pyarrow, a few rows at a time, so that memory stays bounded.

A damaged file can abort its reader, so preprocessing opens it only in child processes: the rows are read by the workers
of `executors.py`, the sizes of the row groups by the child of `RowGroupSizes`.
"""

import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple

from megascratch.config.errors import UserError
from megascratch.data.text.sources import BROKEN, needed, opened

BATCH_BYTES = 1 << 20
BATCH_ROWS = 1 << 12


class ParquetRows(NamedTuple):
    """Consecutive rows."""

    names: list[str]
    columns: list[list[object]]
    """The values of each column; texts as bytes, because they may not be UTF-8."""
    share: float
    """Fraction of all requested rows."""


def row_group_bytes(path: str, keys: Sequence[str]) -> list[int]:
    """Bytes of the wanted columns in each row group. Raises: UserError where it is not Parquet, or lacks a key."""
    with _file(path, "", ".") as file:
        _require(path, file, keys)
        return [sum(_sizes(file, group, keys)) for group in range(file.metadata.num_row_groups)]


def read_rows(
    path: str, compression: str, start: int, stop: int, keys: Sequence[str] | None, scratch: str
) -> Iterator[ParquetRows]:
    """Reads the columns `keys` (None: all) of the row groups [start, stop) (stop -1: to the end); a compressed file is
    unpacked in folder `scratch`.

    Memory holds one page of each column and the rows of a batch, however large a row group is.
    """
    with _file(path, compression, scratch) as file:
        keys = file.schema_arrow.names if keys is None else keys
        _require(path, file, keys)
        if stop < 0:
            stop = file.metadata.num_row_groups
        groups = list(range(start, stop))
        rows = 0
        size = 0
        for group in groups:
            rows += file.metadata.row_group(group).num_rows
            size += sum(_sizes(file, group, keys))
        batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(size, 1)))
        columns = list(dict.fromkeys(keys))  # each once
        for batch in file.iter_batches(batch_size=batch_rows, row_groups=groups, columns=columns):
            values = [_values(batch.column(key)) for key in keys]
            yield ParquetRows(list(keys), values, batch.num_rows / rows)


@contextmanager
def _file(path: str, compression: str, scratch: str) -> Iterator[Any]:
    arrow = needed("pyarrow", "parquet", "a Parquet file")
    parquet = needed("pyarrow.parquet", "parquet", "a Parquet file")
    with opened(path, compression) as (packed, _), tempfile.TemporaryFile(dir=scratch) as unpacked:
        try:
            file = packed
            if compression:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
                file = unpacked
            # buffered without read-ahead: else an entire row group is in memory
            yield parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        except (arrow.ArrowException, *BROKEN) as error:
            raise UserError(f"{path} cannot be read as Parquet: {_in_one_line(error)}") from error


def _in_one_line(error: BaseException) -> str:
    """The message of a library, which may have several lines."""
    return " ".join(str(error).split()).rstrip(".")


def _require(path: str, file: Any, keys: Sequence[str]) -> None:
    names = file.schema_arrow.names
    for key in keys:
        if key not in names:
            known = ", ".join(map(repr, names)) or "none"
            raise UserError(f"{path} has no column {key!r} (it has {known})")


def _sizes(file: Any, group: int, keys: Sequence[str]) -> Iterator[int]:
    """Uncompressed bytes of each wanted column."""
    row_group = file.metadata.row_group(group)
    for number in range(row_group.num_columns):
        column = row_group.column(number)
        name = column.path_in_schema.split(".")[0]
        if name in keys:
            yield column.total_uncompressed_size


def _values(column: Any) -> list[object]:
    arrow = needed("pyarrow", "parquet", "a Parquet file")
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
        column = column.cast(arrow.large_binary())
    values: list[object] = column.to_pylist()
    return values


class RowGroupSizes:
    """Answers for one file after the other; the child starts with the first one and ends with `close` or its parent."""

    def __init__(self) -> None:
        self._pipe: Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None

    def of(self, path: str, keys: Sequence[str]) -> list[int]:
        """Bytes of the wanted columns in each row group.

        Raises: UserError where it is not a Parquet file, lacks a key, or crashes its reader.
        """
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send((path, tuple(keys)))
            answer = self._pipe.recv()
        except (OSError, EOFError) as error:
            code = self._end()
            raise UserError(f"{path} cannot be read as Parquet: {death_in_words(code)}") from error
        if isinstance(answer, UserError):
            raise answer
        sizes: list[int] = answer
        return sizes

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # else this process would hold the pipe of a dead child open

    def _end(self) -> int | None:
        """Waits for the child and returns its exit code."""
        if self._pipe is None or self._process is None:
            return None
        self._pipe.close()
        self._process.join(timeout=10)
        code = self._process.exitcode
        self._process.terminate()
        self._pipe = self._process = None
        return code

    def close(self) -> None:
        """Ends the child process."""
        self._end()

    def __enter__(self) -> "RowGroupSizes":
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()


def death_in_words(code: int | None) -> str:
    """Why the process that read a file ended without an answer."""
    if code is not None and code < 0 and code != -signal.SIGKILL:
        return f"its reader was ended by {signal.Signals(-code).name}, so the file is damaged: copy it again"
    return f"its reader ended with exit code {code} (-9 is often too little memory)"


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    with suppress(OSError, EOFError):  # the parent has finished or died
        while True:
            path, keys = pipe.recv()
            try:
                pipe.send(row_group_bytes(path, keys))
            except UserError as error:
                pipe.send(error)
            except Exception as error:  # a damaged file may raise anything
                pipe.send(
                    UserError(
                        f"{path} cannot be read as Parquet: {type(error).__name__}: {_in_one_line(error)}"
                    )
                )
    os._exit(0)
