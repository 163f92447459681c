"""`Shard` describes how a weight is split over the ranks. The layer that owns the weight declares it once; initialiser,
gradient sync, gradient norm, optimizer, checkpoint and planner read it. Pure arithmetic.
"""

import math
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple


class Box(NamedTuple):
    """An axis-aligned block of a tensor: first index and one past the last, per dim."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def overlap(self, other: "Box") -> "Box | None":
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        return Box(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None

    def moved(self, offset: tuple[int, ...]) -> "Box":
        return Box(
            tuple(a + o for a, o in zip(self.start, offset, strict=True)),
            tuple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )


class Part(NamedTuple):
    """One of several weights that are fused along the split dim, e.g. q, k or v."""

    size: int  # its rows in the global tensor
    units: int  # indivisible units (heads) in it; with more ranks than units, several ranks hold replicas of a unit


class ShardSlice(NamedTuple):
    """A block of a rank's tensor and its position in the global tensor (`whole`). Of several replicas, `copy` 0 is the
    one that counts (law 7)."""

    local: Box
    whole: Box
    copy: int


@dataclass(frozen=True)
class Shard:
    """How a weight is split over the ranks, and its initial value ``fill + std * N(0, 1)``.

    Padding is not part of the global tensor: with `padded` the split dim is cut as if it had that size, and a rank's
    rows beyond the true size belong to no shard (law 6).
    """

    shape: tuple[int, ...]  # the global tensor, without padding
    split: dict[str, int] = field(default_factory=dict)  # axis -> dim; {} = replicated
    parts: tuple[Part, ...] = ()  # fused parts along the split dim, each split separately
    padded: int | None = None  # size of the split dim with padding
    grad_sum: tuple[str, ...] = ()  # axes whose ranks hold only part of the gradient (norms under SP)
    tied: str | None = None  # name of the weight that this is, when two stages each hold a copy
    fill: float = 0.0
    std: float = 0.0

    @property
    def decays(self) -> bool:
        """Weight decay is for matrices: norms and biases have one dim."""
        return len(self.shape) > 1

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def local_shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """Shape of one rank's tensor, padding included; equal on all ranks."""
        shape = list(self.shape)
        for axis, dim in self.split.items():
            if self.padded is not None:
                shape[dim] = self.padded // sizes[axis]
            else:
                shape[dim] = sum(length for _, _, length, _ in self._runs(dim, sizes[axis], 0))
        return tuple(shape)

    def pieces(self, sizes: dict[str, int], coords: dict[str, int]) -> list[ShardSlice]:
        """The blocks that the rank at `coords` holds, in local order. A weight that is not split over the tensor axis
        is replicated on all ranks of that axis: copies 0, 1, ..."""
        runs: list[list[tuple[int, int, int, int]]] = [[(0, 0, size, 0)] for size in self.shape]
        for axis, dim in self.split.items():
            runs[dim] = self._runs(dim, sizes[axis], coords[axis])
        replica = 0 if "tp" in self.split else coords.get("tp", 0)
        return [_piece(blocks, replica) for blocks in product(*runs) if all(length > 0 for _, _, length, _ in blocks)]

    def shared_parts(self, sizes: dict[str, int]) -> bool:
        """True if several ranks of a split axis hold the same unit, so that their gradients must be summed."""
        return any(part.units < sizes[axis] for axis in self.split for part in self.parts)

    def _runs(self, dim: int, ranks: int, rank: int) -> list[tuple[int, int, int, int]]:
        """(start in the local tensor, start in the global tensor, length, copy) of each run along the split dim."""
        size = self.shape[dim]
        if self.padded is not None:
            length = self.padded // ranks
            return [(0, rank * length, max(0, min(length, size - rank * length)), 0)]
        runs, local, whole = [], 0, 0
        for part in self.parts or (Part(size, size),):
            copies = max(1, ranks // part.units)
            cuts = ranks // copies
            if part.units % cuts or ranks % cuts:
                raise ValueError(f"{part.units} units cannot be divided evenly among {ranks} ranks")
            length = part.size // cuts
            runs.append((local, whole + rank // copies * length, length, rank % copies))
            local, whole = local + length, whole + part.size
        return runs


def _piece(blocks: tuple[tuple[int, int, int, int], ...], replica: int) -> ShardSlice:
    local, whole, length, copies = zip(*blocks, strict=True)
    local_stop = tuple(start + size for start, size in zip(local, length, strict=True))
    whole_stop = tuple(start + size for start, size in zip(whole, length, strict=True))
    return ShardSlice(Box(local, local_stop), Box(whole, whole_stop), sum(copies) + replica)


def flat_boxes(shape: tuple[int, ...], start: int, stop: int) -> list[Box]:
    """Splits a flat range of a row-major tensor into axis-aligned boxes (at most 2 x dims - 1)."""
    if start >= stop:
        return []
    if len(shape) == 0:
        return [Box((), ())]
    if len(shape) == 1:
        return [Box((start,), (stop,))]
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # inside one row
        inner = flat_boxes(shape[1:], start - last * row, stop - last * row)
        return [_in_row(box, last) for box in inner]
    boxes: list[Box] = []
    if start < first * row:  # the end of the row before the first full one
        rest = flat_boxes(shape[1:], start - (first - 1) * row, row)
        boxes += [_in_row(box, first - 1) for box in rest]
    if first < last:  # all full rows
        boxes.append(Box((first, *(0,) * (len(shape) - 1)), (last, *shape[1:])))
    rest = flat_boxes(shape[1:], 0, stop - last * row)  # the beginning of the row after them
    return boxes + [_in_row(box, last) for box in rest]


def _in_row(box: Box, row: int) -> Box:
    return Box((row, *box.start), (row + 1, *box.stop))
