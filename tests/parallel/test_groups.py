"""A rank makes only its own groups, as few in a large world, and what all ranks tell each other arrives."""

import time
from datetime import timedelta
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from megascratch.config.layout import Layout
from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.control import Control, tree_groups
from megascratch.parallel.groups import NcclGroups, Timeouts
from megascratch.parallel.lines import ring_links
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.pending import CommunicationError
from megascratch.parallel.rendezvous import Rendezvous
from tests.support import group_plans
from tests.support.rank_pool import RankFailed, group_maker, on_ranks

LAWS = [
    group_plans.all_members_make_a_group_and_none_waits_in_a_circle,
    group_plans.a_split_has_each_rank_once_and_is_the_same_on_all,
    group_plans.every_link_of_a_ring_is_there_once,
    group_plans.what_all_ranks_have_is_summed_and_gathered_once,
    group_plans.items_come_up_in_rank_order_and_go_down_to_all,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law, tmp_path):
    law(tmp_path, on_ranks)


def test_the_control_planes_groups_are_a_tree():
    group_plans.each_rank_has_one_parent(tree_groups)


@pytest.mark.parametrize(
    ("layout", "levels"),
    [
        (Layout(tp=8, pp=8, dp=2), [32, 4]),
        (Layout(tp=8, pp=8, dp=16), [32, 32]),
        (Layout(tp=8, pp=8, dp=256), [32, 32, 16]),
    ],
)
def test_groups_do_not_grow_with_the_world_but_with_the_lines_of_a_rank(layout, levels):
    """Of 128, 1,024 and 16,384 ranks: the sizes of the groups that the first rank makes, which makes the most."""
    sizes = [len(group.ranks) for group in group_plans.asked(layout, 0).groups]
    tp, data, pp, embedding, link = 8, layout.dp, 8, 2, 2
    assert sizes == [tp, data, pp, embedding, *4 * [link], *levels]
    for rank in (77, layout.world - 1):
        assert len(group_plans.asked(layout, rank).groups) < len(sizes)


@pytest.mark.parametrize(
    ("layout", "axes"),
    [
        (Layout(tp=2, dp=2), ["tp", "data"]),
        (Layout(dp=4, ep=2), ["data", "ep", "edp"]),
        (Layout(tp=2, dp=2, cp=2), ["tp", "cp", "data"]),
        (Layout(dp=4, dp_replicas=2), ["data", "shard", "replica"]),
        (Layout(pp=4), ["pp", "embedding", *4 * ["pp"]]),
    ],
)
def test_axes_that_no_step_uses_have_no_group(layout, axes):
    """Neither `dp`, nor those of experts and replicas in a layout without."""
    made = group_plans.asked(layout, 0).groups[:-1]
    assert [group.name.split()[0] for group in made] == axes


def test_an_even_ring_has_links_of_two_colours_and_an_odd_one_of_three():
    for stages in range(2, 10):
        links = ring_links(stages)
        assert {link.colour for link in links} == set(range(3 if stages % 2 else 2))
        assert len({(link.source, link.target, link.direction) for link in links}) == 2 * stages


def _silent_in(verb: str) -> None:
    """The last rank closes its connections; the others call the verb."""
    plane = Control.build(group_maker(), "test")
    plane.broadcast(0)
    if plane.rank == 2:
        plane.close()
    elif verb == "reduce":
        plane.reduce(1, max)
    else:
        getattr(plane, verb)(1)


@pytest.mark.parametrize("verb", ["reduce", "broadcast", "gather"])
def test_a_rank_that_has_gone_is_named_with_the_verb_and_the_level(verb):
    with pytest.raises(RankFailed) as caught:
        on_ranks(3, _silent_in, verb)
    assert (
        f"{verb} with rank 2 over test level 0 failed on rank 0 of 3: another rank has ended"
        in str(caught.value)
    )


class _OfNccl(NcclGroups):
    """Without a device: nothing is made but the splits, which are noted."""

    def everyone(self):
        return group_plans.Asking(self.rank, self.world).transport

    def host(self, name, ranks):
        return self.everyone()


@pytest.mark.parametrize("layout", group_plans.LAYOUTS, ids=lambda layout: layout.name)
def test_on_nccl_all_ranks_make_the_same_splits_one_of_each_axis_and_colour(layout):
    second = timedelta(seconds=1)
    splits = []

    def split_group(*, split_ranks, timeout, group_desc):
        splits[-1].append((group_desc, split_ranks))
        return "group" if any(rank in line for line in split_ranks) else None

    with patch.object(dist, "split_group", split_group):
        for rank in range(layout.world):
            splits.append([])
            meeting = Rendezvous(dist.HashStore(), rank, layout.world, second)
            mesh = Mesh.build(layout, "meta", _OfNccl(meeting, Timeouts.equal(second)))
            for axis in (mesh.tp, mesh.data, mesh.pp, mesh.edp, mesh.embedding):
                assert (axis.transport is None) == (axis.size == 1)
            assert mesh.world.transport is not None and not mesh.world.along
    assert all(made == splits[0] for made in splits)
    names = [name for name, _ in splits[0]]
    assert len(names) == len(set(names))
    colours = {1: 0, 2: 4}.get(layout.pp, 6 if layout.pp % 2 else 4)
    assert sum(name.startswith("pp ") for name in names) == colours


def _late_at(what: str) -> str:
    """The second rank comes later than a step may take, to the control plane or to a step's sum."""
    patient = timedelta(seconds=60)
    maker = group_maker(Timeouts(patient, load=patient, step=timedelta(seconds=1)))
    mesh = Mesh.build(Layout(tp=2), maker=maker)
    time.sleep(2.5 * mesh.rank)
    try:
        if what == "control":
            return str(mesh.control.reduce(mesh.rank, max))
        all_reduce(torch.ones(1 << 20), mesh.tp)
    except CommunicationError as error:
        return str(error)
    return "in time"


def test_a_load_may_take_longer_than_a_step():
    assert on_ranks(2, _late_at, "control") == ["1", "1"]
    late, _ = on_ranks(2, _late_at, "sum")
    assert late.startswith("all_reduce over tp failed on rank 0 of 2: ")
