"""Schedules from files: torch's notation in both directions, and every fault named by rank and action."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining.schedules import _Action

from megascratch.config.errors import UserError
from megascratch.pipeline.csv_schedule import parse_table, read_table, write_table
from megascratch.pipeline.passes import add_transfers, check, compile_order, draw, placement_of
from tests.support.schedules import parse

CHUNKS = {
    "gpipe": 1,
    "1f1b": 1,
    "interleaved": 3,
    "zb_h1": 1,
    "zb_h2": 1,
    "zb_v": 2,
    "dualpipe_v": 2,
}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(CHUNKS)), st.integers(1, 5), st.integers(1, 9), st.booleans())
def test_a_file_read_back_is_the_schedule_that_was_written(
    schedule, ranks, microbatches, compute_only
):
    orders = compile_order(schedule, ranks, microbatches, CHUNKS[schedule])
    placement = placement_of(schedule, ranks, CHUNKS[schedule])
    read, found = parse_table(write_table(orders, placement, compute_only))
    assert draw(read) == draw(orders)
    assert [found.virtual_stage(r, c) for r in range(ranks) for c in range(CHUNKS[schedule])] == [
        placement.virtual_stage(r, c) for r in range(ranks) for c in range(CHUNKS[schedule])
    ]


def test_a_v_with_transfers_is_written_in_cells_that_torch_reads():
    orders = compile_order("zb_v", 2, 1, 2)
    text = write_table(orders, placement_of("zb_v", 2, 2))
    assert text.splitlines() == [
        "3RECV_F0,0F0,0SEND_F0,3F0,3I0,3SEND_B0,0RECV_B0,3W0,0I0,0W0",
        "1RECV_F0,1F0,2RECV_B0,2F0,2SEND_F0,2I0,2W0,1I0,1SEND_B0,1W0",
    ]
    cells = text.replace("\n", ",").strip(",").split(",")
    assert [str(_Action.from_str(cell)) for cell in cells] == cells


def test_empty_cells_overlaps_and_what_the_data_side_decides_are_understood():
    orders, placement = parse_table(
        "0UNSHARD,0F0,,0F1,0B0, 0B1,0REDUCE_GRAD\n,1F0,(1B0;1F1)OVERLAP_F_B,1B1,\n"
    )
    assert draw(orders) == draw(add_transfers(parse("F0 F1 B0 B1", "F0 B0 F1 B1")))
    check(orders, placement)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0F0,0SEND_F0,0RECV_B0,0B0\n1F0,1B0,1SEND_B0",
            "rank 1 runs F0 without its input: no RF0 before it",
        ),
        (
            "0F0,0SEND_F0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0",
            "rank 0 runs B0 without its input: no RB0 before it",
        ),
        (
            "0F0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0",
            "rank 1 waits forever at RF0: rank 0 never sends it",
        ),
        ("0F0,0B0\n1F0", "rank 1 lacks B0"),
        ("0F0,0B0\n1F0,1F0,1B0", "rank 1 runs F0 more than once"),
        ("0F0,0I0\n1F0,1B0", "rank 0 lacks W0"),
        (
            "0F0,0F1,0B1,0B0",
            "rank 0 runs B0 after B1: gradients add up in the order of the micro-batches",
        ),
        (
            "0F0,0X0\n1F0,1B0",
            "rank 0, column 2: '0X0' is not an action: write the stage, an operation",
        ),
        ("0F0,F0", "rank 0, column 2: 'F0' is not an action"),
        (
            "0F0,0B0\n0F0,0B0",
            "in a loop or in a V, each on one rank, but the file has rank 0: 0; rank 1: 0",
        ),
        ("0F0,0B0\n2F0,2B0", "rank 1: 2"),
        ("", "it contains no action"),
        (",,\n", "it contains no action"),
    ],
)
def test_a_wrong_file_is_refused_by_rank_and_action(text, message, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_table(str(path))
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the schedule .*none\.csv"):
        read_table(str(tmp_path / "none.csv"))


def test_a_file_plays_its_own_number_of_microbatches(tmp_path):
    (tmp_path / "own.csv").write_text("0F0,0B0\n1F0,1B0\n")
    table = read_table(str(tmp_path / "own.csv"))
    assert [str(action) for action in table.of(1)[1]] == ["RF0", "F0", "B0", "SB0"]
    with pytest.raises(
        UserError,
        match="is a schedule of 1 micro-batches, but a step has 4: set global-batch-size to 1 x",
    ):
        table.of(4)
