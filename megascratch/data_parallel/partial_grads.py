"""Sums gradients of which each tensor-parallel rank has only a part, with one all-reduce for all of them.

Two kinds of weights need it. Under sequence parallelism, norms and row-linear biases see one slice of the sequence per
rank: all ranks are summed. With more ranks than key/value heads, several ranks hold the same head and each sees only
its own queries: the ranks of one head are summed. In both cases the ranks with the same slot are summed: each rank
fills its own row of a buffer with one row per slot, the buffer is summed over the axis, and each rank reads its row.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.mesh import Axis
from megascratch.parallel.shard import Shard


class ElementRange(NamedTuple):
    """Elements [start, stop) of a rank's flat parameter whose gradients are summed over the ranks with equal `slot`."""

    start: int
    stop: int
    slot: int
    slots: int


def partial_runs(shard: Shard, sizes: dict[str, int], coords: dict[str, int]) -> list[ElementRange]:
    """The ranges of one parameter that must be summed; [] if every rank already has the complete gradient.

    Raises:
        ValueError: the gradient is partial in another way than the two above.
    """
    tp = sizes["tp"]
    shape = shard.local_shape(sizes)
    numel = math.prod(shape)
    if set(shard.grad_sum) - {"tp"}:
        raise ValueError(f"gradients can be partial over tp, not over {shard.grad_sum}")
    if tp == 1 or not (shard.grad_sum or shard.shared_parts(sizes)):
        return []
    if shard.grad_sum:
        return [ElementRange(0, numel, 0, 1)]
    if shard.split != {"tp": 0}:
        raise ValueError(f"shared parts must be cut along dim 0 over tp, not {shard.split}")
    row = numel // shape[0]  # elements
    runs = []
    for part, piece in zip(shard.parts, shard.pieces(sizes, coords), strict=True):
        if part.units < tp:
            copies = tp // part.units
            start = piece.local.start[0] * row
            stop = piece.local.stop[0] * row
            runs.append(ElementRange(start, stop, slot=coords["tp"] // copies, slots=part.units))
    return runs


class PartialGradReducer:
    """Sums all partial gradients of a rank."""

    def __init__(self, runs: list[tuple[Tensor, ElementRange]], tp: Axis):
        """`runs`: flat views of gradients; equal on all ranks of `tp` except for the slots."""
        self.runs = runs
        self.tp = tp
        self.size = sum(view.numel() * run.slots for view, run in runs)

    @torch.no_grad()
    def add_up(self) -> None:
        """Replaces the partial gradients by their sums."""
        if not self.runs or self.tp.size == 1:
            return
        first = self.runs[0][0]
        buffer = torch.zeros(self.size, dtype=first.dtype, device=first.device)
        own_rows = []
        start = 0
        for view, run in self.runs:
            stop = start + view.numel() * run.slots
            rows = buffer[start:stop].view(run.slots, -1)  # [slots, n]
            own_rows.append(rows[run.slot])
            own_rows[-1].copy_(view)
            start = stop
        all_reduce(buffer, self.tp)
        for (view, _), row in zip(self.runs, own_rows, strict=True):
            view.copy_(row)
