"""The simulator gives the textbook's bubbles and peaks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.pipeline.passes import ScheduleError, add_transfers, compile_order, placement_of
from megascratch.pipeline.simulate import overlapped, simulate, uniform
from tests.support.schedules import parse

ONE_TWO = uniform(F=1, B=2)


def test_one_f_one_b_of_4_ranks_and_8_microbatches_takes_33():
    timeline = simulate(compile_order("1f1b", 4, 8), ONE_TWO)
    assert timeline.total == 33
    assert [round(timeline.bubble(rank), 3) for rank in range(4)] == [0.273] * 4
    assert [timeline.peak(rank) for rank in range(4)] == [4, 3, 2, 1]


def test_the_timeline_is_this_staircase():
    assert simulate(compile_order("1f1b", 3, 3), ONE_TWO).draw() == [
        "F0 F1 F2 .  .  .  .  B0 -  .  B1 -  .  B2 -",
        ".  F0 F1 .  .  B0 -  F2 B1 -  .  B2 -  .  .",
        ".  .  F0 B0 -  F1 B1 -  F2 B2 -  .  .  .  .",
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_bubbles_are_the_textbooks(ranks, rounds, chunks):
    """(p - 1) / (v m + p - 1) of the time for p ranks, m micro-batches, v chunks (arXiv 2104.04473, section 2.2)."""
    microbatches = ranks * rounds
    names = {"gpipe": 1, "1f1b": 1, "interleaved": chunks}
    for name, v in names.items():
        timeline = simulate(compile_order(name, ranks, microbatches, v), ONE_TWO)
        expected = (ranks - 1) / (v * microbatches + ranks - 1)
        for rank in range(ranks):
            assert timeline.bubble(rank) == pytest.approx(expected), name


def test_peaks_are_all_microbatches_under_gpipe_and_the_ranks_that_follow_under_1f1b():
    gpipe, one_f_one_b = (
        simulate(compile_order(name, 4, 8), ONE_TWO) for name in ("gpipe", "1f1b")
    )
    assert [gpipe.peak(rank) for rank in range(4)] == [8, 8, 8, 8]
    assert [one_f_one_b.peak(rank) for rank in range(4)] == [4, 3, 2, 1]


THIRDS = {
    "1f1b": (33, 33, [4, 3, 2, 1]),
    "zb_h1": (27, 27, [4, 4, 4, 4]),
    "zb_h2": (27, 24, [7, 7, 7, 7]),
    "zb_v": (25.5, 24, [8, 8, 8, 8]),
    "dualpipe_v": (25.5, 25.5, [9, 9, 9, 9]),
}


@pytest.mark.parametrize("schedule", THIRDS)
def test_zero_bubble_schedules_are_the_papers(schedule):
    """p = 4, m = 8, F = I = W: 1F1B's bubble of 9 of 33 is a third of that under H1, and gone under H2 and V, where
    ranks only start and end apart. The peaks of a V count halves of a rank's layers."""
    chunks = 2 if schedule.endswith("v") else 1
    total, cost, peaks = THIRDS[schedule]
    timeline = simulate(
        compile_order(schedule, 4, 8, chunks),
        uniform(F=1 / chunks, B=2 / chunks, I=1 / chunks, W=1 / chunks),
        placement_of(schedule, 4, chunks),
    )
    assert (timeline.total, timeline.cost) == (total, cost)
    assert timeline.bubble_rate == pytest.approx((cost - 24) / cost)
    assert [timeline.peak(rank) for rank in range(4)] == peaks


# arXiv 2401.10241, 8 ranks. Times of Table 9 (F, B, W, communication in ms; 3 and 4 layers a rank), then Table 5:
# micro-batches, layers, times, bubble of 1F1B, interleaved 1F1B (a layer a chunk), ZB-H1, ZB-H2.
PUBLISHED = [
    (24, 3, (18.522, 18.086, 9.337, 0.601), 0.2431, 0.1055, 0.1585, 0.1083),
    (32, 3, (18.513, 18.086, 9.331, 0.626), 0.1985, 0.0818, 0.1242, 0.0837),
    (64, 3, (18.546, 18.097, 9.321, 0.762), 0.1240, 0.0443, 0.0674, 0.0444),
    (24, 4, (29.718, 29.444, 19.927, 0.527), 0.2347, 0.0808, 0.1323, 0.0698),
    (32, 4, (29.802, 29.428, 19.530, 0.577), 0.1898, 0.0628, 0.1045, 0.0559),
    (64, 4, (29.935, 29.621, 19.388, 0.535), 0.1091, 0.0320, 0.0554, 0.0294),
]


@pytest.mark.parametrize(
    ("microbatches", "layers", "times", "one_f_one_b", "interleaved", "h1", "h2"), PUBLISHED
)
def test_published_bubbles_follow_from_published_times(
    microbatches, layers, times, one_f_one_b, interleaved, h1, h2
):
    f, b, w, transfer = times
    cost = uniform(F=f, B=b + w, I=b, W=w, transfer=transfer)
    for name, published in {"1f1b": one_f_one_b, "zb_h1": h1, "zb_h2": h2}.items():
        assert simulate(compile_order(name, 8, microbatches), cost).bubble_rate == pytest.approx(
            published, abs=1e-4
        ), name
    piece = overlapped(uniform(F=f / layers, B=(b + w) / layers, transfer=transfer), layers)
    found = simulate(compile_order("interleaved", 8, microbatches, layers), piece).bubble_rate
    assert found == pytest.approx(interleaved, abs=1e-4)


def test_evaluation_streams_through_the_stages():
    assert simulate(compile_order("forward_only", 4, 8), ONE_TWO).total == 8 + 3


def test_transfers_run_beside_compute_and_one_after_the_other_on_a_link():
    """A send of 4 units delays the other rank, not its own; the second message waits for the first."""
    timeline = simulate(add_transfers(parse("F0 F1 F2", "F0 F1 F2")), uniform(F=1, transfer=4))
    first, second = timeline.spans
    assert [(str(s.action), s.start, s.end) for s in first] == [
        ("F0", 0, 1),
        ("SF0", 1, 5),
        ("F1", 1, 2),
        ("SF1", 2, 9),
        ("F2", 2, 3),
        ("SF2", 3, 13),
    ]
    assert [(str(s.action), s.start, s.end) for s in second] == [
        ("RF0", 0, 5),
        ("RF1", 0, 9),
        ("F0", 5, 6),
        ("RF2", 6, 13),
        ("F1", 9, 10),
        ("F2", 13, 14),
    ]


def test_a_blocking_send_holds_its_rank_up():
    """The same messages of 4 units, each of which now costs its sender the time."""
    timeline = simulate(
        add_transfers(parse("F0 F1 F2", "F0 F1 F2")), uniform(F=1, transfer=4), blocking_sends=True
    )
    assert [(str(s.action), s.start, s.end) for s in timeline.spans[0]] == [
        ("F0", 0, 1),
        ("SF0", 1, 5),
        ("F1", 5, 6),
        ("SF1", 6, 10),
        ("F2", 10, 11),
        ("SF2", 11, 15),
    ]
    assert [(str(s.action), s.start, s.end) for s in timeline.spans[1] if s.action.op == "F"] == [
        ("F0", 5, 6),
        ("F1", 10, 11),
        ("F2", 15, 16),
    ]


def test_a_slow_stage_sets_the_pace():
    """Cost may depend on the rank: 8 micro-batches through a stage of 2 + 4, behind one of 1 + 2."""
    timeline = simulate(
        compile_order("1f1b", 2, 8),
        lambda rank, action: {"F": 1, "B": 2}.get(action.op, 0) * (1 + rank),
    )
    assert timeline.total == 1 + 8 * 6 + 2
    assert timeline.bubble(1) == pytest.approx(3 / 51)


def test_an_order_that_would_hang_cannot_be_played():
    orders = parse("F0 SF0 F1 RB0 RB1 B0 B1 SF1", "RF0 RF1 F0 F1 B0 SB0 B1 SB1")
    with pytest.raises(ScheduleError, match="circular wait"):
        simulate(orders, ONE_TWO)
