"""Schedules are their pictures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascratch.config.errors import UserError
from megascratch.config.registry import BUILT_IN
from megascratch.pipeline.schedule import (
    COMPUTE,
    OTHER_END,
    SCHEDULES,
    Action,
    Placement,
    interleaved,
    one_f_one_b,
)
from tests.support.schedules import compute_lines


@given(st.sampled_from([*COMPUTE, *OTHER_END]), st.integers(0, 999), st.integers(0, 99))
def test_an_action_parses_as_it_prints(op, microbatch, chunk):
    action = Action(op, microbatch, chunk)
    assert Action.parse(str(action)) == action


def test_an_action_prints_its_chunk_only_if_there_are_several():
    assert [str(Action("F", 3)), str(Action("B", 3, 1)), str(Action("RF", 12, 2))] == [
        "F3",
        "B3.1",
        "RF12.2",
    ]


@pytest.mark.parametrize("text", ["", "F", "X3", "F3.", "F-1", "F3.1.2", "3F", "SX3", "F3 "])
def test_what_is_no_action_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"is not an action: .* e\.g\. F3 or B3\.1"):
        Action.parse(text)


@given(st.integers(0, 200), st.integers(1, 16), st.booleans())
def test_every_virtual_stage_has_one_place(virtual, ranks, folded):
    placement = Placement(ranks, 200 // ranks + 1, folded)
    assert placement.virtual_stage(*placement.place(virtual)) == virtual


def test_virtual_stages_lie_in_a_loop_or_in_a_v():
    for folded, second in ((False, [3, 4, 5]), (True, [5, 4, 3])):
        placement = Placement(3, 2, folded)
        assert [placement.virtual_stage(rank, 0) for rank in range(3)] == [0, 1, 2]
        assert [placement.virtual_stage(rank, 1) for rank in range(3)] == second


def test_gpipe_is_this_picture():
    assert compute_lines("gpipe", ranks=2, microbatches=3) == [
        "F0 F1 F2 B0 B1 B2",
        "F0 F1 F2 B0 B1 B2",
    ]


def test_one_f_one_b_is_this_picture():
    assert compute_lines("1f1b", ranks=3, microbatches=3) == [
        "F0 F1 F2 B0 B1 B2",
        "F0 F1 B0 F2 B1 B2",
        "F0 B0 F1 B1 F2 B2",
    ]


def test_one_f_one_b_with_fewer_microbatches_than_ranks_is_this_picture():
    assert compute_lines("1f1b", ranks=4, microbatches=2) == [
        "F0 F1 B0 B1",
        "F0 F1 B0 B1",
        "F0 F1 B0 B1",
        "F0 B0 F1 B1",
    ]


def test_interleaved_is_this_picture():
    assert compute_lines("interleaved", ranks=2, microbatches=4, chunks=2) == [
        "F0 F1 F0.1 F1.1 F2 B0.1 F3 B1.1 F2.1 B0 F3.1 B1 B2.1 B3.1 B2 B3",
        "F0 F1 F0.1 B0.1 F1.1 B1.1 F2 B0 F3 B1 F2.1 B2.1 F3.1 B3.1 B2 B3",
    ]


def test_interleaved_runs_the_microbatches_of_a_group_through_all_chunks():
    """Megatron-LM's table for 2 ranks, groups of 3, 5 micro-batches, 2 chunks."""
    forwards = [a for a in interleaved(0, 2, 5, chunks=2, group=3) if a.op == "F"]
    assert [a.microbatch for a in forwards] == [0, 1, 2, 0, 1, 2, 3, 4, 3, 4]
    assert [a.chunk for a in forwards] == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]


def test_a_rest_too_small_to_fill_the_ring_joins_the_first_group():
    forwards = [str(a) for a in interleaved(0, 2, 5, chunks=2) if a.op == "F"]
    assert forwards == ["F0", "F1", "F2", "F0.1", "F1.1", "F2.1", "F3", "F4", "F3.1", "F4.1"]


def test_forward_only_is_this_picture():
    assert compute_lines("forward_only", ranks=2, microbatches=3) == ["F0 F1 F2", "F0 F1 F2"]


def test_zb_h1_is_this_picture():
    assert compute_lines("zb_h1", ranks=3, microbatches=4) == [
        "F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3",
        "F0 F1 I0 F2 I1 W0 F3 I2 W1 I3 W2 W3",
        "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3",
    ]


def test_zb_h2_is_this_picture():
    assert compute_lines("zb_h2", ranks=2, microbatches=4) == [
        "F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3",
        "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3",
    ]


def test_zb_v_is_this_picture():
    assert compute_lines("zb_v", ranks=2, microbatches=3, chunks=2) == [
        "F0 F1 F2 F0.1 I0.1 W0.1 F1.1 I1.1 W1.1 I0 W0 F2.1 I2.1 W2.1 I1 W1 I2 W2",
        "F0 F0.1 F1 F1.1 I0.1 W0.1 F2 I0 W0 F2.1 I1.1 W1.1 I1 I2.1 I2 W1 W2.1 W2",
    ]


def test_dualpipe_v_is_this_picture():
    assert compute_lines("dualpipe_v", ranks=2, microbatches=4, chunks=2) == [
        "F0 F1 F2 F0.1 I0.1 W0.1 F1.1 F3 B1.1 F2.1 B0 B2.1 F3.1 B1 B3.1 I2 W2 I3 W3",
        "F0 F0.1 F1 F1.1 F2 B0.1 F2.1 B0 F3 B1.1 F3.1 B1 B2.1 B2 I3.1 I3 W3.1 W3",
    ]


@pytest.mark.parametrize(
    ("schedule", "chunks", "other"),
    [
        ("zb_h1", 2, "zb_h1 has 1 model chunk per rank, not 2: use zb_v"),
        ("zb_h2", 2, "zb_h2 has 1 model chunk per rank, not 2: use zb_v"),
        ("zb_v", 1, "zb_v has 2 model chunks per rank, not 1: use 2"),
        ("dualpipe_v", 3, "dualpipe_v has 2 model chunks per rank, not 3: use 2"),
    ],
)
def test_a_schedule_made_for_some_chunks_refuses_others(schedule, chunks, other):
    with pytest.raises(UserError, match=other):
        compute_lines(schedule, 2, 4, chunks)


def test_one_f_one_b_refuses_chunks_and_interleaved_refuses_small_groups():
    with pytest.raises(UserError, match="1 model chunk per rank, not 2: use interleaved"):
        one_f_one_b(0, 2, 4, chunks=2)
    with pytest.raises(
        UserError, match=r"group \(2\) must be at least the number of stages \(4\): use 4 or more"
    ):
        interleaved(0, 4, 8, chunks=2, group=2)


@given(st.integers(1, 8), st.integers(1, 40))
def test_one_f_one_b_keeps_at_most_as_many_microbatches_alive_as_ranks_follow(ranks, microbatches):
    for rank in range(ranks):
        alive = 0
        for action in one_f_one_b(rank, ranks, microbatches):
            alive += 1 if action.op == "F" else -1
            assert alive <= ranks - rank


def test_the_table_has_a_row_for_each_setting():
    assert set(BUILT_IN["schedule"]) - {"csv"} | {"forward_only"} == SCHEDULES.keys()
