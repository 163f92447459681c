"""Assigns the chunks of a checkpoint to the ranks that write them: each chunk once, with the work spread evenly.

Ranks that hold the same box (data-parallel replicas, weights that the tensor axis does not split) share the writing, so
that a save becomes faster with more replicas.
"""

import operator
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from megascratch.checkpoint.consensus import on_all_ranks, on_first_rank
from megascratch.checkpoint.format.file_format import FileExtent, FileLayout, arrange, split_box
from megascratch.checkpoint.format.manifest import DTYPES
from megascratch.parallel.control import Control
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor


@dataclass(frozen=True)
class WritePlan:
    """The chunks that this rank writes, and the size of the whole checkpoint."""

    layout: FileLayout
    total_bytes: int


class Candidate(NamedTuple):
    """A chunk that a rank could write, because it holds the box."""

    name: str
    box: Box
    nbytes: int
    copy: int


class _ChunkHolder(NamedTuple):
    """A rank that could write a chunk."""

    rank: int
    number: int  # of the offer in the list of the rank
    offer: Candidate


def agree_on_write_plan(held: list[ShardedTensor], control: Control) -> WritePlan:
    """Called by all ranks. Raises: CheckpointError on all ranks if the records of one are not valid."""
    slots: list[FileExtent] = []
    offers = control.gather(on_all_ranks(control, lambda: _offers(held, slots)))
    chosen = on_first_rank(control, lambda: assign_writers(offers))
    mine = arrange(slots[index] for index in chosen[control.rank])
    return WritePlan(mine, control.reduce(mine.size if mine.slots else 0, operator.add))


def assign_writers(offers: list[list[Candidate]]) -> list[list[int]]:
    """For each rank the indices of the offers that it writes.

    A box of which some rank holds copy 0 is written by one of the ranks that hold exactly this box: large boxes are
    assigned first, each to the rank with the fewest bytes so far. A box without a copy 0 is not written: it only
    repeats parts of other boxes. If two ranks both claim copy 0, both write it: the coverage check of the manifest
    then reports the overlap, which a choice here would hide.
    """
    holders: dict[tuple[str, Box], list[_ChunkHolder]] = defaultdict(list)
    for rank, own in enumerate(offers):
        for number, offer in enumerate(own):
            holders[offer.name, offer.box].append(_ChunkHolder(rank, number, offer))
    bytes_assigned = [0] * len(offers)
    chosen: list[list[int]] = [[] for _ in offers]

    def priority(group: list[_ChunkHolder]) -> tuple[bool, int]:
        """Boxes with only one holder come first, then large ones before small ones."""
        return len(group) > 1, -group[0].offer.nbytes

    def bytes_of_rank(holder: _ChunkHolder) -> int:
        return bytes_assigned[holder.rank]

    for group in sorted(holders.values(), key=priority):
        writers = [holder for holder in group if holder.offer.copy == 0]
        if len(writers) == 1:
            writers = [min(group, key=bytes_of_rank)]
        for writer in writers:
            chosen[writer.rank].append(writer.number)
            bytes_assigned[writer.rank] += writer.offer.nbytes
    return chosen


def _offers(held: list[ShardedTensor], slots: list[FileExtent]) -> list[Candidate]:
    """This rank's chunks; `slots` is filled with their tensors in the same order."""
    offers = []
    for item in held:
        _require_consistent(item)
        for slot in split_box(item):
            slots.append(slot)
            offers.append(Candidate(slot.name, slot.box, slot.tensor.nbytes, item.copy))
    return offers


def _require_consistent(item: ShardedTensor) -> None:
    """Raises: ValueError unless the tensor has the shape of its box and a type that the format knows."""
    if tuple(item.tensor.shape) != item.box.shape:
        raise ValueError(
            f"{item.name}: the tensor has shape {list(item.tensor.shape)}, its box has {list(item.box.shape)}"
        )
    if item.dtype not in DTYPES.values():
        raise ValueError(f"{item.name}: {item.dtype} cannot be saved, only {', '.join(DTYPES)}")
