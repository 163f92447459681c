"""Breaks of the schedules of a run: rates, weight decay and batch sizes; each with the command line of
`megatron_rates.py` whose rates must tell."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from megascratch.config import batch_schedule
from megascratch.optim import schedules
from megascratch.training.state import TrainState
from tests.support.megatron_rates import rates_are_those_of_megatron_core

Law = Callable[[Path, Callable], None]


def rates(name: str) -> Law:
    return lambda folder, run: rates_are_those_of_megatron_core(name)


def with_the_end_of_the_others(optim):
    return plain_decoupled(replace(optim, decoupled_min_lr=None))


def always_the_start(optim, training, step, consumed_samples):
    return optim.start_weight_decay


def along_a_line(optim, training, step, consumed_samples):
    linear = replace(optim, weight_decay_incr_style="linear")
    return plain_weight_decay(linear, training, step, consumed_samples)


def as_if_nothing_overflowed(self, samples, overflowed):
    plain_count(self, samples, False)


def thresholds_in_samples(text, seq_length):
    return plain_first_sample(text, 1)


def by_steps(optim, step, consumed_samples, batch_size=None):
    return plain_rate(replace(optim, lr_schedule_unit="steps"), step, consumed_samples, batch_size)


plain_decoupled = schedules.decoupled
plain_weight_decay = schedules.weight_decay
plain_count = TrainState.count
plain_first_sample = batch_schedule._first_sample
plain_rate = schedules.learning_rate

RATES: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "the decoupled rate ends where the others end": (
        [(schedules, "decoupled", with_the_end_of_the_others)],
        rates("a decoupled rate"),
    ),
    "weight decay stays where it starts": (
        [(schedules, "weight_decay", always_the_start)],
        rates("linear weight decay"),
    ),
    "weight decay grows along a line alone": (
        [(schedules, "weight_decay", along_a_line)],
        rates("cosine weight decay"),
    ),
    "overflows do not hold the schedule": (
        [(TrainState, "count", as_if_nothing_overflowed)],
        rates("steps that overflow"),
    ),
    "thresholds of batch sizes in samples": (
        [(batch_schedule, "_first_sample", thresholds_in_samples)],
        rates("a batch that grows"),
    ),
    "rates count steps while the batch grows": (
        [(schedules, "learning_rate", by_steps)],
        rates("a batch that grows in a run of steps"),
    ),
}
