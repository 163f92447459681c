"""The format of the table of chunks, `chunks.bin`: one row for each data file, then the rows of each tensor's chunks.

    files     88 bytes each: size of the file, size of its header, XXH3 of the header (8 bytes each), name (64 bytes,
              filled up with zeros)
    tensors   in the order of their names, each with its chunks in the order of their boxes; a chunk of a tensor with d
              dims has 3 + 2 d numbers of 8 bytes: number of the file, offset of the first byte in it, XXH3 of the
              bytes, first index of each dim, and one past the last index of each dim

All numbers are unsigned and little-endian. The chunks of a tensor are boxes that fill it exactly once. The header and
the chunks of a file fill the file exactly once, so every byte of a checkpoint has a checksum. How many rows there are,
and the checksums of the rows, are in `manifest.json`: a reader reads the rows of the tensors that it wants.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from megascratch.checkpoint.format.boxes import box_text
from megascratch.config.printable import shown
from megascratch.parallel.shard import Box

U64 = np.dtype("<u8")
FILE_ROW = np.dtype(
    [("bytes", "<u8"), ("header_bytes", "<u8"), ("header_xxh3_64", "<u8"), ("name", "S64")]
)
WHERE = 3  # numbers of a row before the box
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
    )
}
MOST_CHUNK_BYTES = 1 << 28
"""A larger chunk is refused, because a reader holds a chunk in memory."""
MOST_FILE_BYTES = (1 << 63) - 1
MOST_CORNERS = 1 << 24
"""Of the boxes of one tensor, which the proof that they fill it holds in memory: 2 to the power of the dims that are
split, for each box."""
MOST_SWEPT = 10_000
"""Boxes among which two that overlap are looked for, to name them in a message."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class StoredBox(NamedTuple):
    """One box of a tensor, and where its bytes are stored."""

    file: str  # inside the step folder
    offset: int  # of the first byte in the file
    box: Box  # position in the full tensor
    xxh3_64: int


class DataFile(NamedTuple):
    """A file of chunks; its safetensors header ends where the first chunk begins."""

    name: str
    bytes: int
    header_bytes: int
    header_xxh3_64: int


class ChunkRows:
    """The chunks of one tensor: [chunks, 3 + 2 x dims]."""

    def __init__(self, numbers: NDArray[np.uint64]):
        self.numbers = numbers
        self.dims = (numbers.shape[1] - WHERE) // 2
        self.files = numbers[:, 0]
        self.offsets = numbers[:, 1]
        self.checksums = numbers[:, 2]
        self.starts = numbers[:, WHERE : WHERE + self.dims]  # [chunks, dims]
        self.stops = numbers[:, WHERE + self.dims :]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def volumes(self) -> NDArray[np.uint64]:
        """The number of elements of each chunk."""
        volumes: NDArray[np.uint64] = (self.stops - self.starts).prod(1, dtype=U64)
        return volumes

    def box(self, index: int) -> Box:
        return Box(tuple(self.starts[index].tolist()), tuple(self.stops[index].tolist()))

    def chunk(self, index: int, files: Sequence[DataFile]) -> StoredBox:
        file, offset, checksum = self.numbers[index, :WHERE].tolist()
        return StoredBox(files[file].name, offset, self.box(index), checksum)

    def overlapping(self, box: Box) -> Iterator[tuple[int, Box]]:
        """The numbers of the chunks that overlap a box, each with the common box."""
        starts = np.maximum(self.starts, np.array(box.start, U64))
        stops = np.minimum(self.stops, np.array(box.stop, U64))
        for index in np.flatnonzero((starts < stops).all(1)).tolist():
            yield index, Box(tuple(starts[index].tolist()), tuple(stops[index].tolist()))


def row_bytes(dims: int) -> int:
    """The size of the row of a chunk of a tensor with so many dims."""
    return (WHERE + 2 * dims) * U64.itemsize


def encode_files(files: Iterable[DataFile]) -> bytes:
    """The rows of the data files. Raises: ValueError for a name that no data file has."""
    rows = []
    for file in files:
        require_file_name(file.name)
        rows.append((file.bytes, file.header_bytes, file.header_xxh3_64, file.name.encode("ascii")))
    return np.array(rows, FILE_ROW).tobytes()


def decode_files(content: bytes | memoryview) -> list[DataFile]:
    """The reverse of `encode_files`. Raises: ValueError for a name that no data file has, or that two have."""
    files = []
    names = set()
    for nbytes, header_bytes, header_checksum, name in np.frombuffer(content, FILE_ROW).tolist():
        text = name.decode("latin-1")
        require_file_name(text)
        if text in names:
            raise ValueError(f"two data files have the name {text}")
        names.add(text)
        if not header_bytes <= nbytes <= MOST_FILE_BYTES:
            raise ValueError(
                f"{text} cannot have {nbytes:,} bytes, {header_bytes:,} of them in the header"
            )
        files.append(DataFile(text, nbytes, header_bytes, header_checksum))
    return files


def decode_rows(content: bytes | memoryview, dims: int) -> ChunkRows:
    """The rows of a tensor with so many dims."""
    return ChunkRows(np.frombuffer(content, U64).reshape(-1, WHERE + 2 * dims))


def require_file_name(name: str) -> None:
    """Raises: ValueError unless a data file may have this name."""
    longest = FILE_ROW["name"].itemsize
    if not _NAME.fullmatch(name) or len(name) > longest or name.endswith((".json", ".bin")):
        raise ValueError(f"{shown(repr(name))} is not a valid name of a data file")


def check_rows(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, rows: ChunkRows, files: int
) -> None:
    """Raises: ValueError unless each chunk of a tensor is inside it, is small enough and is in a data file.

    Args:
        files: the number of data files.
    """
    outside = ~((rows.starts < rows.stops) & (rows.stops <= np.array(shape, U64))).all(1)
    if outside.any():
        box = box_text(rows.box(int(outside.argmax())))
        raise ValueError(
            f"tensor {shown(name)} of shape {list(shape)} has a chunk outside of it: {box}"
        )
    if (rows.files >= files).any():
        raise ValueError(
            f"tensor {shown(name)} has a chunk in file number {int(rows.files.max())}, which is not among the "
            f"{files} files"
        )
    large = rows.volumes > MOST_CHUNK_BYTES // dtype.itemsize
    if large.any():
        box = box_text(rows.box(int(large.argmax())))
        raise ValueError(
            f"tensor {shown(name)} has a chunk {box} of more than {MOST_CHUNK_BYTES:,} bytes"
        )


def check_coverage(name: str, shape: tuple[int, ...], rows: ChunkRows) -> None:
    """Raises: ValueError unless chunks that `check_rows` has accepted are disjoint and fill the tensor."""
    if _fills(shape, rows):
        return
    overlap = _first_overlap([rows.box(index) for index in range(min(len(rows), MOST_SWEPT))])
    if overlap is not None:
        one, other = overlap
        raise ValueError(
            f"tensor {shown(name)} has chunks that overlap: {box_text(one)} and {box_text(other)}"
        )
    filled = sum(rows.volumes.tolist())
    if filled >= math.prod(shape):
        raise ValueError(f"tensor {shown(name)} has chunks that overlap")
    raise ValueError(
        f"the chunks of tensor {shown(name)} hold {filled:,} of its {math.prod(shape):,} elements"
    )


def _fills(shape: tuple[int, ...], rows: ChunkRows) -> bool:
    """Whether boxes that are inside a tensor fill it exactly once.

    A box is known by its corners, each with the sign +1 or -1: these are where the mixed difference, over all dims, of
    the box's indicator is not zero. A sum of indicators is known by the sum of its corners. So the boxes fill the whole
    once exactly if their corners, and those of the whole with the opposite signs, cancel out.

    Raises: ValueError if there are too many corners.
    """
    if not math.prod(shape):
        return len(rows) == 0
    starts = np.vstack([rows.starts, np.zeros(rows.dims, U64)])  # the whole is the last box
    stops = np.vstack([rows.stops, np.array(shape, U64)])
    split = np.flatnonzero(((starts != starts[-1]) | (stops != stops[-1])).any(0)).tolist()
    boxes = len(starts)
    if boxes << len(split) > MOST_CORNERS:
        raise ValueError(
            f"a tensor is split into {len(rows):,} chunks along {len(split)} dims, which is too many"
        )
    corners = np.zeros(
        boxes, np.intp
    )  # a number for each corner; those of box i are at i + n boxes
    signs = np.ones(boxes)
    signs[-1] = -1.0
    for dim in split:
        indices, ends = np.unique(
            np.concatenate([starts[:, dim], stops[:, dim]]), return_inverse=True
        )
        parts = []
        for end in (ends[:boxes], ends[boxes:]):
            parts.append(corners * len(indices) + np.tile(end, len(corners) // boxes))
        _, corners = np.unique(np.concatenate(parts), return_inverse=True)  # small again
        signs = np.concatenate([signs, -signs])
    return not np.bincount(corners, weights=signs).any()


def _first_overlap(boxes: list[Box]) -> tuple[Box, Box] | None:
    """Sweeps along dim 0: compares a box only with those that do not end before it starts."""
    open_boxes: list[Box] = []
    for box in sorted(boxes):
        open_boxes = [
            other for other in open_boxes if not box.start or other.stop[0] > box.start[0]
        ]
        for other in open_boxes:
            if other.overlap(box) is not None:
                return other, box
        open_boxes.append(box)
    return None


def check_files_are_full(
    files: Sequence[DataFile], tensors: Iterable[tuple[torch.dtype, ChunkRows]]
) -> None:
    """Raises: ValueError unless the header and the chunks of every file fill the file.

    Args:
        tensors: the type and the chunks of every tensor; `check_rows` has accepted them.
    """
    parts = []
    for dtype, rows in tensors:
        nbytes = rows.volumes * U64.type(dtype.itemsize)
        parts.append(np.stack([rows.files, rows.offsets, nbytes]))
    file, offset, nbytes = np.concatenate([np.empty((3, 0), U64), *parts], axis=1)
    order = np.lexsort((offset, file))
    file = file[order]
    offset = offset[order]
    ends = offset + nbytes[order]
    first = np.searchsorted(file, np.arange(len(files) + 1, dtype=U64))  # row of each file
    wanted = np.empty_like(offset)  # where each chunk must begin
    wanted[1:] = ends[:-1]
    filled = np.array([record.header_bytes for record in files], U64)
    has_chunks = first[:-1] < first[1:]
    wanted[first[:-1][has_chunks]] = filled[has_chunks]
    wrong = wanted != offset
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"{files[int(file[at])].name} has a chunk at byte {int(offset[at]):,}, but the previous one ends at byte "
            f"{int(wanted[at]):,}"
        )
    filled[has_chunks] = ends[first[1:][has_chunks] - 1]
    for record, end in zip(files, filled.tolist(), strict=True):
        if record.bytes != end:
            raise ValueError(
                f"{record.name} has {record.bytes:,} bytes, its chunks end at byte {end:,}"
            )
