"""Traces the pipeline schedule of one training step (--trace-schedule) and compares it with the simulator's prediction.

schedule_step_5.svg    both timelines, measured and simulated
schedule_step_5.csv    mean times of each virtual stage, for `megascratch schedule simulate --times`
schedule_step_5.json   every span of every rank, and the figures
"""

import json
from pathlib import Path
from typing import Any

from megascratch.config.errors import SettingError
from megascratch.config.resolve import ResolvedParallel
from megascratch.config.settings import TrainingConfig
from megascratch.parallel.collectives import all_gather_objects
from megascratch.pipeline import chart
from megascratch.pipeline.recorder import Recorder
from megascratch.pipeline.simulate import Timeline
from megascratch.pipeline.stage_times import format_times
from megascratch.pipeline.trace import Trace
from megascratch.runtime.atomic_file import atomic_file, write_atomically
from megascratch.training.trainer import Trainer


def gather(trainer: Trainer, recorder: Recorder, microbatches: int) -> Trace:
    """The trace of the traced step, from all ranks of this rank's pipeline. Called by all of them."""
    notes = all_gather_objects(recorder.notes(), trainer.mesh.pp)
    return Trace.of(trainer.orders(microbatches), trainer.placement, notes)


def write(trace: Trace, parallel: ResolvedParallel, step: int, seconds: float, folder: str) -> str:
    """Writes the files.

    Args:
        seconds: time of the entire step.

    Returns: the lines to print for the user.
    """
    base = Path(folder) / f"schedule_step_{step}"
    picture = base.with_suffix(".svg")
    times = base.with_suffix(".csv")
    spans = base.with_suffix(".json")
    schedule, *sizes = _arguments(trace, parallel)
    measured = _figures(trace.happened)
    simulated = _figures(trace.played)
    figure = chart.stacked(
        {
            f"{schedule}, step {step}, as it happened: {measured}": trace.happened,
            f"as the simulator plays it, each action with its measured time: {simulated}": trace.played,
        }
    )
    record = json.dumps(_record(trace, schedule, step, seconds), indent=1) + "\n"
    try:
        with atomic_file(picture) as file:
            figure.savefig(file, format="svg")
        write_atomically(times, format_times(trace.times))
        write_atomically(spans, record)
        command = " ".join(
            ["megascratch schedule simulate", schedule, *sizes, "--times", str(times)]
        )
        written = f"  picture {picture} | spans {spans} | simulate again: {command}"
    except OSError as error:  # a report must never stop training
        written = (
            f"  its files cannot be written: {error.filename or base.parent}: {error.strerror}"
        )
    with_means = _figures(trace.typical)
    return "\n".join(
        [
            f"schedule of step {step}: {schedule}, {trace.disorder or 'all actions in the compiled order'}",
            f"  measured                                {measured}, of a step of {seconds:.4g} s",
            f"  simulated with the time of each action  {simulated}: {_ratio(trace.happened, trace.played)}",
            f"  simulated with mean times               {with_means}: {_ratio(trace.happened, trace.typical)}",
            written,
        ]
    )


def _figures(timeline: Timeline) -> str:
    return f"{timeline.total:.4g} s, bubble {timeline.bubble_rate:.1%}"


def _ratio(happened: Timeline, played: Timeline) -> str:
    return f"the run took {happened.total / played.total:.3f} times as long"


def _record(trace: Trace, schedule: str, step: int, seconds: float) -> dict[str, Any]:
    record: dict[str, Any] = {
        "schedule": schedule,
        "step": step,
        "stages": trace.placement.ranks,
        "virtual_stages": trace.placement.chunks,
        "disorder": trace.disorder,
        "step_seconds": seconds,
    }
    timelines = {
        "happened": trace.happened,
        "played": trace.played,
        "played_with_means": trace.typical,
    }
    for name, timeline in timelines.items():
        record[name] = {"seconds": timeline.total, "bubble": timeline.bubble_rate}
    record["spans"] = []
    for rank, spans in enumerate(trace.happened.spans):
        for action, start, end in spans:
            record["spans"].append(
                {"rank": rank, "action": str(action), "start": start, "end": end}
            )
    return record


def _arguments(trace: Trace, parallel: ResolvedParallel) -> list[str]:
    """The command-line arguments that name this schedule to `megascratch schedule`: its name, then its flags."""
    if parallel.pipeline_schedule_csv is not None:
        return [parallel.pipeline_schedule_csv]
    last_microbatch = max(action.microbatch for action in trace.orders[0])
    numbers = {"--stages": trace.placement.ranks, "--microbatches": last_microbatch + 1}
    if parallel.pipeline_schedule == "interleaved":
        numbers["--virtual-stages"] = trace.placement.chunks
        numbers["--group"] = parallel.microbatch_group_size_per_virtual_pipeline_stage
    flags = [f"{flag} {number}" for flag, number in numbers.items()]
    return [parallel.pipeline_schedule, *flags]


def traced_step(training: TrainingConfig, done: int, total_steps: int) -> int | None:
    """The step whose schedule is timed. The default is the fifth of this run, because the first ones are slow."""
    asked = training.trace_schedule_step
    if not training.trace_schedule or done >= total_steps:
        return None
    if asked is not None and not done < asked <= total_steps:
        raise SettingError(
            f"trace-schedule-step ({asked}) must be a step of this run: use {done + 1} to {total_steps}"
        )
    return asked or min(done + 5, total_steps)
