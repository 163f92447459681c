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
_OPERATION = "|".join((*COMPUTE, *_TRANSFERS))
_IGNORED = "|".join(_LEFT_OUT)
_CELL = re.compile(rf"(\d{{1,18}})(?:({_OPERATION})(\d{{1,18}})|({_IGNORED})\d*)")
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
    except OSError as error:
        raise UserError(f"cannot read the schedule {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read the schedule {path}: it is not a text in UTF-8") from error
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
    orders = []
    has_transfers = False
    for row in rows:
        order = []
        for stage, op, microbatch in row:
            _, chunk = placement.place(stage)
            order.append(Action(op, microbatch, chunk))
            has_transfers = has_transfers or op in _WORDS
        orders.append(order)
    if not has_transfers:
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
        words = pair[1].split(";") if pair else [cell]
        for padded_word in words:
            word = padded_word.strip()
            if not word:
                continue
            found = _CELL.fullmatch(word)
            if found is None:
                raise ScheduleError(
                    f"rank {rank}, column {column}: '{shown(word, 40)}' is not an action: write the stage, an "
                    f"operation ({', '.join((*COMPUTE, *_TRANSFERS))}) and the micro-batch, e.g. 2F0"
                )
            stage, op, microbatch, _ = found.groups()
            if op is not None:  # not one that is ignored
                yield int(stage), _TRANSFERS.get(op, op), int(microbatch)


def _placement(rows: list[list[tuple[int, str, int]]]) -> Placement:
    """The loop or the V in which the stages are placed. Raises: ScheduleError if it is neither."""
    held = []  # by rank: its virtual stages
    for row in rows:
        held.append({stage for stage, _, _ in row})
    chunks = max(map(len, held))
    for folded in (False, True):
        placement = Placement(len(rows), chunks, folded)
        if all(stages == _stages_of(rank, placement) for rank, stages in enumerate(held)):
            return placement
    parts = []
    for rank, stages in enumerate(held):
        numbers = " ".join(map(str, sorted(stages)))
        parts.append(f"rank {rank}: {numbers or 'none'}")
    listing = "; ".join(parts)
    raise ScheduleError(
        f"stages must be placed in a loop or in a V, each on one rank, but the file has {listing}"
    )


def _stages_of(rank: int, placement: Placement) -> set[int]:
    return {placement.virtual_stage(rank, chunk) for chunk in range(placement.chunks)}
