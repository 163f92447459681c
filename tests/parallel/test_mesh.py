"""Every group and link of the mesh reaches exactly the ranks that the grid says."""

import pytest
import torch
import torch.distributed as dist

from megascratch.config.errors import UserError
from megascratch.parallel.collectives import (
    all_gather,
    all_reduce,
    gather_from,
    reduce_scatter,
    reduce_scatter_to,
    start_all_gather,
)
from megascratch.parallel.grid import Grid
from megascratch.parallel.mesh import Axis, Mesh
from tests.support.rank_pool import mesh_of, on_ranks

LONG = 6 * 2**18  # elements of 8 bytes


def _sum_over_each_axis(grid: Grid) -> dict[str, tuple[float, tuple[int, ...]]]:
    mesh = Mesh.build(grid)
    axes = (mesh.tp, mesh.pp, mesh.dp, mesh.cp, mesh.data, mesh.model, mesh.world)
    return {axis.name: (all_reduce(torch.tensor(float(mesh.rank)), axis).item(), axis.ranks) for axis in axes}


@pytest.mark.parametrize(
    "grid", [Grid.dense(tp=2, pp=2, dp=2), Grid.dense(tp=2, dp=2), Grid.dense(pp=4), Grid.dense(cp=2, tp=2)]
)
def test_every_axis_sums_over_the_ranks_of_its_group(grid):
    members = {
        "tp": ["tp"],
        "pp": ["pp"],
        "dp": ["dp"],
        "cp": ["cp"],
        "data": ["dp", "cp"],
        "model": ["pp", "tp"],
        "world": list(grid.sizes),
    }
    for rank, sums in enumerate(on_ranks(grid.world, _sum_over_each_axis, grid)):
        for name, (total, ranks) in sums.items():
            expected = grid.group(rank, *members[name])
            assert (total, ranks) == (sum(expected), tuple(expected))


def _ring(grid: Grid) -> tuple[float, float]:
    links = Mesh.build(grid).links
    assert links is not None
    me, received = torch.tensor([float(dist.get_rank())]), []
    for out, into in ((links.forward_out, links.forward_in), (links.backward_out, links.backward_in)):
        box = torch.empty(1)
        sent = dist.isend(me, out.target, group=out.group)
        dist.irecv(box, into.source, group=into.group).wait()
        sent.wait()
        received.append(box.item())
    return received[0], received[1]


@pytest.mark.parametrize("grid", [Grid.dense(pp=2), Grid.dense(pp=4), Grid.dense(pp=2, tp=2)])
def test_links_form_a_ring_of_stages_in_both_directions(grid):
    for rank, (before, after) in enumerate(on_ranks(grid.world, _ring, grid)):
        stages = grid.group(rank, "pp")
        here = stages.index(rank)
        assert (before, after) == (stages[here - 1], stages[(here + 1) % len(stages)])


def _embedding_axis(grid: Grid) -> tuple[int, ...]:
    return Mesh.build(grid).embedding.ranks


def test_the_embedding_axis_joins_the_first_and_the_last_stage():
    assert on_ranks(4, _embedding_axis, Grid.dense(pp=4)) == [(0, 3), (1,), (2,), (0, 3)]


def _gather_then_scatter(world: int) -> tuple[list, list, list]:
    axis = Mesh.build(Grid.dense(tp=world)).tp
    x = (torch.arange(6.0).reshape(2, 3) + 10 * axis.rank).requires_grad_()
    whole = gather_from(x, axis)
    back = reduce_scatter_to(whole * (axis.rank + 1), axis)
    back.sum().backward()
    side = all_gather(x.detach(), axis, dim=1)
    assert torch.equal(reduce_scatter(side, axis, dim=1), x.detach() * world)
    return whole.tolist(), back.tolist(), x.grad.tolist()


def test_sequence_pairs_are_conjugate():
    for rank, (whole, back, grad) in enumerate(on_ranks(2, _gather_then_scatter, 2)):
        assert whole == [[0, 1, 2], [3, 4, 5], [10, 11, 12], [13, 14, 15]]
        assert back == (3 * torch.tensor(whole[2 * rank : 2 * rank + 2])).tolist()
        assert grad == [[3.0] * 3] * 2


def test_an_axis_of_size_one_returns_its_input():
    axis, x = Axis.alone("tp"), torch.ones(2, 2)
    for operation in (all_reduce, all_gather, reduce_scatter, gather_from, reduce_scatter_to):
        assert operation(x, axis) is x


def _wrong_world() -> str:
    try:
        Mesh.build(Grid.dense(tp=4))
    except UserError as error:
        return str(error)
    return ""


def test_a_world_that_does_not_fit_is_refused_with_the_numbers():
    assert all("start 4 processes" in text for text in on_ranks(2, _wrong_world))


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
