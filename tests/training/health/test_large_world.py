"""No rank but the first one takes memory, or sends more, because there are many ranks."""

import gc
import pickle
import tracemalloc

import pytest

from megascratch.config.layout import Layout
from megascratch.config.settings import GuardConfig
from megascratch.runtime.timers import PHASES
from megascratch.training.health.monitor import RunMonitor
from megascratch.training.health.replicas import MOST_COUNTED, MOST_LISTED, Copy, verdict
from tests.support.large_world import AloneInWorld, OneOf

GUARD = GuardConfig(log_straggler=True, straggler_intervals=1)


def watched(dp: int, rank: int) -> tuple[int, int]:
    """Bytes that a rank keeps at most, and bytes that it sends, for two log lines. The least of three measurements,
    because what another thread allocates meanwhile is counted, too."""
    return min(_watched_once(dp, rank) for _ in range(3))


def _watched_once(dp: int, rank: int) -> tuple[int, int]:
    trainer = OneOf(Layout(tp=8, pp=4, dp=dp), rank)
    gc.collect()
    tracemalloc.start()
    try:
        monitor = RunMonitor(GUARD, trainer)
        assert monitor.slow_ranks() == monitor.slow_ranks() == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak, len(pickle.dumps(trainer.mesh.control.sent))


def test_stragglers_cost_a_rank_nothing_that_grows_with_the_world():
    watched(1, 5)  # imports
    small, large = watched(1, 5), watched(512, 5)
    assert large[1] == small[1]
    assert abs(large[0] - small[0]) < 500
    assert watched(16, 0)[0] > small[0] + 8 * 512, "the measure sees what the first rank keeps"


def test_the_first_rank_names_the_one_slow_rank_of_many():
    trainer = OneOf(Layout(tp=8, pp=4, dp=512), 0)
    monitor = RunMonitor(GUARD, trainer)
    slow = 9_999
    trainer.mesh.control.others = {slow: [30.0] + [0.0] * (len(PHASES) - 1)}
    for rank in range(0, 16_384, 3):
        trainer.mesh.control.others.setdefault(rank, [1.0, 20.0, 1.0])
    monitor.phases.own = dict.fromkeys(PHASES, 1.0)
    (line,) = [line for line in monitor.slow_ranks() if "for data" in line]
    assert line.startswith(f"straggler: rank {slow} (")


@pytest.mark.parametrize(
    ("blocks", "counted"), [(3, ""), (25, "and 15 more"), (5000, "and at least 990 more")]
)
def test_a_rank_tells_at_most_so_many_names_of_blocks_that_differ(blocks, counted):
    """Of a world of 16,384 ranks, of which one has other digests."""
    copies = [Copy(f"w{number:04}", "w", 0, 7) for number in range(blocks)]
    names = {copy.name for copy in copies}
    other = AloneInWorld(5, 16_384)
    verdict(names, copies, other, 2)
    of_names, (_, wanted) = other.sent
    assert len(of_names) == min(blocks, MOST_COUNTED)
    assert [copy.name for copy in wanted] == sorted(names)[:MOST_LISTED]
    spoilt = ("b", [copy._replace(rank=9, digest=8) for copy in copies[:MOST_LISTED]])
    said = verdict(names, copies, AloneInWorld(0, 16_384, {9: spoilt}), 2).splitlines()
    assert len(said) == 1 + min(blocks, MOST_LISTED) + bool(counted)
    assert "b (rank 9) against" in said[1] and said[-1].strip().startswith(counted)
