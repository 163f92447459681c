"""Breaks of the numbers that all ranks share in a step; each with the law of `step_sums.py` that must notice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megascratch.data_parallel.base import DataParallel
from megascratch.parallel.collectives import all_reduce
from megascratch.training import step_numbers
from megascratch.training.step_numbers import STOP_CODES
from tests.support.step_sums import (
    an_overflow_of_one_replica_stops_all,
    every_rank_reads_the_same_sums,
)

Law = Callable[[Path, Callable], None]
ANNOUNCED = len(STOP_CODES) + 1  # the last numbers of the vector; before them the overflow


def sums(folder: Path, run: Callable) -> None:
    every_rank_reads_the_same_sums(run)


def overflows(folder: Path, run: Callable) -> None:
    an_overflow_of_one_replica_stops_all(run)


# ---- replacements ----------------------------------------------------------------------------------------------


def without_the_overflow_of_the_last_rank(vector, world):
    if world.is_last:
        vector[-ANNOUNCED - 1] = 0
    return all_reduce(vector, world)


def one_slot_later_on_the_last_rank(vector, world):
    return all_reduce(vector.roll(1) if world.rank == 2 else vector, world)


def own_reasons_to_stop(vector, world):
    own = vector.clone()
    vector = all_reduce(vector, world)
    vector[-ANNOUNCED:-1] = own[-ANNOUNCED:-1]
    return vector


def saves_before_the_reasons(vector, world):
    vector[-ANNOUNCED:] = vector[-ANNOUNCED:].roll(1)
    return all_reduce(vector, world)


def largest(vector, world):
    return all_reduce(vector, world, torch.distributed.ReduceOp.MAX)


def nothing_elsewhere(self):
    return []


BREAKS: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "the numbers of a step miss a rank's overflow": (
        [(step_numbers, "all_reduce", without_the_overflow_of_the_last_rank)],
        sums,
    ),
    "the slots of the norm are shifted on one rank": (
        [(step_numbers, "all_reduce", one_slot_later_on_the_last_rank)],
        sums,
    ),
    "a request to stop is seen by one rank only": (
        [(step_numbers, "all_reduce", own_reasons_to_stop)],
        sums,
    ),
    "saves are counted in the place of a reason to stop": (
        [(step_numbers, "all_reduce", saves_before_the_reasons)],
        sums,
    ),
    "the numbers of a step are the largest instead of the sum": (
        [(step_numbers, "all_reduce", largest)],
        sums,
    ),
    "the overflow of a replica is not seen": (
        [(DataParallel, "_counted_elsewhere", nothing_elsewhere)],
        overflows,
    ),
}
