"""What is sent by messages instead of gloo's rings has the same result."""

import pytest
import torch
import torch.distributed as dist

from megascratch.parallel.collectives import (
    start_all_gather,
    start_all_reduce,
    start_reduce_scatter,
)
from megascratch.parallel.gloo import EXCHANGED_GATHER, EXCHANGED_SUM
from tests.support.rank_pool import mesh_of, on_ranks

LONG = 6 * 2**18  # elements of 8 bytes


def _long_gathers(world: int) -> list[bool]:
    """On a rank: two at once, the second from its own place in the result."""
    axis, n = mesh_of(dp=world).data, LONG // world
    wanted = torch.arange(world).repeat_interleave(n)
    first = start_all_gather(torch.full((n,), axis.rank), axis)
    out = torch.full((world * n,), -1)
    out[axis.rank * n : (axis.rank + 1) * n] = axis.rank + 7
    second = start_all_gather(out[axis.rank * n : (axis.rank + 1) * n], axis, out)
    return [torch.equal(first.wait(), wanted), torch.equal(second.wait(), wanted + 7)]


@pytest.mark.parametrize("world", [2, 3])
def test_a_long_gather_brings_every_piece_to_its_place(world):
    """Longer than those that are exchanged at once."""
    assert on_ranks(world, _long_gathers, world) == [[True, True]] * world


def _both_ways(world: int) -> list[bool]:
    """On a rank: collectives just below and above the limits, of small whole numbers, which every order adds up to the
    same sum, against gloo's own."""
    axis = mesh_of(dp=world).data
    equal = []
    for operation in (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN):
        for numel in (1, EXCHANGED_SUM // 8, EXCHANGED_SUM // 8 + 1):
            x = (torch.arange(numel) + axis.rank) % 7
            expected = x.clone()
            dist.all_reduce(expected, operation)
            equal.append(torch.equal(start_all_reduce(x, axis, operation).wait(), expected))
    for numel in (1, EXCHANGED_GATHER // 8 // world, EXCHANGED_GATHER // 8 // world + 1):
        x = torch.arange(numel) + axis.rank
        gathered = [torch.empty_like(x) for _ in range(world)]
        dist.all_gather(gathered, x)
        equal.append(torch.equal(start_all_gather(x, axis).wait(), torch.cat(gathered)))
        whole = torch.arange(world * numel) % 7 + axis.rank
        shard = start_reduce_scatter(whole.clone(), axis).wait()
        dist.all_reduce(whole)
        equal.append(torch.equal(shard, whole.chunk(world)[axis.rank]))
    return equal


@pytest.mark.parametrize("world", [2, 3])
def test_on_both_sides_of_the_limits_the_result_is_that_of_the_rings(world):
    assert on_ranks(world, _both_ways, world) == [[True] * 15] * world
