"""The laws of batch sizes and the length of the run; see `laws/__init__.py` for how a law works."""

from collections.abc import Callable

from megascratch.config.batch_schedule import first_size
from megascratch.config.remedies import WORLD, Broken, Remedy, divisors_near, each, near_multiples


def global_batch_is_whole(
    global_batch_size: int, micro_batch_size: int, data_parallel_size: int, world_size: int
) -> Broken | None:
    """Each data-parallel rank gets the same whole number of micro-batches."""
    step = micro_batch_size * data_parallel_size
    if global_batch_size % step == 0:
        return None
    remedies = [Remedy("global_batch_size", near_multiples(global_batch_size, step))]
    if global_batch_size % micro_batch_size == 0 and world_size % data_parallel_size == 0:
        sizes = divisors_near(global_batch_size // micro_batch_size, data_parallel_size)
        model_ranks = world_size // data_parallel_size
        remedies.append(Remedy(WORLD, each(size * model_ranks for size in sizes)))
    return Broken(
        f"global-batch-size ({global_batch_size}) must be divisible by micro-batch-size x data parallel size "
        f"({micro_batch_size} x {data_parallel_size})",
        remedies,
    )


def evaluation_batch_is_whole(
    eval_global_batch_size: int | None,
    eval_micro_batch_size: int | None,
    global_batch_size: int,
    micro_batch_size: int,
    data_parallel_size: int,
) -> Broken | None:
    """Each data-parallel rank gets the same whole number of micro-batches of a validation, too."""
    if eval_global_batch_size is None and eval_micro_batch_size is None:
        return None
    sequences = eval_global_batch_size or global_batch_size
    micro = eval_micro_batch_size or micro_batch_size
    step = micro * data_parallel_size
    if sequences % step == 0:
        return None
    remedies = [Remedy("eval_global_batch_size", near_multiples(sequences, step))]
    if sequences % data_parallel_size == 0:
        sizes = divisors_near(sequences // data_parallel_size, micro)
        remedies.append(Remedy("eval_micro_batch_size", each(sizes)))
    of_training = "" if eval_global_batch_size else ", that of training"
    return Broken(
        f"eval-global-batch-size ({sequences}{of_training}) must be divisible by eval-micro-batch-size x data parallel "
        f"size ({micro} x {data_parallel_size})",
        remedies,
    )


MOST_RAMPS = 16  # starts and increments that are tried in each direction


def rampup_is_three_numbers(rampup_batch_size: list[int] | None) -> str | None:
    """The three numbers are start, increment and samples."""
    if rampup_batch_size is None or _legal_ramp(rampup_batch_size):
        return None
    return (
        f"rampup-batch-size ({' '.join(map(str, rampup_batch_size))}) must be three numbers, START INCREMENT SAMPLES, "
        "the first two at least 1: for instance 16 16 100000"
    )


def rampup_steps_are_whole(
    rampup_batch_size: list[int] | None,
    global_batch_size: int,
    micro_batch_size: int,
    data_parallel_size: int,
) -> Broken | None:
    """Each batch size of the ramp-up is a whole number of micro-batches, and the last one is the global batch size."""
    if rampup_batch_size is None or not _legal_ramp(rampup_batch_size):
        return None
    start, increment, _ = rampup_batch_size
    step = micro_batch_size * data_parallel_size
    ramps = _legal_ramps(rampup_batch_size, global_batch_size, step)
    for name, size in (("start", start), ("increment", increment)):
        if size % step:
            return Broken(
                f"rampup-batch-size {name} ({size}) must be divisible by micro-batch-size x data parallel size "
                f"({micro_batch_size} x {data_parallel_size})",
                [ramps],
            )
    if start > global_batch_size:
        return Broken(
            f"rampup-batch-size start ({start}) must not exceed global-batch-size ({global_batch_size})",
            [ramps, Remedy("global_batch_size", near_multiples(start, step)[1:])],
        )
    if (global_batch_size - start) % increment:
        grown = near_multiples(global_batch_size - start, increment, least=0)
        return Broken(
            f"rampup-batch-size must reach global-batch-size ({global_batch_size}) from {start} in whole increments "
            f"of {increment}",
            [Remedy("global_batch_size", [[start + more for more in row] for row in grown]), ramps],
        )
    return None


def _legal_ramps(ramp: list[int], full_size: int, step: int) -> Remedy:
    """Ramp-ups over the same samples whose start and increment are multiples of `step`, the most similar first."""
    start, increment, samples = ramp
    starts = [value for value in _multiples_by_distance(start, step) if value <= full_size]
    increments = _multiples_by_distance(increment, step)
    ramps = [[first, more, samples] for first in starts for more in increments]
    ramps.sort(key=lambda one: abs(one[0] - start) + abs(one[1] - increment))
    return Remedy("rampup_batch_size", [ramps])


def _multiples_by_distance(number: int, step: int) -> list[int]:
    """Multiples of `step` on both sides of a number, the nearest first."""
    multiples: set[int] = set()
    for row in near_multiples(number, step):
        multiples.update(row[:MOST_RAMPS])
    return sorted(multiples, key=lambda value: abs(value - number))


def rampup_needs_a_schedule_of_any_size(
    rampup_batch_size: list[int] | None, pipeline_schedule_csv: str | None
) -> str | None:
    """A schedule from a file has a fixed number of micro-batches."""
    if rampup_batch_size is None or pipeline_schedule_csv is None:
        return None
    return (
        f"rampup-batch-size ({' '.join(map(str, rampup_batch_size))}) cannot be combined with pipeline-schedule-csv "
        f"({pipeline_schedule_csv}), which has a fixed number of micro-batches: remove one of them"
    )


def one_length(train_iters: int | None, train_samples: int | None) -> str | None:
    """The run is measured in steps or in samples."""
    if train_iters is None and train_samples is None:
        return "the run has no length: give train-iters or train-samples"
    if train_iters is not None and train_samples is not None:
        return f"train-iters ({train_iters}) and train-samples ({train_samples}) are both given: keep one"
    return None


def samples_fill_a_step(
    train_samples: int | None,
    global_batch_size: int,
    rampup_batch_size: list[int] | None,
    step_batch_size_schedule: str | None,
) -> Broken | None:
    """A run in samples has at least one step."""
    ramp = rampup_batch_size
    first = first_size(step_batch_size_schedule) or global_batch_size
    if ramp is not None and _legal_ramp(ramp) and ramp[2] > 0:
        first = ramp[0]
    if train_samples is None or train_samples >= first:
        return None
    return Broken(
        f"train-samples ({train_samples}) must fill the first batch ({first})",
        [Remedy("train_samples", [[first]], " or more")],
    )


def _legal_ramp(ramp: list[int]) -> bool:
    return len(ramp) == 3 and ramp[0] >= 1 and ramp[1] >= 1 and ramp[2] >= 0


LAWS: list[Callable[..., str | Broken | None]] = [
    global_batch_is_whole,
    evaluation_batch_is_whole,
    rampup_is_three_numbers,
    rampup_steps_are_whole,
    rampup_needs_a_schedule_of_any_size,
    one_length,
    samples_fill_a_step,
]
