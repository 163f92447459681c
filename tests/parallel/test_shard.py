"""Shards of all ranks cover the whole exactly once; everything else is a counted copy."""

import math
import random
from itertools import product

import numpy as np
import pytest

from megascratch.config.layout import Layout
from megascratch.config.settings import ParallelConfig
from megascratch.parallel.grid import Grid, Position
from megascratch.parallel.shard import Cut, Part, Shard, flat_boxes
from tests.support.random_shards import random_layout, random_shard

SHARDS = {
    "column": (Shard((12, 5), (Cut("tp", 0),)), (1, 2, 3, 4)),
    "row": (Shard((5, 12), (Cut("tp", 1),)), (1, 2, 4)),
    "replicated": (Shard((7,)), (1, 2, 4)),
    "qkv": (Shard((24, 3), (Cut("tp", 0, (Part(16, 8), Part(4, 2), Part(4, 2))),)), (1, 2, 4, 8)),
    "one kv head": (
        Shard((12, 3), (Cut("tp", 0, (Part(8, 4), Part(2, 1), Part(2, 1))),)),
        (1, 2, 4),
    ),
    "gate and up": (Shard((16, 3), (Cut("tp", 0, (Part(8, 8), Part(8, 8))),)), (1, 2, 4, 8)),
    "padded vocabulary": (Shard((37, 3), (Cut("tp", 0, padded=64),)), (1, 2, 4, 8)),
}


@pytest.mark.parametrize("name", SHARDS)
def test_the_pieces_of_all_ranks_cover_the_whole_exactly_once(name):
    shard, tps = SHARDS[name]
    for tp in tps:
        layout, counted = Layout(tp=tp), np.zeros(shard.shape, int)
        padded = any(cut.padded for cut in shard.cuts)
        for rank in range(tp):
            local = np.zeros(shard.local_shape(layout), int)
            for piece in shard.pieces(Position(layout, rank)):
                local[piece.local.slices] += 1
                counted[piece.whole.slices] += piece.copy == 0
                assert piece.local.shape == piece.whole.shape
            assert local.max(initial=0) <= 1 and (padded or local.min() == 1)
        assert (counted == 1).all(), (name, tp)


def indices_of(shard: Shard, layout: Layout, coords: dict[str, int]) -> list[np.ndarray]:
    """The indices of each dim that a rank must hold, in local order, by plain splits; -1: padding."""
    sizes = layout.sizes(shard.view)
    dims = [np.arange(size) for size in shard.shape]
    for cut in shard.cuts:
        ranks, rank, size = sizes[cut.axis], coords[cut.axis], shard.shape[cut.dim]
        if cut.padded:
            mine = np.split(np.arange(cut.padded), ranks)[rank]
            dims[cut.dim] = np.where(mine < size, mine, -1)
            continue
        held, start = [], 0
        for part in cut.parts or (Part(size, size),):
            units = np.split(np.arange(start, start + part.size), part.units)
            first = rank * part.units // ranks
            held += units[first : max(first + 1, (rank + 1) * part.units // ranks)]
            start += part.size
        dims[cut.dim] = np.concatenate(held)
    return dims


@pytest.mark.parametrize("seed", range(300))
def test_random_shards_of_random_layouts(seed):
    """Each rank holds what plain splits give it; the replicas of an element are numbered 0, 1, 2, ... over the axes of
    its view; data ranks hold the same."""
    draw = random.Random(seed)
    layout = random_layout(draw)
    shard = random_shard(draw, layout)
    whole = np.arange(shard.numel).reshape(shard.shape)
    # by data rank and stage: of each element, the numbers and how many there should be
    copies: dict[tuple, list[list[tuple[int, int]]]] = {}
    for rank in range(layout.world):
        position = Position(layout, rank)
        coords = position.coords(shard.view)
        local = np.full(shard.local_shape(layout), -1)
        apart = tuple(at for axis, at in coords.items() if axis not in shard.axes)
        seen = copies.setdefault(apart, [[] for _ in range(shard.numel)])
        for piece in shard.pieces(position):
            local[piece.local.slices] = whole[piece.whole.slices]
            for element in whole[piece.whole.slices].ravel():
                seen[element].append((piece.copy, math.prod(n for _, n in piece.copied_over)))
        dims = indices_of(shard, layout, coords)
        real = np.all(np.meshgrid(*[dim >= 0 for dim in dims], indexing="ij"), 0)
        assert (local == np.where(real, whole[np.ix_(*dims)], -1)).all()
    for seen in copies.values():
        for numbers in seen:
            assert sorted(numbers) == [(copy, len(numbers)) for copy in range(len(numbers))]
        assert all(seen), "each element is held"


REFUSED = {
    "one axis cuts two dims": ({"cuts": (Cut("tp", 0), Cut("tp", 1))}, "can be cut once"),
    "one dim is cut twice": (
        {"view": "expert", "cuts": (Cut("ep", 0), Cut("etp", 0))},
        "can be cut once",
    ),
    "an axis of another view": ({"cuts": (Cut("ep", 0),)}, "ep is not one of the axes pp, tp"),
    "a data axis": ({"grad_sum": ("dp",)}, "dp is not one of the axes"),
    "cut and summed": ({"cuts": (Cut("tp", 0),), "grad_sum": ("tp",)}, "hold different parts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_shard_that_no_rank_could_hold_is_refused(name):
    fields, told = REFUSED[name]
    with pytest.raises(ValueError, match=told):
        Shard((4, 4), **fields)


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
    grid = Grid(Layout(**sizes).sizes("dense"))
    for axes in (("tp",), ("pp",), ("dp",), ("dp", "cp"), ("pp", "tp")):
        assert sorted(r for group in grid.groups(*axes) for r in group) == list(range(grid.world))
    assert grid.group(0, "tp") == list(range(grid.sizes["tp"]))
    assert all(grid.rank(**grid.coords(rank)) == rank for rank in range(grid.world))


def test_groups_are_megatrons():
    grid = Grid(Layout(tp=2, pp=4, dp=2).sizes("dense"))
    assert grid.groups("tp")[:2] == [[0, 1], [2, 3]]
    assert grid.groups("dp")[:2] == [[0, 2], [1, 3]]
    assert grid.groups("pp")[:2] == [[0, 4, 8, 12], [1, 5, 9, 13]]


def test_the_expert_view_keeps_the_pipeline_stages():
    layout = Layout(tp=2, pp=2, dp=4, ep=4, etp=1)
    grid, expert = Grid(layout.sizes("dense")), Grid(layout.sizes("expert"))
    assert expert.sizes == {"pp": 2, "edp": 2, "ep": 4, "etp": 1} and expert.world == grid.world
    assert expert.groups("pp") == grid.groups("pp")


def test_the_sizes_of_a_layout():
    layout = Layout.of(ParallelConfig(2, 4, data_parallel_size=3))
    assert (layout.ranks_of_copy, layout.world, layout.name) == (8, 24, "pp 4 x dp 3 x tp 2")
    assert layout.sizes("expert") == {"pp": 4, "edp": 3, "ep": 1, "etp": 2}
    assert Layout.of(ParallelConfig()).world == 1
    many = Layout(tp=2, dp=4, cp=2, ep=4, etp=1, dp_replicas=2)
    assert many.name == "pp 1 x dp 4 x cp 2 x tp 2 x ep 4 x replica 2"
    assert many.sizes("replicas") == {"pp": 1, "replica": 2, "shard": 2, "cp": 2, "tp": 2}


@pytest.mark.parametrize(
    "layout, view, told",
    [
        (Layout(dp=4, ep=3), "expert", r"\(3 x 1\) must divide the 4 ranks of a pipeline stage"),
        (Layout(dp=4, dp_replicas=3), "replicas", r"data-parallel-size \(4\) must be divisible"),
    ],
)
def test_ranks_that_a_view_cannot_have_are_refused(layout, view, told):
    with pytest.raises(ValueError, match=told):
        layout.sizes(view)
