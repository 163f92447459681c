"""Computes the global batch size, the number of micro-batches and the length of a run, whose batch size may change.

Everything is a pure function of the consumed samples, so a resumed run needs no state to continue the ramp-up.
"""

from collections.abc import Iterator
from typing import NamedTuple

from megascratch.config.batch_schedule import BatchSize, read_schedule
from megascratch.config.errors import SettingError
from megascratch.config.resolve import ResolvedTraining


def global_batch_size_at(training: ResolvedTraining, consumed_samples: int) -> int:
    """Sequences in the step that starts after `consumed_samples`.

    With `rampup_batch_size = [start, increment, samples]` the batch size grows by `increment` at equal distances within
    the first `samples` samples. With `step_batch_size_schedule` it is the size of the last threshold reached.
    """
    full_size = training.global_batch_size
    for first_sample, size in reversed(_scheduled(training)):
        if consumed_samples >= first_sample:
            return size
    if training.rampup_batch_size is None:
        return full_size
    start, increment, samples = training.rampup_batch_size
    if consumed_samples >= samples:
        return full_size
    increments = (full_size - start) // increment
    return start + consumed_samples * increments // samples * increment


def num_microbatches(
    training: ResolvedTraining, data_parallel_size: int, consumed_samples: int = 0
) -> int:
    """Micro-batches that each data-parallel rank runs in the step that starts after `consumed_samples`."""
    per_microbatch = training.micro_batch_size * data_parallel_size
    return global_batch_size_at(training, consumed_samples) // per_microbatch


class EvaluationBatch(NamedTuple):
    """The size of a batch in validations and tests."""

    sequences: int
    """Over all ranks."""
    micro: int
    """Of a forward pass."""


def evaluation_batch(training: ResolvedTraining) -> EvaluationBatch:
    """The sizes that are given, or those of training at its full batch size."""
    return EvaluationBatch(
        training.eval_global_batch_size or training.global_batch_size,
        training.eval_micro_batch_size or training.micro_batch_size,
    )


def steps_and_samples(training: ResolvedTraining) -> tuple[int, int]:
    """Steps of the entire run and the samples that they consume.

    A run measured in samples stops before a batch that would exceed train_samples, as Megatron-LM does.
    """
    steps = consumed = 0
    for size, most in _plateaus(training):
        if training.train_iters is not None:
            left = training.train_iters - steps
        else:
            left = (_length(training.train_samples) - consumed) // size
        taken = left if most is None else min(most, left)
        steps += taken
        consumed += taken * size
        if taken != most:
            break
    return steps, consumed


def samples_asked_for(training: ResolvedTraining) -> int:
    """Samples that the training set is built for.

    In Megatron's order this number decides the position of every sample, so it is counted as in Megatron-LM. A run
    measured in steps requests full batches, although a ramp-up reads less. A run measured in samples requests all of
    them, although an incomplete last batch is not read.
    """
    if training.train_samples is not None:
        return training.train_samples
    sizes = [training.global_batch_size, *(one.size for one in _scheduled(training))]
    return _length(training.train_iters) * max(sizes)


def _plateaus(training: ResolvedTraining) -> Iterator[tuple[int, int | None]]:
    """(global batch size, number of steps of this size) in order of the run; None: until the end."""
    ramp = training.rampup_batch_size
    consumed = 0
    scheduled = _scheduled(training)
    for now, following in zip(scheduled, scheduled[1:], strict=False):
        steps = max(0, -(-(following.first_sample - consumed) // now.size))
        yield now.size, steps
        consumed += steps * now.size
    while ramp is not None and consumed < ramp[2]:
        size = global_batch_size_at(training, consumed)
        yield size, 1
        consumed += size
    yield training.global_batch_size, None


def _scheduled(training: ResolvedTraining) -> tuple[BatchSize, ...]:
    """The batch sizes of `step_batch_size_schedule`; none without it."""
    text = training.step_batch_size_schedule
    return read_schedule(text) if text is not None else ()


def _length(value: int | None) -> int:
    if value is None:
        raise SettingError("the run has no length: give train-iters or train-samples")
    return value
