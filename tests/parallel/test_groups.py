"""A rank makes only its own groups, as few in a large world, and what all ranks tell each other arrives."""

import pytest

from megascratch.config.layout import Layout
from megascratch.parallel.control import Control, tree_groups
from megascratch.parallel.lines import ring_links
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
    """Neither `model` and `dp`, nor those of experts and replicas in a layout without."""
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
