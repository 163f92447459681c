"""`Shard` describes how a weight is split over the ranks. The layer that owns the weight declares it once; initialiser,
gradient sync, gradient norm, optimizer, checkpoint and planner read it. Pure arithmetic.
"""

import math
import operator
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

from megascratch.config.layout import Layout, View
from megascratch.parallel.grid import Position

Role = Literal["embedding", "positions", "head", "matrix", "norm", "bias", "router", "scalar"]

# Whether weight decay is for a weight: for those that multiply, not for those that shift or scale.
DECAYS: dict[Role, bool] = {
    "embedding": True,
    "positions": True,
    "head": True,
    "matrix": True,
    "norm": False,
    "bias": False,
    "router": True,
    "scalar": False,
}
# The axes along which the ranks of one copy of the model differ, by view, outermost first; the others of a view are
# data axes: their ranks hold the same weights.
MODEL_AXES: dict[View, tuple[str, ...]] = {"dense": ("pp", "tp"), "expert": ("pp", "ep", "etp")}


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
    """One of several weights that are fused along a cut dim, e.g. q, k or v."""

    size: int  # its rows in the global tensor
    units: int  # indivisible units (heads) in it; with more ranks than units, several ranks hold replicas of a unit


class Cut(NamedTuple):
    """One dim of a weight is split over the ranks of one axis.

    Padding is not part of the global tensor: with `padded` the dim is cut as if it had that size, and a rank's rows
    beyond the true size belong to no shard (law 6).
    """

    axis: str
    dim: int
    parts: tuple[Part, ...] = ()  # fused parts along the dim, each split separately
    padded: int | None = None  # size of the dim with padding


class CopyAxis(NamedTuple):
    """An axis along which several ranks hold the same block."""

    axis: str
    copies: int  # 2 or more


class ShardSlice(NamedTuple):
    """A block of a rank's tensor and its position in the global tensor (`whole`). Of several replicas, `copy` 0 is the
    one that counts (law 7)."""

    local: Box
    whole: Box
    copy: int = (
        0  # number of the replica: mixed radix over `copied_over`, the last axis changes fastest
    )
    copied_over: tuple[CopyAxis, ...] = ()

    def replicated(self, axis: str, number: int, copies: int) -> "ShardSlice":
        """The same block as replica `number` of the `copies` that ranks hold along one more axis."""
        if copies == 1:
            return self
        return self._replace(
            copy=self.copy * copies + number,
            copied_over=(*self.copied_over, CopyAxis(axis, copies)),
        )


class Run(NamedTuple):
    """Neighbouring indices of one dim that a rank holds."""

    local: int  # first index in the rank's tensor
    whole: int  # first index in the global tensor
    length: int
    copy: int = 0  # number of the replica
    copies: int = 1  # ranks of the cut's axis that hold the same indices


@dataclass(frozen=True)
class Shard:
    """How a weight is split over the ranks, and its initial value ``fill + std * N(0, 1)``.

    A weight is replicated along the axes of its view that do not cut it: `tp`, or `ep` and `etp`. A pipeline stage
    usually has weights of its own; the stages share a weight only if `pp` is named in a cut or in `grad_sum`.

    Raises:
        ValueError: a cut or a sum that is not possible.
    """

    shape: tuple[int, ...]  # the global tensor, without padding
    cuts: tuple[Cut, ...] = ()  # at most one for each axis and each dim; () = replicated
    view: View = "dense"
    role: Role = "matrix"
    grad_sum: tuple[
        str, ...
    ] = ()  # axes whose ranks hold only part of the gradient (tp: norms under SP)
    tied: str | None = None  # name of the weight that this is, when two stages each hold a copy
    fill: float = 0.0
    std: float = 0.0

    def __post_init__(self) -> None:
        axes = [cut.axis for cut in self.cuts]
        dims = [cut.dim for cut in self.cuts]
        if len(set(axes)) < len(axes) or len(set(dims)) < len(dims):
            raise ValueError(f"each axis and each dim can be cut once, not {self.cuts}")
        possible = MODEL_AXES[self.view]
        for axis in (*axes, *self.grad_sum):
            if axis not in possible:
                raise ValueError(
                    f"{axis} is not one of the axes {', '.join(possible)} that can cut or sum a weight of the "
                    f"{self.view} view"
                )
        both = set(axes) & set(self.grad_sum)
        if both:
            raise ValueError(
                f"ranks along {', '.join(sorted(both))} hold different parts: no sum over them is the gradient"
            )

    @property
    def decays(self) -> bool:
        """Whether the weight has weight decay, which follows from its role."""
        return DECAYS[self.role]

    @property
    def is_vocabulary(self) -> bool:
        """Whether it has a row for each token: the embedding or the output layer, whose learning rate can be
        decoupled."""
        return self.role in ("embedding", "head")

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def axes(self) -> tuple[str, ...]:
        """The model axes along which the weight has parts or replicas."""
        named = {cut.axis for cut in self.cuts} | set(self.grad_sum)
        return tuple(axis for axis in MODEL_AXES[self.view] if axis != "pp" or axis in named)

    def local_shape(self, layout: Layout) -> tuple[int, ...]:
        """Shape of one rank's tensor, padding included; equal on all ranks."""
        sizes = layout.sizes(self.view)
        shape = list(self.shape)
        for cut in self.cuts:
            if cut.padded is not None:
                shape[cut.dim] = cut.padded // sizes[cut.axis]
            else:
                shape[cut.dim] = sum(run.length for run in self.runs(cut, sizes[cut.axis], 0))
        return tuple(shape)

    def pieces(self, position: Position) -> list[ShardSlice]:
        """The blocks that a rank holds, in local order. The ranks that hold the same block have the copies 0, 1, ..."""
        sizes = position.layout.sizes(self.view)
        coords = position.coords(self.view)
        runs_of_dim = [[Run(0, 0, size)] for size in self.shape]
        dim_of = {cut.axis: cut.dim for cut in self.cuts}
        for cut in self.cuts:
            runs_of_dim[cut.dim] = self.runs(cut, sizes[cut.axis], coords[cut.axis])
        pieces = []
        for runs in product(*runs_of_dim):
            if any(run.length == 0 for run in runs):
                continue
            block = Box((0,) * len(runs), tuple(run.length for run in runs))
            local = block.moved(tuple(run.local for run in runs))
            whole = block.moved(tuple(run.whole for run in runs))
            piece = ShardSlice(local, whole)
            for axis in self.axes:
                if axis in dim_of:
                    run = runs[dim_of[axis]]
                    piece = piece.replicated(axis, run.copy, run.copies)
                else:
                    piece = piece.replicated(axis, coords[axis], sizes[axis])
            pieces.append(piece)
        return pieces

    def runs(self, cut: Cut, ranks: int, rank: int) -> list[Run]:
        """What `rank` of the `ranks` of the cut's axis holds along the cut's dim: one run for each part."""
        size = self.shape[cut.dim]
        if cut.padded is not None:
            length = cut.padded // ranks
            start = rank * length
            without_padding = min(length, size - start)
            return [Run(0, start, max(0, without_padding))]
        runs = []
        local = 0  # where the part begins in the rank's tensor
        whole = 0  # where it begins in the global tensor
        for part in cut.parts or (Part(size, size),):
            copies = max(1, ranks // part.units)  # ranks that hold the same units
            shares = ranks // copies
            if part.units % shares or ranks % shares:
                raise ValueError(f"{part.units} units cannot be divided evenly among {ranks} ranks")
            length = part.size // shares
            runs.append(Run(local, whole + rank // copies * length, length, rank % copies, copies))
            local += length
            whole += part.size
        return runs


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
