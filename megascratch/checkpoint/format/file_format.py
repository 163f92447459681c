"""Arranges the chunks of a rank in one safetensors file and builds the header of the file.

Format: 8 bytes little-endian length of the rest of the header, the rest (JSON, `{key: {dtype, shape, data_offsets}}`,
padded with spaces), then the bytes of the tensors without gaps. A key is the tensor's name, and where the chunk is not
the whole of it, its box: ``param.embedding.word.weight[0:512, 0:64]``. Any program that knows safetensors reads it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megascratch.checkpoint.format.boxes import box_text, whole_box
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor

CHUNK_BYTES = 1 << 26
"""Larger boxes are split, so that a rank reads little more than it needs, and with little memory."""
GROUP_BYTES = 1 << 24
GROUP_CHUNKS = 512
"""Neighbouring small chunks are written and read together, up to this size and number."""
ALIGNMENT = 64  # bytes, of the first chunk, so that the tensors of a memory-mapped file are aligned

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}


class FileExtent(NamedTuple):
    """A chunk to be written; `tensor` has the box's shape and is a view of what a rank holds."""

    name: str
    whole_shape: tuple[int, ...]
    box: Box
    tensor: Tensor

    @property
    def key(self) -> str:
        return (
            self.name if self.box == whole_box(self.whole_shape) else self.name + box_text(self.box)
        )


@dataclass(frozen=True)
class FileLayout:
    """The chunks of a file in the order of their bytes."""

    slots: tuple[FileExtent, ...]
    offsets: tuple[int, ...]  # in the file
    header: bytes
    size: int

    def groups(self) -> Iterator[range]:
        """Neighbouring chunks that go through memory together."""
        start = 0
        filled = 0
        for index, slot in enumerate(self.slots):
            full = filled + slot.tensor.nbytes > GROUP_BYTES or index - start == GROUP_CHUNKS
            if full and index > start:
                yield range(start, index)
                start = index
                filled = 0
            filled += slot.tensor.nbytes
        if start < len(self.slots):
            yield range(start, len(self.slots))


def arrange(slots: Iterable[FileExtent]) -> FileLayout:
    """Orders chunks by the width of their type, widest first, so that each starts at a multiple of its itemsize; within
    a type by memory address, so that neighbours in memory stay neighbours in the file."""
    order = _in_order_of_memory(slots)
    entries = {}
    starts = []  # after the header
    end = 0
    for slot in order:
        start = end
        end = start + slot.tensor.nbytes
        starts.append(start)
        entries[slot.key] = {
            "dtype": CODES[slot.tensor.dtype],
            "shape": list(slot.box.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    offsets = tuple(len(header) + start for start in starts)
    return FileLayout(tuple(order), offsets, header, len(header) + end)


def _in_order_of_memory(slots: Iterable[FileExtent]) -> list[FileExtent]:
    """Sorts by storage in the order of first appearance, not by address: addresses differ from run to run."""
    storages: dict[int, int] = {}  # address -> its number, in the order of first appearance
    keyed: list[tuple[tuple[int, str, int, int], FileExtent]] = []
    for slot in slots:
        tensor = slot.tensor
        storage = storages.setdefault(tensor.untyped_storage().data_ptr(), len(storages))
        key = (-tensor.itemsize, CODES[tensor.dtype], storage, int(tensor.storage_offset()))
        keyed.append((key, slot))
    keyed.sort(key=lambda item: item[0])  # stable: chunks with the same key stay in order
    return [slot for _, slot in keyed]


def split_box(item: ShardedTensor, most: int | None = None) -> list[FileExtent]:
    """Splits a tensor into chunks of at most `most` (CHUNK_BYTES) bytes, or one element; an empty box gives []."""
    if not item.tensor.numel():
        return []
    most = max(item.tensor.itemsize, min(most or CHUNK_BYTES, CHUNK_BYTES))
    origin = tuple(-start for start in item.box.start)
    extents = []
    for box in _cut_box(item.box, item.tensor.itemsize, most):
        chunk = item.tensor[box.moved(origin).slices]
        extents.append(FileExtent(item.name, tuple(item.whole_shape), box, chunk))
    return extents


def _cut_box(box: Box, itemsize: int, most: int) -> list[Box]:
    """Splits along the first dim of size above 1; a slab of one index that is still too large, along the next dim."""
    volume = torch.Size(box.shape).numel()
    if volume * itemsize <= most:
        return [box]
    dim = next(dim for dim, size in enumerate(box.shape) if size > 1)
    size = box.shape[dim]
    rows = max(1, most * size // (volume * itemsize))
    parts = []
    for start in range(box.start[dim], box.stop[dim], rows):
        stop = min(start + rows, box.stop[dim])
        slab = _with_dim(box, dim, start, stop)
        parts += _cut_box(slab, itemsize, most)
    return parts


def _with_dim(box: Box, dim: int, start: int, stop: int) -> Box:
    """The box with other ends along one dim."""
    starts = list(box.start)
    stops = list(box.stop)
    starts[dim] = start
    stops[dim] = stop
    return Box(tuple(starts), tuple(stops))
