"""The laws of a schedule of batch sizes; see `laws/__init__.py` for how a law works."""

from collections.abc import Callable

from megascratch.config.batch_schedule import EXAMPLE, BatchSize, read_schedule
from megascratch.config.remedies import Broken, Remedy, choice, near_multiples


def schedule_of_batches_is_readable(
    step_batch_size_schedule: str | None, seq_length: int
) -> str | None:
    """Each entry is THRESHOLD:SIZE, and the first threshold is 0."""
    if step_batch_size_schedule is None:
        return None
    try:
        read_schedule(step_batch_size_schedule, seq_length)
    except ValueError as error:
        return (
            f'step-batch-size-schedule ("{step_batch_size_schedule}"): {error}: write THRESHOLD:SIZE for each size, '
            f'with thresholds in tokens, for instance "{EXAMPLE}"'
        )
    return None


def schedule_of_batches_ends_at_the_full_size(
    step_batch_size_schedule: str | None, seq_length: int, global_batch_size: int
) -> Broken | None:
    """The global batch size is the last one of the schedule."""
    sizes = _sizes(step_batch_size_schedule, seq_length)
    if not sizes or sizes[-1].size == global_batch_size:
        return None
    return Broken(
        f"global-batch-size ({global_batch_size}) contradicts step-batch-size-schedule "
        f'("{step_batch_size_schedule}"), which ends with {sizes[-1].size}',
        [Remedy("global_batch_size", [[sizes[-1].size]])],
        "remove global-batch-size",
    )


def scheduled_batches_are_whole(
    step_batch_size_schedule: str | None,
    seq_length: int,
    micro_batch_size: int,
    data_parallel_size: int,
) -> str | None:
    """Each data-parallel rank gets the same whole number of micro-batches in every step of the schedule."""
    step = micro_batch_size * data_parallel_size
    wrong = []
    nearest: list[int] = []
    for one in _sizes(step_batch_size_schedule, seq_length):
        if one.size % step:
            wrong.append(one.size)
            nearest += [row[0] for row in near_multiples(one.size, step) if row]
    if not wrong:
        return None
    return (
        f"each batch size of step-batch-size-schedule must be divisible by micro-batch-size x data parallel size "
        f"({micro_batch_size} x {data_parallel_size}), unlike {', '.join(map(str, wrong))}: the nearest sizes are "
        f"{choice(sorted(set(nearest)))}"
    )


def one_change_of_batches(
    step_batch_size_schedule: str | None, rampup_batch_size: list[int] | None
) -> str | None:
    """A ramp-up and a schedule of batch sizes exclude each other."""
    if step_batch_size_schedule is None or rampup_batch_size is None:
        return None
    return (
        f'step-batch-size-schedule ("{step_batch_size_schedule}") and rampup-batch-size '
        f"({' '.join(map(str, rampup_batch_size))}) both change the batch size: remove one of them"
    )


def scheduled_batches_need_a_schedule_of_any_size(
    step_batch_size_schedule: str | None, seq_length: int, pipeline_schedule_csv: str | None
) -> str | None:
    """A pipeline schedule from a file has a fixed number of micro-batches."""
    sizes = {one.size for one in _sizes(step_batch_size_schedule, seq_length)}
    if len(sizes) < 2 or pipeline_schedule_csv is None:
        return None
    return (
        f'step-batch-size-schedule ("{step_batch_size_schedule}") cannot be combined with pipeline-schedule-csv '
        f"({pipeline_schedule_csv}), which has a fixed number of micro-batches: remove one of them"
    )


def _sizes(text: str | None, seq_length: int) -> tuple[BatchSize, ...]:
    """The sizes of a schedule; none without one that can be read, which is another law's matter."""
    if text is None or schedule_of_batches_is_readable(text, seq_length):
        return ()
    return read_schedule(text, seq_length)


LAWS: list[Callable[..., str | Broken | None]] = [
    schedule_of_batches_is_readable,
    schedule_of_batches_ends_at_the_full_size,
    scheduled_batches_are_whole,
    one_change_of_batches,
    scheduled_batches_need_a_schedule_of_any_size,
]
