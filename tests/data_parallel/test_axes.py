"""Weights that are cut over several axes, in both views, are those of one process on every layout."""

from itertools import product

import pytest

from megascratch.config.layout import Layout
from tests.support import several_axes
from tests.support.rank_pool import on_ranks

FLAVOURS = ["ddp", "zero1"]


@pytest.mark.parametrize("flavour, layout", list(product(FLAVOURS, several_axes.LAYOUTS)))
def test_weights_over_several_axes_are_those_of_one_process(flavour, layout):
    several_axes.weights_are_those_of_one_process(flavour, layout, on_ranks)


@pytest.mark.parametrize("bucket", [1, 30, 10**6])
def test_the_size_of_buckets_is_of_no_account_in_two_views(bucket):
    layout = several_axes.LAYOUTS["dp4 ep2"]
    for error, error_of_norm, *_ in on_ranks(4, several_axes.trained, "zero1", layout, bucket):
        assert error < 1e-12 and error_of_norm < 1e-13


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    "layout, name, rank, others",
    [
        ("dp4 ep2", "0_down", 3, "rank 1) and"),
        ("dp4 ep2 etp2", "0_bias", 0, "rank 0) and"),
        ("dp4 ep2", "1_router", 2, "(rank 2) against"),
        ("tp2 pp2 ep2 etp1", "third", 3, "(rank 1) and"),
        ("tp2 dp2 ep4 etp1", "0_each_expert", 1, "(rank 1) against"),
    ],
)
def test_a_copy_that_differs_is_found_over_the_axes_of_its_own_view(
    flavour, layout, name, rank, others
):
    world, sizes = several_axes.world_of(layout), several_axes.LAYOUTS[layout]
    for told in on_ranks(world, several_axes.corrupted, flavour, sizes, name, rank):
        assert len(told) == 1 and f"param.{name}[" in told[0] and others in told[0], told


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("layout", ["one", "dp4 ep2", "dp4 ep2 etp2", "dp8 ep2 etp2"])
def test_a_mixture_of_experts_is_that_of_one_process(flavour, layout):
    sizes = {"dp8 ep2 etp2": {"dp": 8, "ep": 2, "etp": 2}, **several_axes.LAYOUTS}[layout]
    for errors in on_ranks(Layout(**sizes).world, several_axes.of_mixture, flavour, sizes):
        assert max(errors) < 1e-11, errors
