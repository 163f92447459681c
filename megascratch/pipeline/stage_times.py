"""Reads the measured times of pipeline stages from a CSV file, as the cost of each action for the simulator.

    stage,F,B,W,comm            B is the input gradient alone: a combined backward takes B + W
    0,18.5,18.1,9.3,0.6         comm: one transfer that the stage sends
    1,18.5,18.1,9.3,0.6

The header is followed by one row for all stages, a row per rank (divided equally among its chunks), or a row per
virtual stage. Any unit of time will do. Headers may be written T_F or T_F_ms; other columns are ignored.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.printable import shown
from megascratch.pipeline.schedule import COMPUTE, Action, Placement
from megascratch.pipeline.simulate import Cost

COLUMNS = ("F", "B", "W", "comm")


class StageTimes(NamedTuple):
    """The times of one micro-batch on one stage."""

    F: float
    B: float
    W: float
    comm: float = 0.0

    def of(self, op: str) -> float:
        """The time of an operation."""
        return {"F": self.F, "B": self.B + self.W, "I": self.B, "W": self.W}.get(op, self.comm)


def cost_of(times: Sequence[StageTimes], placement: Placement) -> Cost:
    """The cost function of a row of times. Raises: UserError unless there is 1 row, or one per rank or stage."""
    ranks, chunks, _ = placement
    stages = placement.stages
    if len(times) not in (1, ranks, stages):
        allowed = " or ".join(map(str, sorted({1, ranks, stages})))
        raise UserError(
            f"there are times of {len(times)} stages, but {ranks} ranks of {chunks} virtual stages: give {allowed} rows"
        )

    def cost(rank: int, action: Action) -> float:
        if len(times) == stages:
            stage = placement.virtual_stage(rank, action.chunk)
            return times[stage].of(action.op)
        seconds = times[rank % len(times)].of(action.op)
        return seconds / chunks if action.op in COMPUTE else seconds

    return cost


def read_times(path: str) -> list[StageTimes]:
    """Reads the rows of a file. Raises: UserError, naming the line and the column."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the times {path}: {error}") from error
    try:
        lines = [line for line in csv.reader(io.StringIO(text)) if line]
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}") from error
    header = [_name(cell) for cell in lines[0]] if lines else []
    missing = [name for name in COLUMNS[:3] if name not in header]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]}: its first line must name {', '.join(COLUMNS)}"
        )
    rows = []
    for number, line in enumerate(lines[1:], 2):
        values = [_number(path, number, header, line, name) for name in COLUMNS if name in header]
        rows.append(StageTimes(*values))
    if not rows:
        raise UserError(f"{path} has no row of times after its header")
    return rows


def format_times(times: Sequence[StageTimes]) -> str:
    """The text of a file that `read_times` reads."""
    rows = [["stage", *COLUMNS]]
    for stage, row in enumerate(times):
        values = [f"{value:.9g}" for value in row]
        rows.append([str(stage), *values])
    return "".join(",".join(row) + "\n" for row in rows)


def _name(cell: str) -> str:
    """The column that a cell of the header names; its text if there is none."""
    bare = re.sub(r"^T_|_(ms|s|us)$", "", cell.strip())
    for name in COLUMNS:
        if name.lower() == bare.lower():
            return name
    return bare


def _number(path: str, number: int, header: list[str], line: list[str], name: str) -> float:
    column = header.index(name)
    text = line[column].strip() if column < len(line) else ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{path}:{number}: {name} ('{shown(text, 40)}') must be a time, 0 or more")
    return value
