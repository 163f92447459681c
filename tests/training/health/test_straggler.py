"""Who makes the others wait is named with the part of the step that takes so long, after several intervals."""

import pytest

from megascratch.runtime.timers import PHASES
from megascratch.training.health.straggler import Stragglers, slow_ranks

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
        (
            [EVEN, EVEN, [0.01, 3.0, 0.1], [0.01, 6.0, 0.1]],
            [0, 0, 1, 1],
            [(3, "forward and backward")],
        ),
        ([EVEN, [0.01, 1.0, 2.0]], [0, 1], [(1, "update")]),  # alone on its stage: beside all
        ([SLOW_DATA], [0], []),
    ],
)
def test_a_rank_is_slow_beside_its_peers(own, stages, found):
    peers: dict[int, list[int]] = {}
    for rank, stage in enumerate(stages):
        peers.setdefault(stage, []).append(rank)
    slow = slow_ranks(own, list(peers.values()), 1.5)
    assert [(one.rank, PHASES[one.phase]) for one in slow] == found


def test_a_line_comes_when_a_rank_was_slow_often_enough_in_a_row():
    watch = Stragglers([[0, 1, 2]], ["a", "a", "b"], 1.5, 3)
    slow, even = [EVEN, EVEN, SLOW_DATA], [EVEN] * 3
    told = [watch.lines(own) for own in (slow, slow, even, slow, slow, slow, slow)]
    assert [len(lines) for lines in told] == [0, 0, 0, 0, 0, 1, 0]
    assert told[5] == [
        "straggler: rank 2 (b) takes 2.000 s for data, its peers 0.010 s, in 3 log intervals in a row"
    ]
