"""Every rank reads the same numbers of a step, and a step asks all ranks only once."""

from megascratch.config.exit_codes import STOPS
from megascratch.training.step_numbers import STOP_CODES, agreed_code, stop_counts
from tests.support.step_sums import (
    an_overflow_of_one_replica_stops_all,
    every_rank_reads_the_same_sums,
)


def test_each_number_is_the_sum_over_all_ranks():
    every_rank_reads_the_same_sums()


def test_an_overflow_of_any_replica_stops_all_ranks_and_a_step_asks_them_once():
    an_overflow_of_one_replica_stops_all()


def test_every_reason_to_stop_has_a_number_of_its_own():
    for code in (0, *STOPS):
        assert agreed_code(stop_counts(code)) == code
    assert agreed_code([float(number) for number in range(len(STOP_CODES))]) == max(STOPS)
