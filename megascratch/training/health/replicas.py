"""Detects silent data corruption: compares the replicas of every tensor bit for bit and names the rank that differs.

Replicas are stored on the data ranks of a weight's view (weights; without the distributed optimizer also moments and
masters), on the ranks of an axis that does not cut the weight (norms and biases on the tensor ranks, also shared
key/value heads), and on the first and last stage (a tied embedding). By arithmetic they stay equal forever; if they
differ, memory, a core or a link has failed. A digest is the sum of the elements' bits, weighted by their positions,
modulo 2^64: exact, independent of the order of the sum, and computed on the tensor's own device.
"""

import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megascratch.config.layout import View
from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import all_gather_objects, all_reduce
from megascratch.parallel.control import Control
from megascratch.parallel.shard import MODEL_AXES, Box, Shard
from megascratch.parallel.sharded_tensor import MODEL
from megascratch.training.start.preflight import where
from megascratch.training.trainer import Trainer

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
BLOCK = 1 << 22  # elements that are summed at once
ODD = 0x1E3779B97F4A7C15
MOST_LISTED = 10  # tensors in the message; a broken machine breaks them all
MOST_COUNTED = 1000  # tensors whose names the ranks tell each other


class ReplicasDiffer(RuntimeError):
    """Replicas that must be equal bit for bit differ. The text names the tensors and the ranks."""


class Copy(NamedTuple):
    """One rank's copy of a block of a tensor."""

    name: str  # of the tensor, with the block's ranges
    weight: str  # whose value or state it is
    rank: int
    digest: int


def check_replicas(trainer: Trainer, step: int) -> None:
    """Returns if all copies are equal. Called by all ranks.

    Raises: ReplicasDiffer on all ranks.
    """
    mesh = trainer.mesh
    if mesh.world.size == 1:
        return
    mine = copies_of(trainer)
    tied = {shard.tied for shard in trainer.shards.values()}
    suspicious = _differing([copy for copy in mine if copy.weight in tied], mesh.embedding)
    for view in dict.fromkeys(shard.view for shard in trainer.shards.values()):
        suspicious |= _differing_in_view(trainer, mine, view)
    count = torch.tensor(float(len(suspicious)), device=mesh.device)
    if all_reduce(count, mesh.world).item() > 0:
        raise ReplicasDiffer(verdict(suspicious, mine, mesh.control, step))


def copies_of(trainer: Trainer) -> list[Copy]:
    """All blocks that this rank holds: its weights, the state that its layers keep, and that of its optimizer."""
    copies = []
    for name, weight, tensor in _blocks(trainer):
        copies.append(Copy(name, weight, trainer.mesh.rank, digest(tensor)))
    return copies


def _blocks(trainer: Trainer) -> Iterator[tuple[str, str, Tensor]]:
    """The name of each block, the name of its weight, and its elements."""
    trainer.data_parallel.await_weights()
    for chunk in trainer.chunks:
        for name, parameter in chunk.named_parameters():
            shard = trainer.shards[name]
            weight = shard.tied or name
            for piece in shard.pieces(trainer.mesh.position):
                block = _block_name(f"param.{weight}", piece.whole)
                yield block, weight, parameter.detach()[piece.local.slices]
    for held in trainer.held():
        if not held.name.startswith("param."):
            weight = _weight_of(held.name, trainer.shards)
            yield _block_name(held.name, held.box), weight, held.tensor


def _weight_of(tensor: str, shards: Mapping[str, Shard]) -> str:
    """The name of the weight whose state a tensor is: `head.weight` of `optim.exp_avg.head.weight`."""
    weight = tensor
    while weight not in shards:
        _, dot, weight = weight.partition(".")
        if not dot:
            raise ValueError(f"{tensor} belongs to no weight of the model")
    return weight


def _block_name(tensor: str, box: Box) -> str:
    ranges = [f"{start}:{stop}" for start, stop in zip(box.start, box.stop, strict=True)]
    return f"{tensor}[{', '.join(ranges)}]"


def digest(tensor: Tensor) -> int:
    """A checksum that changes if any one bit of the tensor changes."""
    bits = tensor.contiguous().view(-1).view(BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, bits.numel(), BLOCK):
        block = bits[start : start + BLOCK].to(torch.int64)
        weights = torch.arange(start + 1, start + 1 + len(block), device=tensor.device) * ODD
        weights = (weights ^ (weights >> 29)) | 1
        total += (block * weights).sum()
    return int(total.item())


def _differing_in_view(trainer: Trainer, mine: Sequence[Copy], view: View) -> set[str]:
    """`_differing` of the weights of a view, over the axes along which they have replicas."""
    mesh = trainer.mesh
    shards = trainer.shards
    of_view = [copy for copy in mine if shards[copy.weight].view == view]
    suspicious = _differing_over_data(trainer, of_view, mesh.data_of(view))
    spread = {axis for shard in shards.values() if shard.view == view for axis in shard.axes}
    for name in MODEL_AXES[view]:
        if name in spread:  # then all ranks compare, also those that have no such weight
            along = [copy for copy in of_view if name in shards[copy.weight].axes]
            suspicious |= _differing(along, mesh.model_axis(name))
    return suspicious


def _differing_over_data(trainer: Trainer, mine: Sequence[Copy], axis: Axis) -> set[str]:
    """`_differing` over data-parallel ranks, which hold copies of the same blocks in the same order. There may be
    thousands of these ranks, so they compare one number first, and then the largest and the least digest of each
    block."""
    if axis.size == 1:
        return set()
    shared = mine
    if trainer.config.parallel.use_distributed_optimizer:
        # each rank has its own part of the optimizer's state
        shared = [copy for copy in mine if copy.name.startswith(MODEL)]
    digests = torch.tensor([copy.digest for copy in shared], dtype=torch.int64)
    device = trainer.mesh.device
    if _equal_everywhere(torch.tensor([digest(digests)]), axis, device).all():
        return set()
    equal = _equal_everywhere(digests, axis, device).tolist()
    return {copy.name for copy, same in zip(shared, equal, strict=True) if not same}


def _equal_everywhere(digests: Tensor, axis: Axis, device: torch.device) -> Tensor:
    """Whether all ranks of the axis have the same digest, for each of the digests, int64 [n]."""
    both = torch.stack((digests, ~digests)).to(device)
    most, inverted_least = all_reduce(both, axis, dist.ReduceOp.MAX)
    return most == ~inverted_least


def _differing(mine: Sequence[Copy], axis: Axis) -> set[str]:
    """Names of this rank's blocks of which copies on the axis (or two copies on this rank) differ."""
    seen: dict[str, set[int]] = {}
    for copies in all_gather_objects(list(mine), axis):
        for copy in copies:
            seen.setdefault(copy.name, set()).add(copy.digest)
    own = {copy.name for copy in mine}
    return {name for name, digests in seen.items() if len(digests) > 1 and name in own}


def verdict(suspicious: set[str], mine: Sequence[Copy], control: Control, step: int) -> str:
    """The message: one line for each block, with the ranks that differ. Called by all ranks; the first one writes it,
    and the others keep no more than MOST_COUNTED names.

    Args:
        suspicious: names of this rank's blocks that differ from a copy.
    """
    names = control.reduce(sorted(suspicious)[:MOST_COUNTED], _joined)
    listed = names[:MOST_LISTED]
    wanted = [copy for copy in mine if copy.name in listed]
    hosts: list[str] = []  # by rank
    copies: list[Copy] = []
    for host, of_rank in control.gather((socket.gethostname(), wanted)):
        hosts.append(host)
        copies += of_rank
    return control.broadcast(_message(copies, hosts, len(names), step))


def _joined(some: list[str], others: list[str]) -> list[str]:
    return sorted({*some, *others})[:MOST_COUNTED]


def _message(copies: Sequence[Copy], hosts: Sequence[str], differing: int, step: int) -> str:
    """The message, from the copies of the blocks that it lists.

    Args:
        differing: the number of blocks that differ; MOST_COUNTED or more count as MOST_COUNTED.
    """
    ranks_of: dict[str, dict[int, list[int]]] = {}  # name -> digest -> ranks
    for copy in copies:
        groups = ranks_of.setdefault(copy.name, {})
        groups.setdefault(copy.digest, []).append(copy.rank)
    lines = []
    for name, groups in sorted(ranks_of.items()):
        lines.append(f"{name}: {_ranks_that_differ(list(groups.values()), hosts)}")
    if differing > MOST_LISTED:
        at_least = "at least " if differing == MOST_COUNTED else ""
        lines.append(f"and {at_least}{differing - MOST_LISTED} more")
    listed = "\n  ".join(lines)
    return (
        f"copies that must be equal differ after step {step}, which is not saved; resume from the last checkpoint "
        f"without the faulty machine:\n  {listed}"
    )


def _ranks_that_differ(groups: list[list[int]], hosts: Sequence[str]) -> str:
    """The ranks that differ from the majority; if there is none, all groups of ranks."""
    groups = sorted(groups, key=len)
    named = [_where(ranks, hosts) for ranks in groups]
    total = sum(map(len, groups))
    if 2 * len(groups[-1]) <= total:
        return f"{' and '.join(named)} differ, and there is no majority"
    return f"{' and '.join(named[:-1])} against {named[-1]}"


def _where(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    by_host: dict[str, list[int]] = {}
    for rank in sorted(set(ranks)):
        by_host.setdefault(hosts[rank], []).append(rank)
    return ", ".join(where(name, some) for name, some in by_host.items())
