"""Shards of all ranks cover the whole exactly once; everything else is a counted copy."""

from itertools import product

import numpy as np
import pytest

from megascratch.parallel.grid import Grid
from megascratch.parallel.shard import Part, Shard, flat_boxes

SHARDS = {
    "column": (Shard((12, 5), {"tp": 0}), (1, 2, 3, 4)),
    "row": (Shard((5, 12), {"tp": 1}), (1, 2, 4)),
    "replicated": (Shard((7,)), (1, 2, 4)),
    "qkv": (Shard((24, 3), {"tp": 0}, parts=(Part(16, 8), Part(4, 2), Part(4, 2))), (1, 2, 4, 8)),
    "one kv head": (
        Shard((12, 3), {"tp": 0}, parts=(Part(8, 4), Part(2, 1), Part(2, 1))),
        (1, 2, 4),
    ),
    "gate and up": (Shard((16, 3), {"tp": 0}, parts=(Part(8, 8), Part(8, 8))), (1, 2, 4, 8)),
    "padded vocabulary": (Shard((37, 3), {"tp": 0}, padded=64), (1, 2, 4, 8)),
}


@pytest.mark.parametrize("name", SHARDS)
def test_the_pieces_of_all_ranks_cover_the_whole_exactly_once(name):
    shard, tps = SHARDS[name]
    for tp in tps:
        sizes, counted = {"tp": tp}, np.zeros(shard.shape, int)
        for rank in range(tp):
            local = np.zeros(shard.local_shape(sizes), int)
            for piece in shard.pieces(sizes, {"tp": rank}):
                local[piece.local.slices] += 1
                counted[piece.whole.slices] += piece.copy == 0
                assert piece.local.shape == piece.whole.shape
            assert local.max(initial=0) <= 1 and (shard.padded or local.min() == 1)
        assert (counted == 1).all(), (name, tp)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (1, 6)])
def test_any_flat_range_is_a_few_boxes_in_order(shape):
    flat = np.arange(np.prod(shape)).reshape(shape)
    for start, stop in product(range(flat.size + 1), repeat=2):
        boxes = flat_boxes(shape, start, stop)
        assert len(boxes) <= 2 * len(shape) - 1
        assert [i for box in boxes for i in flat[box.slices].ravel()] == list(range(start, stop))


@pytest.mark.parametrize(
    "sizes", [dict(tp=2, pp=2, dp=2), dict(tp=4, dp=2), dict(tp=2, pp=4, dp=2, cp=2)]
)
def test_grid_groups_are_a_partition_and_tp_is_fastest(sizes):
    grid = Grid.dense(**sizes)
    for axes in (("tp",), ("pp",), ("dp",), ("dp", "cp"), ("pp", "tp")):
        assert sorted(r for group in grid.groups(*axes) for r in group) == list(range(grid.world))
    assert grid.group(0, "tp") == list(range(grid.sizes["tp"]))
    assert all(grid.rank(**grid.coords(rank)) == rank for rank in range(grid.world))


def test_groups_are_megatrons():
    grid = Grid.dense(tp=2, pp=4, dp=2)
    assert grid.groups("tp")[:2] == [[0, 1], [2, 3]]
    assert grid.groups("dp")[:2] == [[0, 2], [1, 3]]
    assert grid.groups("pp")[:2] == [[0, 4, 8, 12], [1, 5, 9, 13]]


def test_the_expert_view_keeps_the_pipeline_stages():
    grid = Grid.dense(tp=2, pp=2, dp=4)
    expert = grid.expert_view(ep=4)
    assert expert.sizes == {"pp": 2, "edp": 2, "ep": 4, "etp": 1} and expert.world == grid.world
    assert expert.groups("pp") == grid.groups("pp")
