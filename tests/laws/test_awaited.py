"""Whatever is started is awaited before it is used. Here everything happens as late as it may: a collective when it is
awaited and not before, so that a wait that is missing is a result that is missing, on any machine, every time."""

import pytest

from tests.support.awaited import (
    DP2,
    PP2,
    READERS,
    SCHEDULES,
    ZERO1,
    Late,
    a_long_gather_awaits_its_messages,
    a_save_under_way_is_finished_when_a_run_fails,
    a_stream_awaits_each_room,
    every_transfer_is_awaited,
    the_last_save_is_made_again_where_it_failed,
    whoever_reads_weights_awaits_them,
)
from tests.support.layout_runs import assert_identical, config_of, gather, train_on_rank
from tests.support.rank_pool import on_ranks

TP2 = {"tensor_model_parallel_size": 2}
LAYOUTS = {
    "tp2": TP2,
    "tp2 sp": {**TP2, "sequence_parallel": True},
    "dp2": DP2,
    "dp2, reduced in the end": {**DP2, "overlap_grad_reduce": False},
    "zero1": ZERO1,
    "zero1, gathered at once": {**ZERO1, "overlap_param_gather": False},
    "pp2, tied": PP2,
}


# ---- collectives -----------------------------------------------------------------------------------------------


def trained_late(config, list_steps):
    """On a rank: (what it saw, how many collectives nobody has awaited in the end)."""
    with Late() as late:
        return train_on_rank(config, list_steps), late.forgotten


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_whose_collectives_are_late_is_the_same_run(layout):
    config = config_of(num_layers=2, **LAYOUTS[layout])
    plain = gather(on_ranks(2, train_on_rank, config, 2))
    late, forgotten = zip(*on_ranks(2, trained_late, config, 2), strict=True)
    assert_identical(gather(list(late)), plain)
    assert forgotten == (0, 0)


@pytest.mark.parametrize("name", READERS)
def test_whoever_reads_weights_awaits_them(name):
    whoever_reads_weights_awaits_them(name)


def test_a_long_gather_awaits_its_messages():
    a_long_gather_awaits_its_messages()


# ---- transfers between stages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tells", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_transfer_is_awaited(schedule, tells):
    every_transfer_is_awaited(schedule, tells)


# ---- writing ---------------------------------------------------------------------------------------------------


def test_a_stream_awaits_each_room(tmp_path):
    a_stream_awaits_each_room(tmp_path)


def test_a_save_under_way_is_finished_when_a_run_fails(tmp_path):
    a_save_under_way_is_finished_when_a_run_fails(tmp_path)


def test_the_last_save_is_made_again_where_it_failed(tmp_path):
    the_last_save_is_made_again_where_it_failed(tmp_path)
