"""Reads the table of chunks of a step, whole or only the rows of some tensors, and checks every row that it reads.

reader = ChunkReader(step, manifest)
reader.files()                   the data files
reader.chunks(names)             the chunks of some tensors, each proved to fill its tensor once
reader.check_files_are_full()    reads all rows and proves that they fill every file once
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from megascratch.checkpoint.backend.backend import File, step_at
from megascratch.checkpoint.errors import DamagedError
from megascratch.checkpoint.format.chunk_table import (
    ChunkRows,
    DataFile,
    check_coverage,
    check_files_are_full,
    check_rows,
    decode_files,
    decode_rows,
)
from megascratch.checkpoint.format.io import checksum, in_threads
from megascratch.checkpoint.format.manifest import FILE, Manifest, TableRange
from megascratch.storage.path import Place

T = TypeVar("T")
READ_BYTES = 1 << 24
"""Neighbouring blocks are read together, up to this size."""


class ChunkReader:
    """The table of chunks of a step. Every method raises DamagedError, naming the file, if it is not what was written,
    and StoreError if a store does not answer."""

    def __init__(self, step: Place, manifest: Manifest):
        self.step = step
        self.manifest = manifest
        self.in_manifest = manifest.table_content is not None
        self.path = step / (FILE if self.in_manifest else manifest.table)
        self._files: list[DataFile] | None = None

    def files(self) -> list[DataFile]:
        """The data files, in the order of their numbers."""
        if self._files is None:
            (content,) = self._read([self.manifest.file_rows])
            files = self._checked(decode_files, content)
            nbytes = sum(file.bytes for file in files)
            if nbytes != self.manifest.nbytes:
                raise self._damaged(
                    f"its files have {nbytes:,} bytes, {FILE} says {self.manifest.nbytes:,}"
                )
            self._files = files
        return self._files

    def chunks(self, names: Iterable[str]) -> dict[str, ChunkRows]:
        """The chunks of the tensors of these names: disjoint boxes that fill each of them."""
        found = self._rows(names)
        for name, rows in found.items():
            shape = self.manifest.tensors[name].shape
            self._checked(check_coverage, name, shape, rows)
        return found

    def check_files_are_full(self) -> None:
        """Proves, from the rows of all tensors, that every file holds its header and its chunks and nothing else."""
        tensors = self.manifest.tensors
        found = self._rows(tensors)
        parts = [(tensors[name].dtype, rows) for name, rows in found.items()]
        self._checked(check_files_are_full, self.files(), parts)

    def _rows(self, names: Iterable[str]) -> dict[str, ChunkRows]:
        names = sorted(names)
        tensors = self.manifest.tensors
        contents = self._read([tensors[name].rows for name in names])
        found = {}
        for name, content in zip(names, contents, strict=True):
            whole = tensors[name]
            rows = decode_rows(content, len(whole.shape))
            files = self.manifest.number_of_files
            self._checked(check_rows, name, whole.shape, whole.dtype, rows, files)
            found[name] = rows
        return found

    def _read(self, blocks: list[TableRange]) -> list[memoryview]:
        """The content of each block, whose checksum is right. The blocks are in the order of the table."""
        if self.manifest.table_content is not None:
            table = memoryview(self.manifest.table_content)
            return [table[block.offset : block.offset + block.nbytes] for block in blocks]
        source = step_at(self.step)
        file = source.open(self.manifest.table)
        try:
            if file.size != self.manifest.table_bytes:
                raise self._damaged(
                    f"it has {file.size:,} bytes, {FILE} says {self.manifest.table_bytes:,}"
                )
            runs = _neighbours(blocks)
            read = in_threads(lambda run: _read_run(file, run), runs, source.threads)
        finally:
            file.close()
        contents = [content for run in read for content in run]
        for block, content in zip(blocks, contents, strict=True):
            self._require_checksum(block, content)
        return contents

    def _require_checksum(self, block: TableRange, content: memoryview) -> None:
        if checksum(content) != block.xxh3_64:
            raise self._damaged(f"the bytes from {block.offset:,} do not match their checksum")

    def _checked(self, action: Callable[..., T], *arguments: Any) -> T:
        try:
            return action(*arguments)
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, reason: str) -> DamagedError:
        return DamagedError(f"{self.path} is damaged: {reason}; load another step of the run")


def _neighbours(blocks: list[TableRange]) -> list[list[TableRange]]:
    """Groups blocks that follow each other in the table: one read per group."""
    runs: list[list[TableRange]] = []
    end = -1
    nbytes = 0
    for block in blocks:
        nbytes += block.nbytes
        if block.offset != end or nbytes > READ_BYTES:
            runs.append([])
            nbytes = block.nbytes
        runs[-1].append(block)
        end = block.offset + block.nbytes
    return runs


def _read_run(file: File, run: list[TableRange]) -> list[memoryview]:
    start = run[0].offset
    content = memoryview(bytearray(run[-1].offset + run[-1].nbytes - start))
    file.read_into(start, content)
    return [content[block.offset - start :][: block.nbytes] for block in run]
