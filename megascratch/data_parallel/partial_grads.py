"""Sums gradients of which each rank of an axis has only a part, with one all-reduce per axis for all of them.

Two kinds of weights need it. Some are complete on every rank of an axis, which sees only a part of what they do: under
sequence parallelism, norms and row-linear biases see one slice of the sequence per tensor rank. All ranks of the axis
are summed. And with more ranks than units of a cut dim (tensor ranks than key/value heads), several ranks hold the same
unit and each sees only its own queries: the ranks of one unit are summed. In both cases the ranks with the same slot
are summed: each rank fills its own row of a buffer with one row per slot, the buffer is summed over the axis, and each
rank reads its row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.grid import Position
from megascratch.parallel.shard import Box, Shard


class PartialBlock(NamedTuple):
    """A block of a rank's parameter whose gradients are summed over the ranks of `axis` with equal `slot`."""

    axis: str
    local: Box
    slot: int = 0
    slots: int = 1


class PartialViews(NamedTuple):
    """The views of gradients that a rank holds of one block, in memory order."""

    views: list[Tensor]
    slot: int
    slots: int

    @property
    def numel(self) -> int:
        return sum(view.numel() for view in self.views)


def partial_blocks(shard: Shard, position: Position) -> list[PartialBlock]:
    """The blocks of one parameter that must be summed; [] if every rank already has the complete gradient."""
    sizes = position.layout.sizes(shard.view)
    coords = position.coords(shard.view)
    shape = shard.local_shape(position.layout)
    complete = Box((0,) * len(shape), shape)
    blocks = []
    for axis in shard.grad_sum:
        if sizes[axis] > 1:
            blocks.append(PartialBlock(axis, complete))
    for cut in shard.cuts:
        for run in shard.runs(cut, sizes[cut.axis], coords[cut.axis]):
            if run.copies > 1:
                start = list(complete.start)
                stop = list(complete.stop)
                start[cut.dim] = run.local
                stop[cut.dim] = run.local + run.length
                slot = coords[cut.axis] // run.copies
                slots = sizes[cut.axis] // run.copies
                blocks.append(PartialBlock(cut.axis, Box(tuple(start), tuple(stop)), slot, slots))
    return blocks


class PartialGradReducer:
    """Sums the partial gradients of a rank over one axis."""

    def __init__(self, blocks: Sequence[PartialViews], axis: Axis):
        """`blocks`: equal on all ranks of the axis except for the slots."""
        self.blocks = blocks
        self.axis = axis
        self.size = sum(block.numel * block.slots for block in blocks)

    @torch.no_grad()
    def add_up(self) -> None:
        """Replaces the partial gradients by their sums."""
        if not self.blocks or self.axis.size == 1:
            return
        first = self.blocks[0].views[0]
        buffer = torch.zeros(self.size, dtype=first.dtype, device=first.device)
        own: list[tuple[Tensor, Tensor]] = []  # a view, and its part of the buffer
        row = 0  # where the block's rows begin
        for block in self.blocks:
            start = row + block.slot * block.numel
            for view in block.views:
                stop = start + view.numel()
                own.append((view, buffer[start:stop].view(view.shape)))
                start = stop
            row += block.numel * block.slots
        for view, part in own:
            part.copy_(view)
        all_reduce(buffer, self.axis)
        for view, part in own:
            view.copy_(part)
