"""A mesh in, how fast each of its axes carries bytes out: a small all-reduce over every axis and a message over every
link between stages, timed on all ranks at once.
"""

import statistics
import time
from typing import NamedTuple

import torch

from megascratch.parallel.collectives import all_gather_objects, all_reduce, barrier
from megascratch.parallel.mesh import Axis, Mesh

ELEMENTS = 1 << 20  # fp32: 4 MiB
ROUNDS = 5
MUCH_SLOWER = 3.0  # than the median group of an axis


class Bandwidth(NamedTuple):
    """Of one group of ranks."""

    axis: str
    ranks: tuple[int, ...]
    bytes_per_second: float
    """Of the tensor that is reduced; the slowest rank's."""


def bandwidths(mesh: Mesh) -> list[Bandwidth]:
    """Of every group of every axis that has more than one rank; called by all ranks, the same on all.

    Raises: CommunicationError naming the axis and the rank.
    """
    mine = []
    for axis in dict.fromkeys((mesh.tp, mesh.dp, mesh.cp, mesh.pp, mesh.world)):
        if axis.size > 1:
            mine.append((axis.name, axis.ranks, _timed(axis, mesh.device)))
        barrier(mesh.world)
    found: dict[tuple[str, tuple[int, ...]], float] = {}
    for told in all_gather_objects(mine, mesh.world):
        for name, ranks, speed in told:
            found[name, ranks] = min(speed, found.get((name, ranks), speed))
    return [Bandwidth(name, ranks, speed) for (name, ranks), speed in found.items()]


def _timed(axis: Axis, device: torch.device) -> float:
    tensor, seconds = torch.ones(ELEMENTS, device=device), []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        all_reduce(tensor, axis)
        tensor[0].item()  # waits for the device
        seconds.append(time.perf_counter() - begin)
    return tensor.nbytes / statistics.median(seconds[1:])  # the first one connects


def slow_groups(found: list[Bandwidth]) -> list[Bandwidth]:
    """Groups that are much slower than the median of their axis."""
    by_axis: dict[str, list[float]] = {}
    for speed in found:
        by_axis.setdefault(speed.axis, []).append(speed.bytes_per_second)
    return [one for one in found if one.bytes_per_second * MUCH_SLOWER < statistics.median(by_axis[one.axis])]
