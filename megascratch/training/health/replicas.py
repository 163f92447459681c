"""Everything that several ranks hold copies of, compared to the bit: the odd one out is named.

Copies lie on the data-parallel ranks (weights; without the distributed optimizer moments and masters, too), on the
tensor ranks (norms, biases, shared key/value heads) and on the first and last stage (a tied embedding). By arithmetic
they are equal for ever; where they are not, memory, a core or a link has failed. A digest is a sum of the elements'
bits, weighted by their places, modulo 2^64: exact, in any order of adding, and computed where the tensor lies.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megascratch.parallel.collectives import all_gather_objects, all_reduce
from megascratch.parallel.mesh import Axis
from megascratch.parallel.shard import Box
from megascratch.training.health.straggler import host
from megascratch.training.start.preflight import where
from megascratch.training.trainer import Trainer

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
BLOCK = 1 << 22  # elements at once
ODD = 0x1E3779B97F4A7C15
MOST_TOLD = 10  # tensors in the message; a broken machine breaks them all


class ReplicasDiffer(RuntimeError):
    """Copies that must be equal to the bit are not; the text names tensors and ranks."""


class Copy(NamedTuple):
    """A block of a whole tensor on one rank."""

    name: str
    rank: int
    digest: int


def check_replicas(trainer: Trainer, step: int) -> None:
    """Returns where all copies are equal; called by all ranks.

    Raises: ReplicasDiffer on all ranks.
    """
    mesh = trainer.mesh
    if mesh.world.size == 1:
        return
    mine = copies_of(trainer)
    suspicious = _differing_over_data(trainer, mine)
    suspicious |= _differing(mine, mesh.tp) | _differing(mine, mesh.embedding)
    found = torch.tensor(float(len(suspicious)), device=mesh.device)
    if all_reduce(found, mesh.world, dist.ReduceOp.MAX).item() == 0:
        return
    names = set().union(*all_gather_objects(suspicious, mesh.world))
    told = all_gather_objects((host(), [copy for copy in mine if copy.name in names]), mesh.world)
    hosts = [name for name, _ in told]
    raise ReplicasDiffer(_verdict([copy for _, copies in told for copy in copies], hosts, step))


def copies_of(trainer: Trainer) -> list[Copy]:
    """What this rank holds, block by block: all of its weights, and what its optimizer updates."""
    return [Copy(name, trainer.mesh.rank, digest(tensor)) for name, tensor in _blocks(trainer)]


def _blocks(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    mesh = trainer.mesh
    trainer.data_parallel.await_weights()
    for chunk in trainer.chunks:
        for name, parameter in chunk.named_parameters():
            shard = trainer.shards[name]
            for piece in shard.pieces(mesh.grid.sizes, mesh.coords):
                yield _name(f"param.{shard.tied or name}", piece.whole), parameter.detach()[piece.local.slices]
    for held in trainer.held():
        if not held.name.startswith("param."):
            yield _name(held.name, held.box), held.tensor


def _name(tensor: str, box: Box) -> str:
    return f"{tensor}[{', '.join(f'{a}:{b}' for a, b in zip(*box, strict=True))}]"


def digest(tensor: Tensor) -> int:
    """A number that another bit anywhere makes another number."""
    bits = tensor.contiguous().view(-1).view(BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, bits.numel(), BLOCK):
        block = bits[start : start + BLOCK].to(torch.int64)
        places = torch.arange(start + 1, start + 1 + len(block), device=tensor.device) * ODD
        total += (block * ((places ^ (places >> 29)) | 1)).sum()
    return int(total.item())


def _differing_over_data(trainer: Trainer, mine: Sequence[Copy]) -> set[str]:
    """There may be thousands of data-parallel ranks, so at first they compare one number."""
    axis = trainer.mesh.data
    if axis.size == 1:
        return set()
    sharded = trainer.config.parallel.use_distributed_optimizer
    shared = [copy for copy in mine if not sharded or copy.name.startswith("param.")]
    together = digest(torch.tensor([copy.digest for copy in shared], dtype=torch.int64))
    both = torch.tensor([together, ~together], dtype=torch.int64, device=trainer.mesh.device)
    most, least = all_reduce(both, axis, dist.ReduceOp.MAX).tolist()
    return set() if most == ~least else _differing(shared, axis)


def _differing(mine: Sequence[Copy], axis: Axis) -> set[str]:
    """Names under which ranks of the axis (or this rank twice) hold different blocks."""
    seen: dict[str, set[int]] = {}
    for copies in all_gather_objects(list(mine), axis):
        for copy in copies:
            seen.setdefault(copy.name, set()).add(copy.digest)
    own = {copy.name for copy in mine}
    return {name for name, digests in seen.items() if len(digests) > 1 and name in own}


def _verdict(copies: Sequence[Copy], hosts: Sequence[str], step: int) -> str:
    by_name: dict[str, dict[int, list[int]]] = {}
    for copy in copies:
        by_name.setdefault(copy.name, {}).setdefault(copy.digest, []).append(copy.rank)
    lines = [f"{name}: {_odd(list(groups.values()), hosts)}" for name, groups in by_name.items()]
    rest = f"\n  and {len(lines) - MOST_TOLD} more" if len(lines) > MOST_TOLD else ""
    return (
        f"copies that must be equal differ after step {step}; nothing is saved of it, go on from the last checkpoint "
        "without the machine that is odd:\n  " + "\n  ".join(lines[:MOST_TOLD]) + rest
    )


def _odd(groups: list[list[int]], hosts: Sequence[str]) -> str:
    """Who is alone against most of the others; nobody can say of two."""
    groups = sorted(groups, key=len)
    total = sum(map(len, groups))
    if 2 * len(groups[-1]) <= total:
        return " and ".join(_where(ranks, hosts) for ranks in groups) + " differ, and no majority tells who is right"
    return f"{' and '.join(_where(ranks, hosts) for ranks in groups[:-1])} against {_where(groups[-1], hosts)}"


def _where(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    by_host: dict[str, list[int]] = {}
    for rank in sorted(set(ranks)):
        by_host.setdefault(hosts[rank], []).append(rank)
    return ", ".join(where(name, some) for name, some in by_host.items())
