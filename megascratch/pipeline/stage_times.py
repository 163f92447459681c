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
from megascratch.pipeline.schedule import Action, Placement
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
    ranks, chunks, stages = placement.ranks, placement.chunks, placement.stages
    if len(times) not in (1, ranks, stages):
        raise UserError(
            f"there are times of {len(times)} stages, but {ranks} ranks of {chunks} virtual stages: give "
            f"{' or '.join(map(str, sorted({1, ranks, stages})))} rows"
        )

    def cost(rank: int, action: Action) -> float:
        whole = len(times) == stages
        row = times[placement.virtual_stage(rank, action.chunk) if whole else rank % len(times)]
        share = chunks if not whole and action.op in "FBIW" else 1
        return row.of(action.op) / share

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
        raise UserError(f"{path} has no column {missing[0]}: its first line must name {', '.join(COLUMNS)}")
    rows = [
        StageTimes(*(_number(path, number, header, line, name) for name in COLUMNS if name in header))
        for number, line in enumerate(lines[1:], 2)
    ]
    if not rows:
        raise UserError(f"{path} has no row of times after its header")
    return rows


def format_times(times: Sequence[StageTimes]) -> str:
    """The text of a file that `read_times` reads."""
    rows = [",".join(["stage", *COLUMNS])]
    rows += [",".join([str(stage), *(f"{value:.9g}" for value in row)]) for stage, row in enumerate(times)]
    return "\n".join(rows) + "\n"


def _name(cell: str) -> str:
    bare = re.sub(r"^T_|_(ms|s|us)$", "", cell.strip())
    return next((name for name in COLUMNS if name.lower() == bare.lower()), bare)


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
