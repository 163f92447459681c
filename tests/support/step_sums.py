"""The numbers of a step as each rank reads them, against sums that are written out by hand."""

import math
from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch

import torch

from megascratch.config.exit_codes import EXIT_INTERVAL, INTERRUPTED, PREEMPTED
from megascratch.parallel import collectives
from megascratch.training import step_numbers
from megascratch.training.step_numbers import Announcement, StepNumbers
from tests.support.layout_runs import config_of, synthetic_batch
from tests.support.rank_pool import mesh_of, on_ranks
from tests.support.trainers import build_trainer

NAN = math.nan
INF = math.inf


class OwnNumbers(NamedTuple):
    """What one rank adds."""

    norm_parts: list[float]  # the last one is that of replicas
    loss_parts: list[float]
    says: Announcement = Announcement()
    zeros: float | None = None


QUIET = OwnNumbers([0.0, 0.0, 0.0], [0.0, 0.0])

CASES: dict[str, tuple[list[OwnNumbers], StepNumbers]] = {
    "each rank adds to slots and terms of its own": (
        [
            OwnNumbers([9.0, 0.0, 0.0], [0.5, 0.0]),
            OwnNumbers([0.0, 4.0, 0.0], [0.25, 8.0]),
            OwnNumbers([3.0, 0.0, 100.0], [0.0, 1.0]),
            QUIET,
        ],
        StepNumbers(4.0, [0.75, 9.0], overflow=False, exit_code=0, saving=False),
    ),
    "a slot has an overflow": (
        [QUIET, QUIET, OwnNumbers([0.0, INF, 0.0], [2.0, 0.0]), QUIET],
        StepNumbers(INF, [2.0, 0.0], overflow=True, exit_code=0, saving=False),
    ),
    "a replica of the last rank has an overflow": (
        [OwnNumbers([16.0, 0.0, 0.0], [1.0, 0.0]), QUIET, QUIET, QUIET._replace(norm_parts=[0, 0, NAN])],
        StepNumbers(4.0, [1.0, 0.0], overflow=True, exit_code=0, saving=False),
    ),
    "a term that is not a number is no overflow": (
        [QUIET._replace(loss_parts=[0.0, NAN]), QUIET, QUIET, QUIET],
        StepNumbers(0.0, [0.0, NAN], overflow=False, exit_code=0, saving=False),
    ),
    "three ranks ask to stop, for two reasons": (
        [
            QUIET._replace(says=Announcement(EXIT_INTERVAL)),
            QUIET._replace(says=Announcement(PREEMPTED)),
            QUIET,
            QUIET._replace(says=Announcement(PREEMPTED)),
        ],
        StepNumbers(0.0, [0.0, 0.0], overflow=False, exit_code=PREEMPTED, saving=False),
    ),
    "one rank asks to stop and another one saves": (
        [QUIET, QUIET._replace(says=Announcement(saving=True)), QUIET._replace(says=Announcement(INTERRUPTED)), QUIET],
        StepNumbers(0.0, [0.0, 0.0], overflow=False, exit_code=INTERRUPTED, saving=True),
    ),
    "all ranks save": (
        [QUIET._replace(says=Announcement(saving=True))] * 4,
        StepNumbers(0.0, [0.0, 0.0], overflow=False, exit_code=0, saving=True),
    ),
    "zeros are counted": (
        [QUIET._replace(zeros=number) for number in (5.0, 0.0, 2.0**40, 1.0)],
        StepNumbers(0.0, [0.0, 0.0], overflow=False, exit_code=0, saving=False, num_zeros=2**40 + 6),
    ),
}  # fmt: skip


def read_on_rank(cases: list[list[OwnNumbers]]) -> list[StepNumbers]:
    """On a rank: the numbers of each case."""
    mesh = mesh_of(tp=2, dp=2)
    read = []
    for ranks in cases:
        own = ranks[mesh.rank]
        norm_parts = torch.tensor(own.norm_parts, dtype=torch.float64)
        loss_parts = torch.tensor(own.loss_parts, dtype=torch.float64)
        zeros = None if own.zeros is None else torch.tensor(own.zeros, dtype=torch.float64)
        read.append(
            step_numbers.sum_over_ranks(norm_parts, loss_parts, own.says, mesh.world, zeros)
        )
    return read


def every_rank_reads_the_same_sums(run: Callable = on_ranks) -> None:
    """The law."""
    cases = [ranks for ranks, _ in CASES.values()]
    for rank, read in enumerate(run(4, read_on_rank, cases)):
        for (name, (_, expected)), found in zip(CASES.items(), read, strict=True):
            assert repr(found) == repr(expected), f"rank {rank}: {name}"


def step_with_overflow(rank: int) -> tuple[bool, str, int]:
    """On a rank: a step in which an element of the summed gradients of one rank is not a number. Returns whether the
    step was skipped, what is wrong with it, and how often the step talked to all ranks."""
    trainer = build_trainer(config_of(num_layers=2, data_parallel_size=2))
    finish = trainer.data_parallel.finish

    def spoilt() -> None:
        finish()
        if trainer.mesh.rank == rank:
            trainer.data_parallel.owned[-1].grads[0] = NAN

    trainer.data_parallel.finish = spoilt
    asked = []
    start = collectives.start_all_reduce

    def noted(x, axis, *op):
        asked.append(axis.name)
        return start(x, axis, *op)

    batches = [synthetic_batch(trainer.config, [trainer.mesh.rank])]
    with patch.object(collectives, "start_all_reduce", noted):
        result = trainer.train_step(batches, 1e-2, 1, judge=_only_the_norm)
    return result.skipped, result.wrong, asked.count("world")


def _only_the_norm(loss: float, grad_norm: float) -> str:
    return "" if math.isfinite(grad_norm) else "not finite"


def an_overflow_of_one_replica_stops_all(run: Callable = on_ranks) -> None:
    """The law, of DDP, where the gradients of the second rank do not count in the norm."""
    for rank, wrong in ((-1, ""), (0, "not finite"), (1, "not finite")):
        for found in run(2, step_with_overflow, rank):
            assert found == (bool(wrong), wrong, 1), f"rank {rank} has an overflow"
