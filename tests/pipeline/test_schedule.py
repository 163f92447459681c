"""Schedules are their pictures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascratch.config.errors import UserError
from megascratch.pipeline.schedule import (
    COMPUTE,
    OTHER_END,
    SCHEDULES,
    Action,
    interleaved,
    one_f_one_b,
    place,
    virtual_stage,
)
from tests.pipeline.orders import picture


@given(st.sampled_from([*COMPUTE, *OTHER_END]), st.integers(0, 999), st.integers(0, 99))
def test_an_action_parses_as_it_prints(op, microbatch, chunk):
    action = Action(op, microbatch, chunk)
    assert Action.parse(str(action)) == action


def test_an_action_prints_its_chunk_only_if_there_are_several():
    assert [str(Action("F", 3)), str(Action("B", 3, 1)), str(Action("RF", 12, 2))] == ["F3", "B3.1", "RF12.2"]


@pytest.mark.parametrize("text", ["", "F", "X3", "F3.", "F-1", "F3.1.2", "3F", "SX3", "F3 "])
def test_what_is_no_action_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"is no action: .* e\.g\. F3 or B3\.1"):
        Action.parse(text)


@given(st.integers(0, 200), st.integers(1, 16))
def test_virtual_stages_are_dealt_to_the_ranks_in_a_loop(virtual, ranks):
    rank, chunk = place(virtual, ranks)
    assert virtual_stage(rank, ranks, chunk) == virtual


def test_gpipe_is_this_picture():
    assert picture("gpipe", ranks=2, microbatches=3) == [
        "F0 F1 F2 B0 B1 B2",
        "F0 F1 F2 B0 B1 B2"]


def test_one_f_one_b_is_this_picture():
    assert picture("1f1b", ranks=3, microbatches=3) == [
        "F0 F1 F2 B0 B1 B2",
        "F0 F1 B0 F2 B1 B2",
        "F0 B0 F1 B1 F2 B2"]


def test_one_f_one_b_with_fewer_microbatches_than_ranks_is_this_picture():
    assert picture("1f1b", ranks=4, microbatches=2) == [
        "F0 F1 B0 B1",
        "F0 F1 B0 B1",
        "F0 F1 B0 B1",
        "F0 B0 F1 B1"]


def test_interleaved_is_this_picture():
    assert picture("interleaved", ranks=2, microbatches=4, chunks=2) == [
        "F0 F1 F0.1 F1.1 F2 B0.1 F3 B1.1 F2.1 B0 F3.1 B1 B2.1 B3.1 B2 B3",
        "F0 F1 F0.1 B0.1 F1.1 B1.1 F2 B0 F3 B1 F2.1 B2.1 F3.1 B3.1 B2 B3"]


def test_interleaved_runs_the_microbatches_of_a_group_through_all_chunks():
    """Megatron-LM's table for 2 ranks, groups of 3, 5 micro-batches, 2 chunks."""
    forwards = [a for a in interleaved(0, 2, 5, chunks=2, group=3) if a.op == "F"]
    assert [a.microbatch for a in forwards] == [0, 1, 2, 0, 1, 2, 3, 4, 3, 4]
    assert [a.chunk for a in forwards] == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]


def test_a_rest_too_small_to_fill_the_ring_joins_the_first_group():
    forwards = [str(a) for a in interleaved(0, 2, 5, chunks=2) if a.op == "F"]
    assert forwards == ["F0", "F1", "F2", "F0.1", "F1.1", "F2.1", "F3", "F4", "F3.1", "F4.1"]


def test_forward_only_is_this_picture():
    assert picture("forward_only", ranks=2, microbatches=3) == ["F0 F1 F2", "F0 F1 F2"]


def test_one_f_one_b_refuses_chunks_and_interleaved_refuses_small_groups():
    with pytest.raises(UserError, match="1 model chunk per rank, not 2: use interleaved"):
        one_f_one_b(0, 2, 4, chunks=2)
    with pytest.raises(UserError, match=r"group \(2\) must be at least the number of stages \(4\): use 4 or more"):
        interleaved(0, 4, 8, chunks=2, group=2)


@given(st.integers(1, 8), st.integers(1, 40))
def test_one_f_one_b_keeps_at_most_as_many_microbatches_alive_as_ranks_follow(ranks, microbatches):
    for rank in range(ranks):
        alive = 0
        for action in one_f_one_b(rank, ranks, microbatches):
            alive += 1 if action.op == "F" else -1
            assert alive <= ranks - rank


def test_the_table_has_a_row_for_each_setting():
    assert {"gpipe", "1f1b", "interleaved", "forward_only"} == SCHEDULES.keys()
