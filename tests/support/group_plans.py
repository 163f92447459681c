"""Which groups the ranks of a layout ask for, without making one; and laws of them, of sums over all ranks and of the
control plane."""

import random
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from megascratch.config.layout import Layout
from megascratch.parallel import control, lines
from megascratch.parallel.collectives import all_gather, all_gather_objects, all_reduce
from megascratch.parallel.control import Control
from megascratch.parallel.imagined import ImaginedGroups
from megascratch.parallel.lines import RankLine
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.transport import Transport
from tests.support.rank_pool import group_maker

LAYOUTS = [
    Layout(pp=2),
    Layout(pp=3, dp=2),
    Layout(tp=2, pp=4),
    Layout(tp=2, pp=5, dp=3),
    Layout(tp=2, pp=2, dp=2, cp=2, ep=4, etp=1),
    Layout(pp=3, dp=4, cp=2, dp_replicas=2),
    Layout(tp=2, dp=40),
]


class Group(NamedTuple):
    """One group that a rank asks for."""

    name: str
    ranks: tuple[int, ...]


class Asking(ImaginedGroups):
    """Notes the groups that a rank asks for, and the lines that NCCL would split at each call."""

    def __init__(self, rank: int, world: int, gloo: bool = True):
        super().__init__(rank, world, gloo, lambda *tensors: None)
        self.groups: list[Group] = []
        self.splits: list[tuple[str, list[list[int]]]] = []

    def line(self, line: RankLine) -> Transport | None:
        self.splits.append((line.name, line.every()))
        if len(line.mine) > 1:
            self.groups.append(Group(line.name, line.mine))
        return super().line(line)

    def host(self, name: str, ranks: tuple[int, ...]) -> Transport:
        self.groups.append(Group(name, ranks))
        return super().host(name, ranks)


def asked(layout: Layout, rank: int) -> Asking:
    """What a rank asks for when its mesh is built."""
    maker = Asking(rank, layout.world)
    Mesh.build(layout, "meta", maker)
    return maker


# ---- laws ------------------------------------------------------------------------------------------------------


def all_members_make_a_group_and_none_waits_in_a_circle(folder: Path, run: Callable) -> None:
    """Each rank makes its groups in turn, and a group is made when all its members have come to it: all are made, and
    no two have the same name and first rank."""
    for layout in LAYOUTS:
        queues = [asked(layout, rank).groups for rank in range(layout.world)]
        made: set[tuple[str, int]] = set()
        while any(queues):
            ready = []
            for group in {queue[0] for queue in queues if queue}:
                if all(queues[rank] and queues[rank][0] == group for rank in group.ranks):
                    ready.append(group)
            assert ready, f"{layout.name}: all ranks wait, {[queue[:1] for queue in queues]}"
            for group in ready:
                assert (group.name, group.ranks[0]) not in made, group
                made.add((group.name, group.ranks[0]))
                for rank in group.ranks:
                    queues[rank].pop(0)


def a_split_has_each_rank_once_and_is_the_same_on_all(folder: Path, run: Callable) -> None:
    """NCCL's splits: all ranks make them in one order and with the same lines, of which a rank's own is one."""
    for layout in LAYOUTS:
        first = asked(layout, 0).splits
        for rank in range(layout.world):
            maker = asked(layout, rank)
            assert maker.splits == first, f"{layout.name}: rank {rank} splits otherwise"
            own = {group.name: list(group.ranks) for group in maker.groups}
            for name, every in maker.splits:
                members = list(chain.from_iterable(every))
                assert len(members) == len(set(members)), f"{layout.name}: {name} {every}"
                assert name not in own or own[name] in every, f"{layout.name}: {name} {own[name]}"


def every_link_of_a_ring_is_there_once(folder: Path, run: Callable) -> None:
    """Both directions between each two neighbouring stages, of the pipeline that a rank is in; a stage has at most one
    link of a colour and direction."""
    for stages in (2, 3, 4, 5, 8):
        ends: list[tuple[str, int]] = []
        for link in lines.ring_links(stages):
            ends += [(link.name, link.source), (link.name, link.target)]
        assert len(ends) == len(set(ends)) == 4 * stages, ends
        layout = Layout(tp=2, pp=stages)
        for rank in range(layout.world):
            links = Mesh.build(layout, "meta", Asking(rank, layout.world)).links
            before = (rank - 2) % layout.world
            after = (rank + 2) % layout.world
            assert (links.forward_in.source, links.forward_in.target) == (before, rank)
            assert (links.forward_out.source, links.forward_out.target) == (rank, after)
            assert (links.backward_in.source, links.backward_in.target) == (after, rank)
            assert (links.backward_out.source, links.backward_out.target) == (rank, before)
            names = [group for group in asked(layout, rank).groups if group.name.startswith("pp ")]
            assert len(names) == len(set(names)) == 4
            assert sorted(each for group in names for each in group.ranks if each != rank) == (
                sorted([before, before, after, after])
            )


def what_all_ranks_have_is_summed_and_gathered_once(folder: Path, run: Callable) -> None:
    """Over the world, over which there is no group: the sum of what each rank has, and all of it in rank order."""
    for layout in (Layout(tp=2, pp=2, dp=2), Layout(pp=3, dp=2), Layout(dp=4)):
        world = layout.world
        for found in run(world, _over_all, layout):
            assert found == (2.0**world - 1, list(range(world)), [str(r) for r in range(world)])


def _over_all(layout: Layout) -> tuple[float, list[int], list[str]]:
    mesh = Mesh.build(layout, maker=group_maker())  # not the pool's, which another test may use
    bit = torch.tensor(2.0**mesh.rank, dtype=torch.float64)
    rows = all_gather(torch.tensor([mesh.rank]), mesh.world)
    names = all_gather_objects(str(mesh.rank), mesh.world)
    found = all_reduce(bit, mesh.world).item(), rows.tolist(), names
    mesh.close()
    return found


def items_come_up_in_rank_order_and_go_down_to_all(folder: Path, run: Callable) -> None:
    """A tree of groups of two or three against lists in one process; items of many lengths, and an order that a
    combination does not forget."""
    for world, most in ((5, 2), (8, 2), (8, 3)):
        items = [_item(rank) for rank in range(world)]
        for rank, (reduced, sent, gathered, again) in enumerate(run(world, _tell_all, most)):
            assert reduced == list(chain.from_iterable(items))
            assert sent == items[0]
            assert gathered == (items if rank == 0 else [])
            assert again == max(len(item) for item in items)


def _item(rank: int) -> list[int]:
    return random.Random(rank).choices(range(1000), k=1 + 5000 * (rank % 3)) + [rank]


def _tell_all(most: int) -> tuple[list[int], list[int], list[list[int]], int]:
    maker = group_maker()
    with patch.object(control, "FAN_OUT", most):
        plane = Control.build(maker, "test")
    mine = _item(plane.rank)
    told = (
        plane.reduce(mine, lambda left, right: left + right),
        plane.broadcast(mine),
        plane.gather(mine),
        plane.reduce(len(mine), max),
    )
    plane.close()
    return told


def each_rank_has_one_parent(groups_of: Callable[[int, int], Sequence[tuple[int, ...]]]) -> None:
    """The control plane's groups are a tree over neighbouring ranks, of groups of at most 32."""
    for world in (1, 2, 31, 32, 33, 64, 1000, 1024, 1025, 16_384):
        parents: dict[int, Any] = {}
        for rank in range(world):
            for level, ranks in enumerate(groups_of(rank, world)):
                assert rank in ranks and len(ranks) <= 32
                assert groups_of(ranks[0], world)[level] == ranks
                if ranks[0] != rank:
                    parents[rank] = ranks[0]
        assert sorted(parents) == list(range(1, world))
        assert all(parent < rank for rank, parent in parents.items())
