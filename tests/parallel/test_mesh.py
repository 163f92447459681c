"""Every group and link of the mesh reaches exactly the ranks that the grid says."""

import pytest
import torch
import torch.distributed as dist

from megascratch.config.errors import UserError
from megascratch.config.layout import Layout
from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.grid import Grid
from megascratch.parallel.mesh import Mesh
from tests.support.rank_pool import group_maker, mesh_for, on_ranks


def _sum_over_each_axis(layout: Layout) -> dict[str, tuple[float, tuple[int, ...]]]:
    mesh = mesh_for(layout)
    return {
        name: (all_reduce(torch.tensor(float(mesh.rank)), axis).item(), axis.ranks)
        for name in AXES
        if name != "dp" or layout.cp == 1
        for axis in [getattr(mesh, name)]
    }


AXES = {
    "tp": ("dense", ["tp"]),
    "pp": ("dense", ["pp"]),
    "dp": ("dense", ["dp"]),
    "cp": ("dense", ["cp"]),
    "data": ("dense", ["dp", "cp"]),
    "shard": ("replicas", ["shard", "cp"]),
    "replica": ("replicas", ["replica"]),
    "edp": ("expert", ["edp"]),
    "ep": ("expert", ["ep"]),
    "etp": ("expert", ["etp"]),
    "world": ("dense", ["pp", "dp", "cp", "tp"]),
}


@pytest.mark.parametrize(
    "layout",
    [
        Layout(tp=2, pp=2, dp=2),
        Layout(tp=2, dp=2),
        Layout(pp=4),
        Layout(cp=2, tp=2),
        Layout(tp=2, pp=2, dp=2, ep=2),
        Layout(tp=2, dp=2, cp=2, ep=4, etp=1),
        Layout(dp=4, cp=2, dp_replicas=2),
    ],
)
def test_every_axis_sums_over_the_ranks_of_its_group(layout):
    for rank, sums in enumerate(on_ranks(layout.world, _sum_over_each_axis, layout)):
        for name, (total, ranks) in sums.items():
            view, members = AXES[name]
            expected = Grid(layout.sizes(view)).group(rank, *members)
            assert (total, ranks) == (sum(expected), tuple(expected))


def _ring(layout: Layout) -> tuple[float, float]:
    links = mesh_for(layout).links
    assert links is not None
    me, received = torch.tensor([float(dist.get_rank())]), []
    for out, into in (
        (links.forward_out, links.forward_in),
        (links.backward_out, links.backward_in),
    ):
        box = torch.empty(1)
        sent = out.transport.send(me, out.number_of(out.target))
        into.transport.receive(box, into.number_of(into.source)).wait()
        sent.wait()
        received.append(box.item())
    return received[0], received[1]


@pytest.mark.parametrize("layout", [Layout(pp=2), Layout(pp=4), Layout(pp=2, tp=2)])
def test_links_form_a_ring_of_stages_in_both_directions(layout):
    for rank, (before, after) in enumerate(on_ranks(layout.world, _ring, layout)):
        stages = Grid(layout.sizes("dense")).group(rank, "pp")
        here = stages.index(rank)
        assert (before, after) == (stages[here - 1], stages[(here + 1) % len(stages)])


def _embedding_axis(layout: Layout) -> tuple[int, ...]:
    return mesh_for(layout).embedding.ranks


def test_the_embedding_axis_joins_the_first_and_the_last_stage():
    assert on_ranks(4, _embedding_axis, Layout(pp=4)) == [(0, 3), (1,), (2,), (0, 3)]


def _wrong_world() -> str:
    try:
        Mesh.build(Layout(tp=4), maker=group_maker())
    except UserError as error:
        return str(error)
    return ""


def test_a_world_that_does_not_fit_is_refused_with_the_numbers():
    assert all("start 4 processes" in text for text in on_ranks(2, _wrong_world))
