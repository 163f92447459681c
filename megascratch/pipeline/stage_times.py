"""Times of the stages in, the cost of each action out: a CSV file with a header and one row per stage.

    stage,F,B,W,comm            B is the input gradient alone: a backward in one piece takes B + W
    0,18.5,18.1,9.3,0.6         comm: one transfer that the stage sends
    1,18.5,18.1,9.3,0.6

One row stands for every stage, a row per rank is shared by the rank's chunks in equal parts, a row per virtual stage is
that stage's own. Any unit will do. Headers may be written T_F or T_F_ms; columns of other names are not read.
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
    """Of one micro-batch on one stage."""

    F: float
    B: float
    W: float
    comm: float = 0.0

    def of(self, op: str) -> float:
        """The time of an operation."""
        return {"F": self.F, "B": self.B + self.W, "I": self.B, "W": self.W}.get(op, self.comm)


def cost_of(times: Sequence[StageTimes], placement: Placement) -> Cost:
    """The cost of every action. Raises: UserError when there are neither 1 nor as many rows as ranks or stages."""
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
    """The rows of a file. Raises: UserError naming the line and the column."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the times {path}: {error}") from error
    try:
        lines = [line for line in csv.reader(io.StringIO(text)) if line]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV: {error}") from error
    header = [_name(cell) for cell in lines[0]] if lines else []
    missing = [name for name in COLUMNS[:3] if name not in header]
    if missing:
        raise UserError(f"{path} has no column {missing[0]}: its first line must name {', '.join(COLUMNS)}")
    rows = [
        StageTimes(*(_number(path, number, header, line, name) for name in COLUMNS if name in header))
        for number, line in enumerate(lines[1:], 2)
    ]
    if not rows:
        raise UserError(f"{path} has no row of times under its header")
    return rows


def format_times(times: Sequence[StageTimes]) -> str:
    """As `read_times` reads it."""
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
