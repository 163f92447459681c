"""Breaks of what connects the ranks, each with the law that must notice: lines, links, sums over all, control plane."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from megascratch.parallel import control, lines, mesh
from megascratch.parallel.axis import Axis, Links
from megascratch.parallel.control import Control
from megascratch.parallel.mesh import _Axes
from tests.support import group_plans

Law = Callable[[Path, Callable], None]


def line_of_the_neighbour(layout: Any, rank: int, name: str, *rest: Any) -> lines.RankLine:
    """The data line has the ranks of the next one."""
    line = plain_line_of(layout, rank, name, *rest)
    if name != "data" or len(line.mine) == 1:
        return line
    other = plain_line_of(layout, (rank + 1) % layout.world, name, *rest).mine
    return replace(line, mine=tuple(sorted({rank, *other[1:]})))


def swapped_links(self: _Axes) -> Links:
    links = plain_links(self)
    return replace(links, forward_in=links.backward_in, backward_in=links.forward_in)


def one_colour(stages: int) -> list[lines.RingLink]:
    return [replace(link, colour=0) for link in plain_ring(stages)]


def world_without_pp(self: _Axes, name: str, transport: Any, along: tuple[Axis, ...] = ()) -> Axis:
    return plain_shared(self, name, transport, along[:2] if name == "world" else along)


def world_from_outside(
    self: _Axes, name: str, transport: Any, along: tuple[Axis, ...] = ()
) -> Axis:
    return plain_shared(self, name, transport, along[::-1])


def followers_backwards(level: Axis) -> list[int]:
    return plain_followers(level)[::-1]


def keeps_its_own(self: Control, operation: str, item: Any) -> Any:
    """What comes down the tree is dropped by the ranks that have followers."""
    received = plain_from_first(self, operation, item)
    return item if len(self.levels) > 1 else received


plain_line_of = mesh.line_of
plain_links = _Axes.links
plain_ring = lines.ring_links
plain_shared = _Axes._shared
plain_followers = control._followers
plain_from_first = Control._from_first

GROUPS: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "a data line of the neighbour's ranks": (
        [(mesh, "line_of", line_of_the_neighbour)],
        group_plans.a_split_has_each_rank_once_and_is_the_same_on_all,
    ),
    "the links into a stage are swapped": (
        [(_Axes, "links", swapped_links)],
        group_plans.every_link_of_a_ring_is_there_once,
    ),
    "all links have one colour": (
        [(lines, "ring_links", one_colour)],
        group_plans.every_link_of_a_ring_is_there_once,
    ),
    "a sum over all ranks misses the stages": (
        [(_Axes, "_shared", world_without_pp)],
        group_plans.what_all_ranks_have_is_summed_and_gathered_once,
    ),
    "what all ranks have is gathered from the outer axis inwards": (
        [(_Axes, "_shared", world_from_outside)],
        group_plans.what_all_ranks_have_is_summed_and_gathered_once,
    ),
    "the control plane reduces in the wrong order": (
        [(control, "_followers", followers_backwards)],
        group_plans.items_come_up_in_rank_order_and_go_down_to_all,
    ),
    "a first rank of a group keeps its own item": (
        [(Control, "_from_first", keeps_its_own)],
        group_plans.items_come_up_in_rank_order_and_go_down_to_all,
    ),
}
