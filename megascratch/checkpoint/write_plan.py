"""Assigns the chunks of a checkpoint to the ranks that write them: each chunk once, with the work spread evenly.

Ranks that hold the same box (data-parallel replicas, weights that the tensor axis does not split) share the writing, so
that a save becomes faster with more replicas. Nothing is sent for it: boxes with equal `ShardedTensor.copied_over` are
on the same ranks, so all of these ranks have the same list of such boxes and divide it alike. When the step is
committed, the first rank proves that each chunk was written once.
"""

import heapq
import math
import operator
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from megascratch.checkpoint.consensus import on_all_ranks
from megascratch.checkpoint.format.chunk_table import DTYPES
from megascratch.checkpoint.format.file_format import FileExtent, FileLayout, arrange, split_box
from megascratch.parallel.control import Control
from megascratch.parallel.shard import Box, CopyAxis
from megascratch.parallel.sharded_tensor import ShardedTensor


@dataclass(frozen=True)
class WritePlan:
    """The chunks that this rank writes, and the size of the whole checkpoint."""

    layout: FileLayout
    total_bytes: int


class HeldChunk(NamedTuple):
    """A chunk, as all ranks that hold it know it."""

    nbytes: int
    name: str
    box: Box


class _OwnChunk(NamedTuple):
    """A chunk that this rank holds as one of its copies."""

    copy: int
    chunk: HeldChunk
    slot: FileExtent


Axes = tuple[CopyAxis, ...]


def agree_on_write_plan(held: list[ShardedTensor], control: Control) -> WritePlan:
    """Called by all ranks. Raises: CheckpointError on all ranks if the records of one are not valid."""
    mine = on_all_ranks(control, lambda: arrange(own_chunks(held)))
    return WritePlan(mine, control.reduce(mine.size if mine.slots else 0, operator.add))


def own_chunks(held: list[ShardedTensor]) -> list[FileExtent]:
    """The chunks that this rank writes of what it holds.

    Boxes that more ranks hold are divided first: the ranks of a smaller set, all of which hold them too, know then how
    much each of their own writes already.

    Raises: ValueError for a record whose tensor does not have the shape of its box or has a type that cannot be saved,
    or whose number is not one of its copies.
    """
    chunks: dict[Axes, list[_OwnChunk]] = defaultdict(list)
    for item in held:
        _require_consistent(item)
        for slot in split_box(item):
            chunk = HeldChunk(slot.tensor.nbytes, slot.name, slot.box)
            chunks[item.copied_over].append(_OwnChunk(item.copy, chunk, slot))
    mine = []
    written: dict[Axes, list[int]] = {}  # bytes that each copy writes of the chunks of a set
    for axes in sorted(chunks, key=_copies, reverse=True):
        before = [0] * _copies(axes)
        for wider, nbytes in written.items():
            if set(axes) < set(wider):
                numbers = {
                    own.copy for own in chunks[wider]
                }  # both copies of a tied weight may be here
                for copy in range(len(before)):
                    for number in numbers:
                        before[copy] += nbytes[_moved(number, wider, copy, axes)]
        shared = {own.chunk for own in chunks[axes]}
        writers = assign_writers(shared, before)
        written[axes] = [0] * len(before)
        for chunk, writer in writers.items():
            written[axes][writer] += chunk.nbytes
        mine += [own.slot for own in chunks[axes] if own.copy == writers[own.chunk]]
    return mine


def assign_writers(chunks: set[HeldChunk], before: list[int]) -> dict[HeldChunk, int]:
    """For each chunk the number of the copy that is written: large chunks are assigned first, each to the copy with the
    fewest bytes so far. The same on all ranks that hold these chunks.

    Args:
        before: the bytes that the holder of each copy writes anyway.
    """
    least = [(nbytes, copy) for copy, nbytes in enumerate(before)]
    heapq.heapify(least)
    writers = {}
    for chunk in sorted(chunks, key=lambda chunk: (-chunk.nbytes, chunk.name, chunk.box)):
        nbytes, copy = least[0]
        writers[chunk] = copy
        heapq.heapreplace(least, (nbytes + chunk.nbytes, copy))
    return writers


def _copies(axes: Axes) -> int:
    return math.prod(axis.copies for axis in axes)


def _moved(number: int, wider: Axes, copy: int, axes: Axes) -> int:
    """The number among the copies over `wider` of the rank that differs from the one with `number` only along `axes`,
    where it has the number `copy`."""
    digits = _digits(number, wider) | _digits(copy, axes)
    moved = 0
    for axis in wider:
        moved = moved * axis.copies + digits[axis]
    return moved


def _digits(number: int, axes: Axes) -> dict[CopyAxis, int]:
    digits = {}
    for axis in reversed(axes):
        number, digits[axis] = divmod(number, axis.copies)
    return digits


def _require_consistent(item: ShardedTensor) -> None:
    if tuple(item.tensor.shape) != item.box.shape:
        raise ValueError(
            f"{item.name}: the tensor has shape {list(item.tensor.shape)}, its box has {list(item.box.shape)}"
        )
    if item.dtype not in DTYPES.values():
        raise ValueError(f"{item.name}: {item.dtype} cannot be saved, only {', '.join(DTYPES)}")
    copies = _copies(item.copied_over)
    if item.copied_over and not 0 <= item.copy < copies:
        raise ValueError(f"{item.name}: copy {item.copy} is not one of {copies} copies")
