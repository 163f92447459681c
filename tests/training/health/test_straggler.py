"""Who makes the others wait is named with the part of the step that takes so long, after several intervals."""

import time

import pytest
import torch

from megascratch.parallel.collectives import all_reduce
from megascratch.training.health.step_timer import PHASES, StepTimer
from megascratch.training.health.straggler import Stragglers, slow_ranks
from tests.support.rank_pool import mesh_of, on_ranks

EVEN = [0.01, 1.0, 0.1]
SLOW_DATA = [2.0, 1.0, 0.1]


@pytest.mark.parametrize(
    ("own", "stages", "found"),
    [
        ([EVEN] * 4, [0, 0, 0, 0], []),
        ([EVEN] * 3 + [SLOW_DATA], [0, 0, 0, 0], [(3, "data")]),
        ([EVEN, SLOW_DATA], [0, 0], [(1, "data")]),  # of two ranks the slower
        ([EVEN, [0.01, 1.4, 0.1]], [0, 0], []),  # below the factor
        ([EVEN, [0.02, 1.0, 0.1]], [0, 0], []),  # twice as long, but of nothing
        ([EVEN, EVEN, [0.01, 3.0, 0.1], [0.01, 3.1, 0.1]], [0, 0, 1, 1], []),  # a longer stage
        ([EVEN, EVEN, [0.01, 3.0, 0.1], [0.01, 6.0, 0.1]], [0, 0, 1, 1], [(3, "forward and backward")]),
        ([EVEN, [0.01, 1.0, 2.0]], [0, 1], [(1, "update")]),  # alone on its stage: beside all
        ([SLOW_DATA], [0], []),
    ],
)
def test_a_rank_is_slow_beside_its_peers(own, stages, found):
    assert [(one.rank, PHASES[one.phase]) for one in slow_ranks(own, stages, 1.5)] == found


def test_a_line_comes_when_a_rank_was_slow_often_enough_in_a_row():
    watch = Stragglers([0, 0, 0], ["a", "a", "b"], 1.5, 3)
    slow, even = [EVEN, EVEN, SLOW_DATA], [EVEN] * 3
    told = [watch.lines(own) for own in (slow, slow, even, slow, slow, slow, slow)]
    assert [len(lines) for lines in told] == [0, 0, 0, 0, 0, 1, 0]
    assert told[5] == ["straggler: rank 2 (b) takes 2.000 s for data, its peers 0.010 s, in 3 log intervals in a row"]


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
