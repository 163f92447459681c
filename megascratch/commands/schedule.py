"""`megascratch schedule`: draws, checks, compares, exports and simulates pipeline schedules.

megascratch schedule show zb_v --stages 4 --microbatches 8 --output zb_v.svg
megascratch schedule check mine.csv
megascratch schedule compare 1f1b zb_h1 zb_v --stages 4 --microbatches 8
megascratch schedule csv zb_h1 --stages 4 --microbatches 8 --output zb_h1.csv
megascratch schedule simulate interleaved --virtual-stages 3 --stages 8 --microbatches 24 --times times.csv --json
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megascratch.commands.input_output import require_no_input
from megascratch.config.errors import UserError
from megascratch.config.hints import nearest
from megascratch.config.printable import printable
from megascratch.config.registry import facts_of, is_registered, names
from megascratch.pipeline import chart
from megascratch.pipeline.csv_schedule import read_table, write_table
from megascratch.pipeline.passes import Orders, ScheduleError, check, compile_order, placement_of
from megascratch.pipeline.schedule import SCHEDULES, Placement
from megascratch.pipeline.simulate import Timeline, overlapped, simulate
from megascratch.pipeline.stage_times import StageTimes, cost_of, read_times

NAMES = [name for name in SCHEDULES if name != "forward_only"]
MOST_STAGES_TRIED = 6
MOST_MICROBATCHES_TRIED = 12
"""Up to these sizes `check` proves a schedule of the user's."""


class ScheduleSpec(NamedTuple):
    """A schedule: the orders of its actions and the placement of its stages."""

    name: str
    orders: Orders
    placement: Placement

    @property
    def microbatches(self) -> int:
        return 1 + max(action.microbatch for action in self.orders[0])


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    _refuse_numbers(options)
    commands = {
        "show": show,
        "check": prove,
        "compare": compare,
        "csv": write,
        "simulate": simulate_times,
    }
    return commands[options.name](options)


# ---- commands --------------------------------------------------------------------------------------------------


def show(options: argparse.Namespace) -> int:
    """Draws a schedule."""
    plan = _plan(options.schedule, options)
    timeline = simulate(plan.orders, cost_of(_times(options), plan.placement), plan.placement)
    head = (
        f"{plan.name}: {plan.placement.ranks} stages, {plan.microbatches} micro-batches, bubble "
        f"{timeline.bubble_rate:.1%}, {timeline.total:g} units of time"
    )
    if options.output:
        _save(timeline, head, options.output)
        return 0
    console = Console(highlight=False, soft_wrap=True)
    console.print(printable(head), markup=False)
    for line in chart.terminal(timeline, options.unit or _unit(timeline)):
        console.print(line)
    return 0


def prove(options: argparse.Namespace) -> int:
    """Checks that a schedule is complete and free of deadlock; an error names the wrong action."""
    plan = _plan(options.schedule, options)
    try:
        check(plan.orders, plan.placement)
        if options.blocking:
            check(plan.orders, plan.placement, blocking_sends=True)
    except ScheduleError as error:
        raise UserError(f"{plan.name}: {error}") from error
    if is_registered("schedule", plan.name) and not (options.stages or options.microbatches):
        _try_small_sizes(plan)
    print(
        f"{printable(plan.name)}: {plan.placement.ranks} stages of {plan.placement.chunks}, "
        f"{plan.microbatches} micro-batches, {sum(map(len, plan.orders))} actions: "
        "complete, paired and free of deadlock"
    )
    return 0


def _try_small_sizes(plan: ScheduleSpec) -> None:
    """Proves a user's schedule with fewer stages and micro-batches, too: a warm-up may be longer than a short step.

    Raises: UserError for the first size with which it is wrong.
    """
    for stages in range(1, MOST_STAGES_TRIED + 1):
        for microbatches in range(1, MOST_MICROBATCHES_TRIED + 1):
            compile_order(plan.name, stages, microbatches, plan.placement.chunks)


def compare(options: argparse.Namespace) -> int:
    """Compares several schedules in a table."""
    times = _times(options)
    found = [_answer(_plan(name, options), times) for name in options.schedules or NAMES]
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    table = Table("schedule", "bubble", "blocking sends", "time", "activations alive, by rank")
    for answer in found:
        plain = answer["nonblocking"]
        blocking = answer["blocking"]
        peaks = " ".join(f"{peak:g}" for peak in plain["peak_in_flight"])
        table.add_row(
            Text(printable(answer["schedule"])),
            f"{plain['bubble']:.2%}",
            f"{blocking['bubble']:.2%}",
            f"{plain['total']:g}",
            peaks,
        )
    Console().print(table)
    return 0


def write(options: argparse.Namespace) -> int:
    """Writes a schedule as CSV in the notation of torch.distributed.pipelining."""
    plan = _plan(options.schedule, options)
    text = write_table(plan.orders, plan.placement, compute_only=not options.comms)
    if options.output:
        require_no_input([("--output", options.output)], [("the schedule", options.schedule)])
        _write(options.output, text)
    else:
        print(text, end="")
    return 0


def simulate_times(options: argparse.Namespace) -> int:
    """Simulates a schedule with given times per stage, and prints its duration and bubble."""
    answer = _answer(_plan(options.schedule, options), _times(options))
    if options.json:
        print(json.dumps(answer, indent=2))
        return 0
    for sends in ("nonblocking", "blocking", "overlapped"):
        figures = answer[sends]
        if figures is not None:
            print(
                f"{sends} sends: bubble {figures['bubble']:.2%}, total {figures['total']:g}, "
                f"longest stage {figures['cost']:g}"
            )
    return 0


# ---- parts -----------------------------------------------------------------------------------------------------


def _refuse_numbers(options: argparse.Namespace) -> None:
    """Raises: UserError for a number out of range."""
    for name in ("f", "b", "w", "comm"):
        value = getattr(options, name, 0.0)
        if not 0 <= value < math.inf:
            raise UserError(f"--{name} ({value:g}) must be a time, 0 or more")
    if getattr(options, "unit", None) is not None and not options.unit > 0:
        raise UserError(f"--unit ({options.unit:g}) must be above 0")


def _plan(name: str, options: argparse.Namespace) -> ScheduleSpec:
    """The schedule called `name`. Flags for interleaving are refused for others, except when several are compared."""
    if name.endswith(".csv"):
        return _from_file(name, options)
    own = is_registered("schedule", name)
    if name not in NAMES and not own:
        near = nearest(name, names("schedule"))
        raise UserError(
            f"unknown schedule {name}{near}: use {', '.join(NAMES)} or a .csv file, or give --import with the file "
            "that registers it"
        )
    is_interleaved = name == "interleaved" or own
    needed = facts_of("schedule", name)["chunks"]
    chunks = needed or 2
    if own and needed and options.virtual_stages not in (None, needed):
        raise UserError(
            f"schedule {name} has {needed} model chunks per rank, not {options.virtual_stages}: use {needed}"
        )
    if is_interleaved or options.name != "compare":
        if options.virtual_stages:
            chunks = options.virtual_stages
        if options.group and not is_interleaved:
            raise UserError(
                f"--group ({options.group}) needs the schedule interleaved, not {name}: remove it"
            )
    group = options.group if is_interleaved else None
    stages = options.stages or 4
    microbatches = options.microbatches or 8
    orders = compile_order(name, stages, microbatches, chunks, group)
    return ScheduleSpec(name, orders, placement_of(name, stages, chunks))


def _from_file(path: str, options: argparse.Namespace) -> ScheduleSpec:
    """The schedule in a file. Raises: UserError if a flag gives another number of stages or micro-batches."""
    plan = ScheduleSpec(*read_table(path))
    numbers = {
        "stages": plan.placement.ranks,
        "virtual_stages": plan.placement.chunks,
        "microbatches": plan.microbatches,
    }
    if options.name == "compare":
        return plan
    for name, value in numbers.items():
        given = getattr(options, name)
        if given not in (None, value):
            raise UserError(f"--{name.replace('_', '-')} ({given}) is {value} in {path}: remove it")
    return plan


def _times(options: argparse.Namespace) -> list[StageTimes]:
    if options.times:
        return read_times(options.times)
    return [StageTimes(options.f, options.b, options.w, options.comm)]


def _answer(plan: ScheduleSpec, times: Sequence[StageTimes]) -> dict[str, Any]:
    """What `--json` prints. `overlapped`: interleaved 1F1B as published, see `simulate.overlapped`."""
    cost = cost_of(times, plan.placement)
    chunks = plan.placement.chunks
    plain = simulate(plan.orders, cost, plan.placement)
    blocking = simulate(plan.orders, cost, plan.placement, blocking_sends=True)
    hidden = None
    if plan.name == "interleaved":
        hidden = _figures(simulate(plan.orders, overlapped(cost, chunks), plan.placement), chunks)
    return {
        "schedule": plan.name,
        "stages": plan.placement.ranks,
        "virtual_stages": chunks,
        "microbatches": plan.microbatches,
        "nonblocking": _figures(plain, chunks),
        "blocking": _figures(blocking, chunks),
        "overlapped": hidden,
    }


def _figures(timeline: Timeline, chunks: int) -> dict[str, Any]:
    """The figures of a simulation. Peaks count micro-batches of all layers of a rank: a chunk counts 1 / chunks."""
    ranks = range(len(timeline.spans))
    return {
        "bubble": timeline.bubble_rate,
        "total": timeline.total,
        "cost": timeline.cost,
        "busy": [timeline.busy(rank) for rank in ranks],
        "span": [timeline.span(rank) for rank in ranks],
        "peak_in_flight": [timeline.peak(rank) / chunks for rank in ranks],
    }


def _unit(timeline: Timeline) -> float:
    """Time per column: the shortest action, or more so that the chart has at most 400 columns."""
    lengths = []
    for spans in timeline.spans:
        for span in spans:
            if span.end > span.start and span.action.op in "FBIW":
                lengths.append(span.end - span.start)
    shortest = min(lengths, default=1.0)
    return max(shortest, timeline.total / 400) or 1.0


def _save(timeline: Timeline, title: str, path: str) -> None:
    if Path(path).suffix not in (".svg", ".png", ".pdf"):
        raise UserError(f"--output ({path}) must end with .svg, .png or .pdf")
    try:
        chart.figure(timeline, title).savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
