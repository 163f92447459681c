"""Measures the network bandwidth of a mesh: a small all-reduce over every axis, timed on all ranks at once."""

import statistics
import time
from typing import NamedTuple

import torch

from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import all_gather_objects, all_reduce, barrier
from megascratch.parallel.mesh import Mesh

ELEMENTS = 1 << 20  # fp32: 4 MiB
ROUNDS = 5
MUCH_SLOWER = 3.0  # than the median group of an axis


class Bandwidth(NamedTuple):
    """The bandwidth of one group of ranks."""

    axis: str
    ranks: tuple[int, ...]
    bytes_per_second: float
    """Bytes of the reduced tensor per second, on the slowest rank."""


def bandwidths(mesh: Mesh) -> list[Bandwidth]:
    """The bandwidth of every group of every axis with more than one rank. Called by all ranks; all get the same result.

    Raises: CommunicationError that names the axis and the rank.
    """
    mine = []
    for axis in dict.fromkeys((mesh.tp, mesh.dp, mesh.cp, mesh.pp, mesh.world)):
        if axis.size > 1:
            mine.append((axis.name, axis.ranks, _timed(axis, mesh.device)))
        barrier(mesh.world)
    slowest: dict[tuple[str, tuple[int, ...]], float] = {}
    for measured in all_gather_objects(mine, mesh.world):
        for name, ranks, speed in measured:
            group = (name, ranks)
            slowest[group] = min(speed, slowest.get(group, speed))
    return [Bandwidth(name, ranks, speed) for (name, ranks), speed in slowest.items()]


def _timed(axis: Axis, device: torch.device) -> float:
    """Bytes per second of an all-reduce over the axis, as this rank sees it: the median of ROUNDS."""
    tensor = torch.ones(ELEMENTS, device=device)
    seconds = []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        all_reduce(tensor, axis)
        tensor[0].item()  # waits for the device
        seconds.append(time.perf_counter() - begin)
    return tensor.nbytes / statistics.median(seconds[1:])  # the first round opens the connections


def slow_groups(found: list[Bandwidth]) -> list[Bandwidth]:
    """Groups that are much slower than the median of their axis."""
    by_axis: dict[str, list[float]] = {}
    for group in found:
        by_axis.setdefault(group.axis, []).append(group.bytes_per_second)
    slow = []
    for group in found:
        median = statistics.median(by_axis[group.axis])
        if group.bytes_per_second * MUCH_SLOWER < median:
            slow.append(group)
    return slow
