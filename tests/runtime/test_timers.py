"""A rank's own time in a step does not include its waits for other ranks."""

import time

import torch

from megascratch.parallel.collectives import all_reduce
from megascratch.runtime.timers import StepTimer
from tests.support.rank_pool import mesh_of, on_ranks

NAP = 2.0  # seconds; longer than a busy machine keeps a rank from its few instructions


def one_sleeps(sleeper: int) -> list[float]:
    """On a rank: a step of three phases; the others wait for the sleeper in the sum."""
    mesh = mesh_of(dp=3)
    phases = StepTimer(mesh.waits)
    all_reduce(torch.ones(1), mesh.world)
    phases.start()
    phases.lap("data")
    if mesh.rank == sleeper:
        time.sleep(NAP)
    all_reduce(torch.ones(1), mesh.world)
    phases.lap("forward and backward")
    phases.lap("update")
    return phases.stop()


def test_waiting_for_others_is_not_a_ranks_own_time():
    own = on_ranks(3, one_sleeps, 1)
    assert [times.index(max(times)) for times in zip(*own, strict=True)][1] == 1
    assert own[1][1] >= NAP > max(own[0][1], own[2][1])


def test_a_step_that_nobody_looks_at_is_not_timed():
    phases = StepTimer()
    phases.lap("data")
    assert phases.stop() == [0.0, 0.0, 0.0]
