"""`Shard` describes how a weight is split over the ranks. The layer that owns the weight declares it once; initialiser,
gradient sync, gradient norm, optimizer, checkpoint and planner read it. Pure arithmetic.
"""

import math
import operator
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple


class Box(NamedTuple):
    """An axis-aligned block of a tensor: first index and one past the last, per dim."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(operator.sub, self.stop, self.start))

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(map(slice, self.start, self.stop))

    def overlap(self, other: "Box") -> "Box | None":
        """The elements that both boxes have; None if there are none."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        for first, end in zip(start, stop, strict=True):
            if first >= end:
                return None
        return Box(start, stop)

    def moved(self, offset: tuple[int, ...]) -> "Box":
        start = tuple(map(operator.add, self.start, offset))
        stop = tuple(map(operator.add, self.stop, offset))
        return Box(start, stop)


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


class _Run(NamedTuple):
    """Neighbouring indices of one dim that a rank holds."""

    local: int  # first index in the rank's tensor
    whole: int  # first index in the global tensor
    length: int
    copy: int  # number of the replica


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
    grad_sum: tuple[
        str, ...
    ] = ()  # axes whose ranks hold only part of the gradient (norms under SP)
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
                shape[dim] = sum(run.length for run in self._runs(dim, sizes[axis], 0))
        return tuple(shape)

    def pieces(self, sizes: dict[str, int], coords: dict[str, int]) -> list[ShardSlice]:
        """The blocks that the rank at `coords` holds, in local order. A weight that is not split over the tensor axis
        is replicated on all ranks of that axis: copies 0, 1, ..."""
        runs_of_dim = [[_Run(0, 0, size, 0)] for size in self.shape]
        for axis, dim in self.split.items():
            runs_of_dim[dim] = self._runs(dim, sizes[axis], coords[axis])
        replica = 0 if "tp" in self.split else coords.get("tp", 0)
        pieces = []
        for runs in product(*runs_of_dim):
            if all(run.length > 0 for run in runs):
                pieces.append(_piece(runs, replica))
        return pieces

    def shared_parts(self, sizes: dict[str, int]) -> bool:
        """True if several ranks of a split axis hold the same unit, so that their gradients must be summed."""
        for axis in self.split:
            for part in self.parts:
                if part.units < sizes[axis]:
                    return True
        return False

    def _runs(self, dim: int, ranks: int, rank: int) -> list[_Run]:
        """What `rank` of `ranks` holds along the split dim: one run for each part."""
        size = self.shape[dim]
        if self.padded is not None:
            length = self.padded // ranks
            start = rank * length
            without_padding = min(length, size - start)
            return [_Run(0, start, max(0, without_padding), 0)]
        runs = []
        local = 0  # where the part begins in the rank's tensor
        whole = 0  # where it begins in the global tensor
        for part in self.parts or (Part(size, size),):
            copies = max(1, ranks // part.units)  # ranks that hold the same units
            cuts = ranks // copies
            if part.units % cuts or ranks % cuts:
                raise ValueError(f"{part.units} units cannot be divided evenly among {ranks} ranks")
            length = part.size // cuts
            cut = rank // copies
            runs.append(_Run(local, whole + cut * length, length, rank % copies))
            local += length
            whole += part.size
        return runs


def _piece(runs: tuple[_Run, ...], replica: int) -> ShardSlice:
    """The block that has one run in each dim."""
    shape = tuple(run.length for run in runs)
    origin = (0,) * len(runs)
    block = Box(origin, shape)
    local = block.moved(tuple(run.local for run in runs))
    whole = block.moved(tuple(run.whole for run in runs))
    copies = sum(run.copy for run in runs)
    return ShardSlice(local, whole, copies + replica)


def flat_boxes(shape: tuple[int, ...], start: int, stop: int) -> list[Box]:
    """Splits a flat range of a row-major tensor into axis-aligned boxes (at most 2 x dims - 1)."""
    if start >= stop:
        return []
    if len(shape) == 0:
        return [Box((), ())]
    if len(shape) == 1:
        return [Box((start,), (stop,))]
    row = math.prod(shape[1:])
    first = -(-start // row)  # the first row of which all elements follow `start`
    last = stop // row  # the row that contains `stop`
    if first > last:  # inside one row
        return _boxes_in_row(shape, last, start - last * row, stop - last * row)
    boxes = []
    if start < first * row:  # the end of the row before the first full one
        boxes += _boxes_in_row(shape, first - 1, start - (first - 1) * row, row)
    if first < last:  # all full rows
        zeros = (0,) * (len(shape) - 1)
        boxes.append(Box((first, *zeros), (last, *shape[1:])))
    boxes += _boxes_in_row(shape, last, 0, stop - last * row)  # the beginning of the row after them
    return boxes


def _boxes_in_row(shape: tuple[int, ...], row: int, start: int, stop: int) -> list[Box]:
    """`flat_boxes` of elements [start, stop) of one row."""
    boxes = []
    for box in flat_boxes(shape[1:], start, stop):
        boxes.append(Box((row, *box.start), (row + 1, *box.stop)))
    return boxes
