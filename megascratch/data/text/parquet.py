"""Reads columns of Parquet files with pyarrow, a few rows at a time, so that memory stays bounded."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from megascratch.config.errors import UserError
from megascratch.data.text.sources import BROKEN, needed, opened

BATCH_BYTES, BATCH_ROWS = 1 << 20, 1 << 12


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
        groups = range(start, file.metadata.num_row_groups if stop < 0 else stop)
        rows = sum(file.metadata.row_group(group).num_rows for group in groups)
        size = sum(sum(_sizes(file, group, keys)) for group in groups)
        most = max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(size, 1)))
        for batch in file.iter_batches(batch_size=most, row_groups=list(groups), columns=list(dict.fromkeys(keys))):
            yield ParquetRows(list(keys), [_values(batch.column(key)) for key in keys], batch.num_rows / rows)


@contextmanager
def _file(path: str, compression: str, scratch: str) -> Iterator[Any]:
    arrow, parquet = (needed(name, "parquet", "a Parquet file") for name in ("pyarrow", "pyarrow.parquet"))
    with opened(path, compression) as (packed, _), tempfile.TemporaryFile(dir=scratch) as unpacked:
        try:
            if compression:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
            # buffered without read-ahead: else an entire row group is in memory
            yield parquet.ParquetFile(unpacked if compression else packed, buffer_size=1 << 20, pre_buffer=False)
        except (arrow.ArrowException, *BROKEN) as error:
            raise UserError(f"{path} cannot be read as Parquet: {error}") from error


def _require(path: str, file: Any, keys: Sequence[str]) -> None:
    names = file.schema_arrow.names
    for key in keys:
        if key not in names:
            raise UserError(f"{path} has no column {key!r} (it has {', '.join(map(repr, names)) or 'none'})")


def _sizes(file: Any, group: int, keys: Sequence[str]) -> Iterator[int]:
    """Uncompressed bytes of each wanted column."""
    row_group = file.metadata.row_group(group)
    for column in map(row_group.column, range(row_group.num_columns)):
        if column.path_in_schema.split(".")[0] in keys:
            yield column.total_uncompressed_size


def _values(column: Any) -> list[object]:
    arrow = needed("pyarrow", "parquet", "a Parquet file")
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
        column = column.cast(arrow.large_binary())
    values: list[object] = column.to_pylist()
    return values
