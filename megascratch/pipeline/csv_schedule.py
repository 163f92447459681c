"""Reads and writes pipeline schedules as CSV files in the notation of torch.distributed.pipelining.

    0F0,0F1,0B0,0B1          one row per rank; a cell is the virtual stage, the operation, the micro-batch
    ,1F0,1B0,1F1,1B1         empty cells are time steps without work

    F B I W                        as in `schedule.py`
    SEND_F RECV_F SEND_B RECV_B    SF RF SB RB in `schedule.py`; added here if a file has none
    (0F1;3B0)OVERLAP_F_B           the actions in brackets, one after the other
    UNSHARD RESHARD REDUCE_GRAD    are ignored: data parallelism decides itself when to communicate

The file decides whether the stages are placed in a loop or in a V (`Placement`). `read_table` also proves that the
schedule is complete and free of deadlock.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.printable import shown
from megascratch.pipeline.passes import Orders, ScheduleError, add_transfers, check
from megascratch.pipeline.schedule import COMPUTE, Action, Placement

_TRANSFERS = {"SEND_F": "SF", "RECV_F": "RF", "SEND_B": "SB", "RECV_B": "RB"}
_WORDS = {ours: theirs for theirs, ours in _TRANSFERS.items()}
_LEFT_OUT = ("UNSHARD", "RESHARD", "REDUCE_GRAD")
_CELL = re.compile(rf"(\d{{1,18}})(?:({'|'.join((*COMPUTE, *_TRANSFERS))})(\d{{1,18}})|({'|'.join(_LEFT_OUT)})\d*)")
_PAIR = re.compile(r"\((.*)\)OVERLAP_F_B")


class CsvSchedule(NamedTuple):
    """A proved schedule for a fixed number of micro-batches."""

    path: str
    orders: Orders
    placement: Placement

    @property
    def microbatches(self) -> int:
        return 1 + max(action.microbatch for action in self.orders[0])

    def of(self, microbatches: int) -> Orders:
        """The orders of all ranks. Raises: UserError if the step has another number of micro-batches."""
        if microbatches != self.microbatches:
            raise UserError(
                f"{self.path} is a schedule of {self.microbatches} micro-batches, but a step has {microbatches}: set "
                f"global-batch-size to {self.microbatches} x micro-batch-size x data-parallel-size"
            )
        return self.orders


def read_table(path: str) -> CsvSchedule:
    """Reads the schedule in a file and proves it complete and free of deadlock.

    Raises:
        UserError: names the file, the rank and the action.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the schedule {path}: {error}") from error
    try:
        orders, placement = parse_table(text)
        check(orders, placement)
    except ScheduleError as error:
        raise UserError(f"{path}: {error}") from error
    return CsvSchedule(path, orders, placement)


def parse_table(text: str) -> tuple[list[list[Action]], Placement]:
    """Parses a schedule and adds transfers if it has none; does not prove it. Raises: ScheduleError."""
    try:
        lines = [row for row in csv.reader(io.StringIO(text)) if row]
    except csv.Error as error:
        raise ScheduleError(f"it is not a CSV file: {error}") from error
    rows = [list(_cells(rank, row)) for rank, row in enumerate(lines)]
    if not any(rows):
        raise ScheduleError("it contains no action: write one row per rank, e.g. 0F0,0B0")
    placement = _placement(rows)
    orders = [[Action(op, m, placement.place(stage)[1]) for stage, op, m in row] for row in rows]
    if not any(action.op in _WORDS for order in orders for action in order):
        orders = add_transfers(orders, placement)
    return orders, placement


def write_table(orders: Orders, placement: Placement, compute_only: bool = False) -> str:
    """The text of a CSV file with these orders; `compute_only` leaves out the transfers."""
    lines = []
    for rank, order in enumerate(orders):
        cells = []
        for action in order:
            if not compute_only or action.op in COMPUTE:
                stage = placement.virtual_stage(rank, action.chunk)
                cells.append(f"{stage}{_WORDS.get(action.op, action.op)}{action.microbatch}")
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


def _cells(rank: int, row: list[str]) -> Iterator[tuple[int, str, int]]:
    """(virtual stage, operation, micro-batch) of each action."""
    for column, cell in enumerate(row, 1):
        pair = _PAIR.fullmatch(cell.strip())
        for word in pair[1].split(";") if pair else [cell]:
            found = _CELL.fullmatch(word.strip())
            if found is None and word.strip():
                raise ScheduleError(
                    f"rank {rank}, column {column}: '{shown(word.strip(), 40)}' is not an action: write the stage, an "
                    f"operation ({', '.join((*COMPUTE, *_TRANSFERS))}) and the micro-batch, e.g. 2F0"
                )
            if found is not None and found[2] is not None:
                yield int(found[1]), _TRANSFERS.get(found[2], found[2]), int(found[3])


def _placement(rows: list[list[tuple[int, str, int]]]) -> Placement:
    held = [sorted({stage for stage, _, _ in row}) for row in rows]
    for folded in (False, True):
        placement = Placement(len(rows), max(map(len, held)), folded)
        if held == [sorted(placement.virtual_stage(r, c) for c in range(placement.chunks)) for r in range(len(rows))]:
            return placement
    listing = "; ".join(f"rank {rank}: {' '.join(map(str, stages)) or 'none'}" for rank, stages in enumerate(held))
    raise ScheduleError(f"stages must be placed in a loop or in a V, each on one rank, but the file has {listing}")
