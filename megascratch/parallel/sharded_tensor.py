"""A rank's flat memory in, the boxes of the whole tensors that lie in it out: what a checkpoint reads and writes.

Buckets and ZeRO-1 cut flat memory anywhere; a checkpoint knows only whole tensors and axis-aligned boxes of them
(law 8). Both meet here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megascratch.parallel.shard import Box, Shard, ShardSlice, flat_boxes


@dataclass(frozen=True)
class ShardedTensor:
    """A box of a whole tensor that this rank holds; `tensor` is a view, so loading is copying into it."""

    name: str
    whole_shape: tuple[int, ...]  # without padding
    box: Box  # place in the whole
    tensor: Tensor  # of the box's shape
    copy: int  # 0 is written to a checkpoint; all are read from it

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype


def pieces_in_range(
    shard: Shard, sizes: dict[str, int], coords: dict[str, int], start: int, stop: int
) -> list[ShardSlice]:
    """The blocks of the whole that lie in elements [start, stop) of the rank's row-major local tensor; none of them
    in padding."""
    found = []
    for flat in flat_boxes(shard.local_shape(sizes), start, stop):
        for piece in shard.pieces(sizes, coords):
            if (local := flat.overlap(piece.local)) is not None:
                to_whole = tuple(w - a for w, a in zip(piece.whole.start, piece.local.start, strict=True))
                found.append(ShardSlice(local, local.moved(to_whole), piece.copy))
    return found


def box_view(flat: Tensor, origin: int, shape: tuple[int, ...], box: Box) -> Tensor:
    """The view of `box` of a row-major tensor of `shape` whose element 0 lies (or would lie: ZeRO-1 may hold only
    the rest of it, then it is negative) at `origin` in `flat`."""
    strides = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
    first = sum(index * stride for index, stride in zip(box.start, strides, strict=True))
    return flat.as_strided(box.shape, strides, flat.storage_offset() + origin + first)
