"""The laws of batch sizes: a pure function of the consumed samples, ramp-up included."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascratch.config.batch_size import (
    global_batch_size_at,
    num_microbatches,
    samples_asked_for,
    steps_and_samples,
)
from megascratch.config.errors import UserError
from megascratch.config.fields import with_fields
from megascratch.config.resolve import ResolvedTraining, resolve
from megascratch.config.settings import Config


def run(**values) -> ResolvedTraining:
    return resolve(
        with_fields(Config(), {"global_batch_size": 8, "vocab_size": 9, **values}), 2
    ).training


def test_without_a_ramp_every_step_is_whole():
    assert [global_batch_size_at(run(), consumed) for consumed in (0, 7, 10**9)] == [8, 8, 8]


@pytest.mark.parametrize(
    ("ramp", "sizes"),
    [
        ([2, 2, 12], {0: 2, 3: 2, 4: 4, 7: 4, 8: 6, 11: 6, 12: 8, 99: 8}),
        ([2, 3, 10], {0: 2, 4: 2, 5: 5, 9: 5, 10: 8}),
        ([8, 2, 10], {0: 8, 5: 8, 10: 8}),
        ([2, 2, 0], {0: 8}),
    ],
)
def test_the_ramp_grows_in_equal_parts(ramp, sizes):
    training = run(rampup_batch_size=ramp)
    assert {consumed: global_batch_size_at(training, consumed) for consumed in sizes} == sizes


def test_each_rank_runs_global_over_micro_times_data_parallel():
    training = run(micro_batch_size=2, global_batch_size=16, rampup_batch_size=[4, 4, 30])
    assert [num_microbatches(training, 2, consumed) for consumed in (0, 10, 20, 30)] == [1, 2, 3, 4]
    assert num_microbatches(run(micro_batch_size=2), 2) == 2


@pytest.mark.parametrize(
    ("values", "steps", "samples"),
    [
        ({"train_iters": 5}, 5, 40),
        ({"train_samples": 40}, 5, 40),
        ({"train_samples": 47}, 5, 40),
        ({"train_samples": 7}, 0, 0),
        ({"train_iters": 3, "rampup_batch_size": [2, 2, 12]}, 3, 8),  # 2 2 4
        ({"train_iters": 6, "rampup_batch_size": [2, 2, 12]}, 6, 30),  # 2 2 4 6 8 8
        ({"train_samples": 30, "rampup_batch_size": [2, 2, 12]}, 6, 30),
        ({"train_samples": 29, "rampup_batch_size": [2, 2, 12]}, 5, 22),
        ({"train_samples": 5, "rampup_batch_size": [2, 2, 12]}, 2, 4),
    ],
)
def test_a_run_has_this_many_steps_and_samples(values, steps, samples):
    assert steps_and_samples(run(**values)) == (steps, samples)


@given(
    start=st.integers(1, 5),
    grown=st.integers(0, 5),
    ramp=st.integers(0, 60),
    iters=st.integers(0, 40),
)
def test_counting_steps_is_stepping(start, grown, ramp, iters):
    training = run(
        global_batch_size=start + 2 * grown, rampup_batch_size=[start, 2, ramp], train_iters=iters
    )
    consumed = 0
    for _ in range(iters):
        consumed += global_batch_size_at(training, consumed)
    assert steps_and_samples(training) == (iters, consumed)


def test_a_run_without_a_length_has_no_steps():
    with pytest.raises(UserError, match="the run has no length: give train-iters or train-samples"):
        steps_and_samples(run())


def test_a_schedule_begins_each_size_at_its_tokens():
    training = run(
        global_batch_size=None, step_batch_size_schedule="2.4K:6, 0:2 1M:12", seq_length=100
    )
    assert training.step_batch_size_schedule == "0s:2 24s:6 10000s:12"
    assert training.global_batch_size == 12
    sizes = {0: 2, 23: 2, 24: 6, 9999: 6, 10000: 12, 10**9: 12}
    assert {consumed: global_batch_size_at(training, consumed) for consumed in sizes} == sizes


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ({"train_iters": 4}, (4, 8)),
        ({"train_iters": 7}, (7, 8 + 2 + 6 + 6)),  # 10 samples when the second size is due
        ({"train_samples": 9}, (4, 8)),
        ({"train_samples": 22}, (7, 22)),
        ({"train_samples": 37}, (9, 34)),
    ],
)
def test_a_run_with_a_schedule_has_this_many_steps_and_samples(length, expected):
    training = run(global_batch_size=None, step_batch_size_schedule="0:2 9s:6 50s:12", **length)
    assert steps_and_samples(training) == expected


def test_a_schedule_that_falls_asks_for_enough_samples():
    training = run(global_batch_size=None, step_batch_size_schedule="0:8 16s:2", train_iters=5)
    assert steps_and_samples(training) == (5, 22)
    assert samples_asked_for(training) == 40


def test_a_size_that_no_step_takes_is_passed_over():
    training = run(global_batch_size=None, step_batch_size_schedule="0:8 3s:4 8s:2", train_iters=3)
    assert steps_and_samples(training) == (3, 12)
