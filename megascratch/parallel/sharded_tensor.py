"""Maps ranges of a rank's flat memory to boxes of the global tensors, which is what a checkpoint reads and writes.

Buckets and ZeRO-1 split flat memory at any element; a checkpoint stores global tensors as axis-aligned boxes (law 8).
"""

import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from megascratch.parallel.grid import Position
from megascratch.parallel.shard import Box, CopyAxis, Shard, ShardSlice, flat_boxes

MODEL = ("param.", "buffer.")
"""How the names of the tensors of the model begin, in a checkpoint; the others belong to its optimizer."""


@dataclass(frozen=True)
class ShardedTensor:
    """A box of a global tensor that this rank holds; `tensor` is a view of its memory, so loading copies into it."""

    name: str
    whole_shape: tuple[int, ...]  # of the global tensor, without padding
    box: Box  # position in the global tensor
    tensor: Tensor  # has the box's shape
    copy: int  # number of the replica: one of them is written to a checkpoint, all are read from it
    copied_over: tuple[CopyAxis, ...] = ()
    """The axes along which ranks hold the same box and share the writing; `copy` counts through them, the last one
    fastest. Boxes of a rank with equal axes are on the same ranks. (): only copy 0 is written."""

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype


def pieces_in_range(shard: Shard, position: Position, start: int, stop: int) -> list[ShardSlice]:
    """The blocks of the global tensor that elements [start, stop) of the rank's row-major local tensor cover; padding
    is left out."""
    found = []
    pieces = shard.pieces(position)
    for flat in flat_boxes(shard.local_shape(position.layout), start, stop):
        for piece in pieces:
            local = flat.overlap(piece.local)
            if local is not None:
                to_whole = tuple(map(operator.sub, piece.whole.start, piece.local.start))
                found.append(piece._replace(local=local, whole=local.moved(to_whole)))
    return found


def held_piece(name: str, shard: Shard, piece: ShardSlice, tensor: Tensor) -> ShardedTensor:
    """The record of a block that this rank holds in `tensor`."""
    return ShardedTensor(name, shard.shape, piece.whole, tensor, piece.copy, piece.copied_over)


def box_view(flat: Tensor, origin: int, shape: tuple[int, ...], box: Box) -> Tensor:
    """The view of `box` of a row-major tensor of `shape` whose element 0 is at `origin` in `flat`. `origin` is negative
    if `flat` holds only the end of the tensor, as ZeRO-1 may."""
    strides = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
    first = sum(map(operator.mul, box.start, strides))
    return flat.as_strided(box.shape, strides, flat.storage_offset() + origin + first)
