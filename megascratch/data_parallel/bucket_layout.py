"""A list of parameters in, their places in flat buckets out: pure arithmetic, equal on all ranks with equal lists.

parameters, last first:   |  w9  |  b9  | w8 | ... |  w5  |  b5  | ... |    embedding    |
bucket 0:                 [ w9 | w8 | ... | b9 | b8 | ... | padding ]   matrices first: they decay
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

ALIGN = 64  # elements: each parameter starts on a cache line, as matrix kernels like it


class BucketEntry(NamedTuple):
    """What the plan must know of a parameter."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    decays: bool
    alone: bool  # in a bucket of its own


class ParamRange(NamedTuple):
    """A parameter's range in its bucket."""

    name: str
    start: int
    stop: int


class BucketLayout(NamedTuple):
    """One bucket: `places` in flat order, with those that decay in [0, decay_end)."""

    places: tuple[ParamRange, ...]
    size: int  # with padding; divides by the number of data-parallel ranks
    decay_end: int
    dtype: torch.dtype
    alone: bool


def default_bucket_size(weights: int, data_ranks: int) -> int:
    """Elements: an eighth of a rank's weights, so that most reductions run beside the backward of the rest, but no
    fewer than 1 M, where latency would count, and no more than Megatron-LM's max(40 M, 1 M x ranks)."""
    return min(max(weights // 8, 1_000_000), max(40_000_000, 1_000_000 * data_ranks))


def plan_buckets(entries: Sequence[BucketEntry], bucket_size: int, data_ranks: int) -> list[BucketLayout]:
    """Cuts `entries` (in order of registration) into buckets of about `bucket_size` elements, last parameters first,
    because backward reaches them first; those that stand alone come at the end."""
    groups: list[list[BucketEntry]] = []
    open_groups: dict[torch.dtype, list[BucketEntry]] = {}
    for entry in reversed([entry for entry in entries if not entry.alone]):
        group = open_groups.get(entry.dtype)
        if group is None:
            group = open_groups[entry.dtype] = []
            groups.append(group)
        group.append(entry)
        if sum(map(_numel, group)) >= bucket_size:
            del open_groups[entry.dtype]
    groups += [[entry] for entry in entries if entry.alone]
    return [_plan(group, data_ranks) for group in groups]


def _plan(group: Iterable[BucketEntry], data_ranks: int) -> BucketLayout:
    group = sorted(group, key=lambda entry: not entry.decays)  # stable
    places, start, decay_end = [], 0, 0
    for entry in group:
        places.append(ParamRange(entry.name, start, start + _numel(entry)))
        start = _round_up(start + _numel(entry), ALIGN)
        decay_end = start if entry.decays else decay_end
    return BucketLayout(tuple(places), _round_up(start, ALIGN * data_ranks), decay_end, group[0].dtype, group[0].alone)


def _numel(entry: BucketEntry) -> int:
    return torch.Size(entry.shape).numel()


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
