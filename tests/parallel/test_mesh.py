"""Every group and link of the mesh reaches exactly the ranks that the grid says."""

import pytest
import torch
import torch.distributed as dist

from megascratch.config.errors import UserError
from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.grid import Grid
from megascratch.parallel.mesh import Mesh
from tests.support.rank_pool import on_ranks


def _sum_over_each_axis(grid: Grid) -> dict[str, tuple[float, tuple[int, ...]]]:
    mesh = Mesh.build(grid)
    axes = (mesh.tp, mesh.pp, mesh.dp, mesh.cp, mesh.data, mesh.model, mesh.world)
    return {
        axis.name: (all_reduce(torch.tensor(float(mesh.rank)), axis).item(), axis.ranks)
        for axis in axes
    }


@pytest.mark.parametrize(
    "grid",
    [
        Grid.dense(tp=2, pp=2, dp=2),
        Grid.dense(tp=2, dp=2),
        Grid.dense(pp=4),
        Grid.dense(cp=2, tp=2),
    ],
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
    for out, into in (
        (links.forward_out, links.forward_in),
        (links.backward_out, links.backward_in),
    ):
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


def _wrong_world() -> str:
    try:
        Mesh.build(Grid.dense(tp=4))
    except UserError as error:
        return str(error)
    return ""


def test_a_world_that_does_not_fit_is_refused_with_the_numbers():
    assert all("start 4 processes" in text for text in on_ranks(2, _wrong_world))
