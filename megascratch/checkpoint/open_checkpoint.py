"""Opens a checkpoint in one process and reads tensors, or boxes of them, with every byte verified: `OpenCheckpoint`.

Used by the tools that inspect, compare, reshard and convert checkpoints, whatever layout wrote them.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from operator import itemgetter
from types import TracebackType

import torch
from torch import Tensor

from megascratch.checkpoint import validation_loss
from megascratch.checkpoint.backend.backend import File, step_at
from megascratch.checkpoint.chunk_reader import ChunkReader
from megascratch.checkpoint.errors import DamagedError
from megascratch.checkpoint.format.boxes import box_text
from megascratch.checkpoint.format.chunk_table import StoredBox
from megascratch.checkpoint.format.io import checksum
from megascratch.checkpoint.format.manifest import FILE
from megascratch.checkpoint.steps import check_files, read_manifest
from megascratch.config.printable import shown
from megascratch.parallel.shard import Box
from megascratch.storage.path import Place, storage_path

KEPT_CHUNKS = 4
"""Chunks kept in memory, most recently read first: neighbouring boxes of another cut want the same chunk."""


class OpenCheckpoint:
    """A checkpoint that is open for reading; needs memory for a few chunks, however large it is.

    Raises: DamagedError if the manifest, the table of chunks, a file size or a header is not valid.
    """

    def __init__(self, step: str | Place):
        self.path = storage_path(step)
        self.manifest = read_manifest(self.path)
        reader = ChunkReader(self.path, self.manifest)
        reader.check_files_are_full()
        self._rows = reader.chunks(self.manifest.tensors)
        self.data_files = reader.files()
        check_files(self.path, self.data_files)
        self._open = ExitStack()
        self._files: dict[str, File] = {}
        self._recent = lru_cache(KEPT_CHUNKS)(self._read)

    def box(self, name: str, box: Box) -> Tensor:
        """Reads a box of a tensor and verifies every byte. Raises: DamagedError."""
        rows = self._rows[name]
        found = torch.empty(box.shape, dtype=self.manifest.tensors[name].dtype)
        for index, common in rows.overlapping(box):
            chunk = rows.chunk(index, self.data_files)
            stored = self.chunk(name, chunk)
            found[relative_slices(common, box)] = stored[relative_slices(common, chunk.box)]
        return found

    def chunks(self, name: str) -> Iterator[StoredBox]:
        """The chunks that fill a tensor."""
        rows = self._rows[name]
        for index in range(len(rows)):
            yield rows.chunk(index, self.data_files)

    def chunk(self, name: str, chunk: StoredBox) -> Tensor:
        """Reads one stored chunk. Raises: DamagedError, naming file and tensor."""
        return self._recent(name, chunk)

    def _read(self, name: str, chunk: StoredBox) -> Tensor:
        whole = self.manifest.tensors[name]
        file = self._files.get(chunk.file)
        if file is None:
            file = step_at(self.path).open(chunk.file)
            self._open.callback(file.close)
            self._files[chunk.file] = file
        raw = bytearray(whole.chunk_bytes(chunk))
        file.read_into(chunk.offset, memoryview(raw))
        if checksum(raw) != chunk.xxh3_64:
            tensor = f"{shown(name)}{box_text(chunk.box)}"
            raise DamagedError(
                f"{file.path} is damaged: the bytes of {tensor} do not match their checksum"
            )
        return torch.frombuffer(raw, dtype=whole.dtype).view(chunk.box.shape)

    def __enter__(self) -> "OpenCheckpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._recent.cache_clear()
        self._open.close()


def relative_slices(box: Box, outer: Box) -> tuple[slice, ...]:
    """The slices that select `box` in a tensor that holds `outer`."""
    return box.moved(tuple(-start for start in outer.start)).slices


def problems(step: str | Place) -> Iterator[str]:
    """Reads every byte of a step and yields one sentence for each problem."""
    try:
        contents = OpenCheckpoint(step)
    except DamagedError as error:
        yield str(error)
        return
    with contents:
        stored = []
        for name in contents.manifest.tensors:
            for chunk in contents.chunks(name):
                stored.append((chunk.file, chunk.offset, name, chunk))
        for _, _, name, chunk in sorted(stored, key=itemgetter(0, 1)):
            try:
                contents.chunk(name, chunk)
            except DamagedError as error:
                yield str(error)
    known = {FILE, validation_loss.FILE, contents.manifest.table}
    known |= {file.name for file in contents.data_files}
    for name in sorted(set(step_at(contents.path).names()) - known):
        yield f"{contents.path / name} does not belong to the checkpoint: the manifest does not name it"
