"""Breaks of weights that are cut over several axes, for which no setting asks yet: name -> replacements, and the law of
`several_axes.py` that must notice."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from megascratch.data_parallel import base
from megascratch.data_parallel.base import DataParallel
from megascratch.data_parallel.ddp import DDP
from megascratch.data_parallel.partial_grads import partial_blocks
from megascratch.parallel.collectives import start_all_reduce
from megascratch.parallel.shard import Shard
from tests.support.several_axes import weights_are_those_of_one_process

Law = Callable[[Path, Callable], None]


@cache
def ddp_on(layout: str) -> Law:
    return lambda folder, run: weights_are_those_of_one_process("ddp", layout, run)


def axes_without_the_experts(self):
    return tuple(axis for axis in plain_axes(self) if axis != "ep")


def over_the_first_axis_alone(shard, position):
    blocks = partial_blocks(shard, position)
    return [block for block in blocks if block.axis == blocks[0].axis]


def without_shared_units(shard, position):
    return [block for block in partial_blocks(shard, position) if block.axis in shard.grad_sum]


def within_stages(shard, position):
    return [block for block in partial_blocks(shard, position) if block.axis != "pp"]


def over_dense_data_ranks(self, bucket):
    return start_all_reduce(bucket.grads, self.mesh.data)


def counted_on_each_data_rank(self):
    with patch.object(DDP, "_replica", lambda self, bucket: 0):
        return plain_counted(self)


def counted_on_the_first_data_rank(self):
    return plain_counted(self) if self.mesh.data.is_first else {}


def second_cut_from_the_first_row(self, cut, ranks, rank):
    return plain_runs(self, cut, ranks, rank if cut is self.cuts[0] else 0)


def of_matrices(self):
    return len(self.shape) > 1


plain_axes = Shard.axes.fget
plain_runs = Shard.runs
plain_counted = DataParallel._counted

BREAKS: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "copies counted without the axis of the experts": (
        [(Shard, "axes", property(axes_without_the_experts))],
        ddp_on("dp4 ep2 etp2"),
    ),
    "gradient not summed over the second of its axes": (
        [(base, "partial_blocks", over_the_first_axis_alone)],
        ddp_on("dp4 ep2 etp2"),
    ),
    "gradients of units shared along a second dim not summed": (
        [(base, "partial_blocks", without_shared_units)],
        ddp_on("dp4 ep2 etp2"),
    ),
    "gradient of a weight of all stages not summed over them": (
        [(base, "partial_blocks", within_stages)],
        ddp_on("tp2 pp2 ep2 etp1"),
    ),
    "bucket of experts summed over the dense data ranks": (
        [(DDP, "_reduce", over_dense_data_ranks)],
        ddp_on("dp4 ep2 etp2"),
    ),
    "an expert weight counts on each data rank in the norm": (
        [(DataParallel, "_counted", counted_on_each_data_rank)],
        ddp_on("dp4 ep2"),
    ),
    "experts on other data ranks left out of the norm": (
        [(DataParallel, "_counted", counted_on_the_first_data_rank)],
        ddp_on("dp4 ep2 etp2"),
    ),
    "the offset of a second cut dropped": (
        [(Shard, "runs", second_cut_from_the_first_row)],
        ddp_on("dp4 ep2 etp2"),
    ),
    "weight decay by the number of dims": (
        [(Shard, "decays", property(of_matrices))],
        ddp_on("dp4 ep2 etp2"),
    ),
}
