"""What every rank holds in, which rank writes which chunk out: each chunk once, and the work spread evenly.

Ranks that hold the same box (data-parallel copies, weights that the tensor axis does not cut) share the writing of it,
so that a save becomes faster with more copies instead of waiting for the first of them.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from megascratch.checkpoint.consensus import on_all_ranks, on_first_rank
from megascratch.checkpoint.format.file_format import FileExtent, FileLayout, arrange, split_box
from megascratch.checkpoint.format.manifest import DTYPES
from megascratch.parallel.mesh import Axis
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor


@dataclass(frozen=True)
class WritePlan:
    """What this rank writes, and what all ranks write together."""

    layout: FileLayout
    total_bytes: int


class Candidate(NamedTuple):
    """A chunk that a rank could write."""

    name: str
    box: Box
    nbytes: int
    copy: int


def agree_on_write_plan(held: list[ShardedTensor], world: Axis) -> WritePlan:
    """Called by all ranks of `world`. Raises: CheckpointError on all where a rank's records are not sound."""
    slots: list[FileExtent] = []
    offers = on_all_ranks(world, lambda: _offers(held, slots))
    chosen = on_first_rank(world, lambda: assign_writers(offers))
    mine = arrange(slots[index] for index in chosen[world.rank])
    sizes = on_all_ranks(world, lambda: mine.size if mine.slots else 0)
    return WritePlan(mine, sum(sizes))


def assign_writers(offers: list[list[Candidate]]) -> list[list[int]]:
    """For each rank the indices among its offers that it writes.

    A box with a copy 0 is written by one of the ranks that hold that very box: large ones first, each by the rank that
    has least to write so far. A box that is only a copy of a part of others' boxes is written by nobody. Two ranks that
    both call theirs copy 0 both write it: the manifest then refuses the overlap, which a choice here would hide.
    """
    holders: dict[tuple[str, Box], list[tuple[int, int]]] = defaultdict(list)
    for rank, own in enumerate(offers):
        for index, offer in enumerate(own):
            holders[offer.name, offer.box].append((rank, index))
    load, chosen = [0] * len(offers), [list[int]() for _ in offers]
    for group in sorted(holders.values(), key=lambda group: (len(group) > 1, -_first(offers, group).nbytes)):
        firsts = [place for place in group if offers[place[0]][place[1]].copy == 0]
        if len(firsts) == 1:
            firsts = [min(group, key=lambda place: load[place[0]])]
        for rank, index in firsts:
            chosen[rank].append(index)
            load[rank] += offers[rank][index].nbytes
    return chosen


def _first(offers: list[list[Candidate]], group: list[tuple[int, int]]) -> Candidate:
    rank, index = group[0]
    return offers[rank][index]


def _offers(held: list[ShardedTensor], slots: list[FileExtent]) -> list[Candidate]:
    """This rank's chunks; `slots` is filled with their tensors in the same order."""
    offers = []
    for item in held:
        _require_sound(item)
        for slot in split_box(item):
            slots.append(slot)
            offers.append(Candidate(slot.name, slot.box, slot.tensor.nbytes, item.copy))
    return offers


def _require_sound(item: ShardedTensor) -> None:
    """What the optimizer says of a tensor must be true of it: else the checkpoint would lie."""
    if tuple(item.tensor.shape) != item.box.shape:
        raise ValueError(f"{item.name}: {list(item.tensor.shape)} is told to be {list(item.box.shape)}")
    if item.dtype not in DTYPES.values():
        raise ValueError(f"{item.name}: {item.dtype} cannot be saved, only {', '.join(DTYPES)}")
