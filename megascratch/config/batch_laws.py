"""The laws of batch sizes and of the run's length; see `laws.py` for how a law is read."""

from collections.abc import Callable

from megascratch.config.wording import choice, divisors, multiples_near


def global_batch_is_whole(global_batch_size: int, micro_batch_size: int, data_parallel_size: int) -> str | None:
    """Each data-parallel rank gets the same whole number of micro-batches."""
    step = micro_batch_size * data_parallel_size
    if global_batch_size % step == 0:
        return None
    said = (
        f"global-batch-size ({global_batch_size}) must divide by micro-batch-size x data parallel size "
        f"({micro_batch_size} x {data_parallel_size}): use {choice(multiples_near(global_batch_size, step))}"
    )
    if global_batch_size % micro_batch_size:
        return said
    sizes = divisors(global_batch_size // micro_batch_size)
    return f"{said}, or with this batch a data parallel size of {choice(sizes, near=data_parallel_size)}"


def rampup_is_three_numbers(rampup_batch_size: list[int] | None) -> str | None:
    """start, increment, samples."""
    if rampup_batch_size is None or _legal_ramp(rampup_batch_size):
        return None
    return (
        f"rampup-batch-size ({' '.join(map(str, rampup_batch_size))}) must be three numbers, START INCREMENT SAMPLES, "
        "the first two at least 1: for instance 16 16 100000"
    )


def rampup_steps_are_whole(
    rampup_batch_size: list[int] | None, global_batch_size: int, micro_batch_size: int, data_parallel_size: int
) -> str | None:
    """Each batch size of the ramp is a whole number of micro-batches, and the last step ends at the global batch."""
    if rampup_batch_size is None or not _legal_ramp(rampup_batch_size):
        return None
    (start, increment, _), step = rampup_batch_size, micro_batch_size * data_parallel_size
    for name, size in (("start", start), ("increment", increment)):
        if size % step:
            return (
                f"rampup-batch-size {name} ({size}) must divide by micro-batch-size x data parallel size "
                f"({micro_batch_size} x {data_parallel_size}): use {choice(multiples_near(size, step))}"
            )
    if start > global_batch_size:
        return (
            f"rampup-batch-size start ({start}) must not pass global-batch-size ({global_batch_size}): "
            f"start at {global_batch_size} or less"
        )
    if (global_batch_size - start) % increment:
        ends = [start + grown for grown in multiples_near(global_batch_size - start, increment)]
        return (
            f"rampup-batch-size must reach global-batch-size ({global_batch_size}) from {start} in whole increments "
            f"of {increment}: use global-batch-size {choice(ends)}"
        )
    return None


def rampup_needs_a_schedule_of_any_size(
    rampup_batch_size: list[int] | None, pipeline_schedule_csv: str | None
) -> str | None:
    """A schedule from a file plays a fixed number of micro-batches."""
    if rampup_batch_size is None or pipeline_schedule_csv is None:
        return None
    return (
        f"rampup-batch-size ({' '.join(map(str, rampup_batch_size))}) does not go with pipeline-schedule-csv "
        f"({pipeline_schedule_csv}), which plays a fixed number of micro-batches: leave one of them out"
    )


def one_length(train_iters: int | None, train_samples: int | None) -> str | None:
    """The run is measured in steps or in samples."""
    if train_iters is None and train_samples is None:
        return "the run has no length: give train-iters or train-samples"
    if train_iters is not None and train_samples is not None:
        return f"train-iters ({train_iters}) and train-samples ({train_samples}) are both given: keep one"
    return None


def samples_fill_a_step(
    train_samples: int | None, global_batch_size: int, rampup_batch_size: list[int] | None
) -> str | None:
    """A run in samples has at least one step."""
    first = _sizes(global_batch_size, rampup_batch_size)[0]
    if train_samples is None or train_samples >= first:
        return None
    return f"train-samples ({train_samples}) must fill the first batch ({first}): use {first} or more"


def _legal_ramp(ramp: list[int]) -> bool:
    return len(ramp) == 3 and ramp[0] >= 1 and ramp[1] >= 1 and ramp[2] >= 0


def _sizes(global_batch_size: int, ramp: list[int] | None) -> list[int]:
    """Every global batch size on the way, in rising order."""
    if ramp is None or not _legal_ramp(ramp) or ramp[2] == 0:
        return [global_batch_size]
    return [*range(ramp[0], global_batch_size, ramp[1]), global_batch_size]


LAWS: list[Callable[..., str | None]] = [
    global_batch_is_whole,
    rampup_is_three_numbers,
    rampup_steps_are_whole,
    rampup_needs_a_schedule_of_any_size,
    one_length,
    samples_fill_a_step,
]
