"""Assigns parameters to ranges of flat gradient buckets: pure arithmetic, equal on all ranks with equal lists.

parameters, last first:   |  w9  |  b9  | w8 | ... |  w5  |  b5  | ... |    embedding    |
bucket 0:                 [ w9 | w8 | ... | b9 | b8 | ... | padding ]   matrices first: they decay
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from megascratch.config.layout import View

ALIGN = 64  # elements: each parameter starts on a cache line, as matrix kernels like it


class BucketEntry(NamedTuple):
    """A parameter as the layout sees it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    view: View  # whose data ranks sum its gradient
    decays: bool
    alone: bool  # needs a bucket of its own
    decoupled: bool = False  # has the decoupled learning rate


class ParamRange(NamedTuple):
    """A parameter's range in its bucket."""

    name: str
    start: int
    stop: int


class BucketLayout(NamedTuple):
    """One bucket: `places` in order of their elements; [0, decay_end) holds the parameters with weight decay."""

    places: tuple[ParamRange, ...]
    size: int  # with padding; divisible by the number of data-parallel ranks of its view
    decay_end: int
    dtype: torch.dtype
    view: View
    alone: bool
    decoupled: bool


def default_bucket_size(weights: int, data_ranks: int) -> int:
    """The number of elements of a bucket: an eighth of a rank's weights, so that most reductions overlap with backward;
    at least 1 M, below which latency dominates, and at most Megatron-LM's max(40 M, 1 M x ranks)."""
    most = max(40_000_000, 1_000_000 * data_ranks)
    return min(max(weights // 8, 1_000_000), most)


def plan_buckets(
    entries: Sequence[BucketEntry],
    bucket_sizes: Mapping[View, int],
    data_ranks: Mapping[View, int],
) -> list[BucketLayout]:
    """Groups `entries` (in order of registration) into buckets of about the size for their view, last parameters first,
    because backward reaches them first. A bucket has one dtype, one learning rate, and one view, whose data ranks sum
    it. Parameters with a bucket of their own come last."""
    groups: list[list[BucketEntry]] = []
    open_groups: dict[tuple[torch.dtype, View, bool], list[BucketEntry]] = {}
    for entry in reversed(entries):
        if entry.alone:
            continue
        kind = (entry.dtype, entry.view, entry.decoupled)
        if kind not in open_groups:
            open_groups[kind] = []
            groups.append(open_groups[kind])
        group = open_groups[kind]
        group.append(entry)
        if sum(map(_numel, group)) >= bucket_sizes[entry.view]:
            del open_groups[kind]
    groups += [[entry] for entry in entries if entry.alone]
    return [_plan(group, data_ranks[group[0].view]) for group in groups]


def _plan(group: Iterable[BucketEntry], data_ranks: int) -> BucketLayout:
    group = sorted(group, key=lambda entry: not entry.decays)  # stable
    places = []
    start = 0
    decay_end = 0
    for entry in group:
        stop = start + _numel(entry)
        places.append(ParamRange(entry.name, start, stop))
        start = _round_up(stop, ALIGN)
        if entry.decays:
            decay_end = start
    size = _round_up(start, ALIGN * data_ranks)
    first = group[0]
    return BucketLayout(
        tuple(places), size, decay_end, first.dtype, first.view, first.alone, first.decoupled
    )


def _numel(entry: BucketEntry) -> int:
    return torch.Size(entry.shape).numel()


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
