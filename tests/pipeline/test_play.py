"""The simulator gives the textbook's bubbles and peaks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.pipeline.passes import ScheduleError, add_transfers, compile_order
from megascratch.pipeline.play import play, uniform
from tests.pipeline.orders import parse, zero_bubble

ONE_TWO = uniform(F=1, B=2)


def test_one_f_one_b_of_4_ranks_and_8_microbatches_takes_33():
    timeline = play(compile_order("1f1b", 4, 8), ONE_TWO)
    assert timeline.total == 33
    assert [round(timeline.bubble(rank), 3) for rank in range(4)] == [0.273] * 4
    assert [timeline.peak(rank) for rank in range(4)] == [4, 3, 2, 1]


def test_the_timeline_is_this_staircase():
    assert play(compile_order("1f1b", 3, 3), ONE_TWO).draw() == [
        "F0 F1 F2 .  .  .  .  B0 -  .  B1 -  .  B2 -",
        ".  F0 F1 .  .  B0 -  F2 B1 -  .  B2 -  .  .",
        ".  .  F0 B0 -  F1 B1 -  F2 B2 -  .  .  .  ."]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_bubbles_are_the_textbooks(ranks, rounds, chunks):
    """(p - 1) / (v m + p - 1) of the time for p ranks, m micro-batches, v chunks (arXiv 2104.04473, section 2.2)."""
    microbatches = ranks * rounds
    names = {"gpipe": 1, "1f1b": 1, "interleaved": chunks}
    for name, v in names.items():
        timeline = play(compile_order(name, ranks, microbatches, v), ONE_TWO)
        expected = (ranks - 1) / (v * microbatches + ranks - 1)
        for rank in range(ranks):
            assert timeline.bubble(rank) == pytest.approx(expected), name


def test_peaks_are_all_microbatches_under_gpipe_and_the_ranks_that_follow_under_1f1b():
    gpipe, one_f_one_b = (play(compile_order(name, 4, 8), ONE_TWO) for name in ("gpipe", "1f1b"))
    assert [gpipe.peak(rank) for rank in range(4)] == [8, 8, 8, 8]
    assert [one_f_one_b.peak(rank) for rank in range(4)] == [4, 3, 2, 1]


def test_halves_of_the_backward_fill_the_bubble():
    """H1 of arXiv 2401.10241: (p - 1)(F + I - W) of bubble instead of (p - 1)(F + I + W), at 1F1B's highest peak."""
    timeline = play(add_transfers([zero_bubble(rank, 4, 8) for rank in range(4)]), uniform(F=1, I=1, W=1))
    assert timeline.total == 8 * 3 + 3
    assert [timeline.peak(rank) for rank in range(4)] == [4, 4, 4, 4]


def test_evaluation_streams_through_the_stages():
    assert play(compile_order("forward_only", 4, 8), ONE_TWO).total == 8 + 3


def test_transfers_run_beside_compute_and_one_after_the_other_on_a_link():
    """A send of 4 units delays the other rank, not its own; the second message waits for the first."""
    timeline = play(add_transfers(parse("F0 F1 F2", "F0 F1 F2")), uniform(F=1, transfer=4))
    first, second = timeline.spans
    assert [(str(s.action), s.start, s.end) for s in first] == [
        ("F0", 0, 1), ("SF0", 1, 5), ("F1", 1, 2), ("SF1", 2, 9), ("F2", 2, 3), ("SF2", 3, 13)]
    assert [(str(s.action), s.start, s.end) for s in second] == [
        ("RF0", 0, 5), ("RF1", 0, 9), ("F0", 5, 6), ("RF2", 6, 13), ("F1", 9, 10), ("F2", 13, 14)]


def test_a_slow_stage_sets_the_pace():
    """Cost may depend on the rank: 8 micro-batches through a stage of 2 + 4, behind one of 1 + 2."""
    timeline = play(compile_order("1f1b", 2, 8), lambda rank, action: {"F": 1, "B": 2}.get(action.op, 0) * (1 + rank))
    assert timeline.total == 1 + 8 * 6 + 2
    assert timeline.bubble(1) == pytest.approx(3 / 51)


def test_an_order_that_would_hang_cannot_be_played():
    orders = parse("F0 SF0 F1 RB0 RB1 B0 B1 SF1", "RF0 RF1 F0 F1 B0 SB0 B1 SB1")
    with pytest.raises(ScheduleError, match="circular wait"):
        play(orders, ONE_TWO)
