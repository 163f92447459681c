"""How large a step is: consumed samples in, global batch size and number of micro-batches out, ramp-up included.

Everything is a pure function of the consumed samples, so a resumed run needs no state to go on with the ramp.
The functions read a derived config (`global_batch_size` and `data_parallel_size` set).
"""

from collections.abc import Iterator

from megascratch.config.errors import SettingError
from megascratch.config.settings import Config


def global_batch_size_at(config: Config, consumed_samples: int) -> int:
    """Sequences in the step that starts after `consumed_samples`.

    With `rampup_batch_size = [start, increment, samples]` the batch grows by `increment` in equal parts of `samples`.
    """
    whole = _given(config.training.global_batch_size)
    if config.training.rampup_batch_size is None:
        return whole
    start, increment, samples = config.training.rampup_batch_size
    if consumed_samples >= samples:
        return whole
    increments = (whole - start) // increment
    return start + consumed_samples * increments // samples * increment


def num_microbatches(config: Config, consumed_samples: int = 0) -> int:
    """Micro-batches that each data-parallel rank runs in the step that starts after `consumed_samples`."""
    per_microbatch = config.training.micro_batch_size * _given(config.parallel.data_parallel_size)
    return global_batch_size_at(config, consumed_samples) // per_microbatch


def steps_and_samples(config: Config) -> tuple[int, int]:
    """Steps of the whole run and the samples they consume.

    A run measured in samples stops before a batch that would pass train_samples; Megatron-LM drops the rest, too.
    """
    training = config.training
    steps = consumed = 0
    for size, most in _plateaus(config):
        if training.train_iters is not None:
            left = training.train_iters - steps
        else:
            left = (_given(training.train_samples) - consumed) // size
        taken = left if most is None else min(most, left)
        steps, consumed = steps + taken, consumed + taken * size
        if taken != most:
            break
    return steps, consumed


def samples_asked_for(config: Config) -> int:
    """Samples that the training set is made for. In Megatron's order they decide where every sample lies, so they are
    counted as Megatron-LM does: a run measured in steps asks for whole batches, though a ramp-up reads less, and a run
    measured in samples for all of them, though the rest of the last batch is not read."""
    training = config.training
    if training.train_samples is not None:
        return training.train_samples
    return _given(training.train_iters) * _given(training.global_batch_size)


def _plateaus(config: Config) -> Iterator[tuple[int, int | None]]:
    """(global batch size, steps of this size) in order of the run; None: until the end."""
    ramp, consumed = config.training.rampup_batch_size, 0
    while ramp is not None and consumed < ramp[2]:
        size = global_batch_size_at(config, consumed)
        yield size, 1
        consumed += size
    yield _given(config.training.global_batch_size), None


def _given(value: int | None) -> int:
    if value is None:
        raise SettingError(
            "global_batch_size, data_parallel_size or the length of the run is unknown: call derive() first"
        )
    return value
