"""Sums up the communications of one rank in a training step: a row for each operation, axis and type of number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megascratch.dry_run.steps import operation_of
from megascratch.parallel.traffic import Communication


@dataclass
class TrafficRow:
    """All communications of one kind in a step. Bytes are counted as in `parallel/traffic.py`."""

    operation: str
    axis: str
    ranks: int
    dtype: str
    count: int = 0
    nbytes: int = 0
    sent: float = 0.0  # bytes that this rank puts on the wire
    largest: int = 0  # bytes of the largest one
    actions: dict[str, int] = field(default_factory=dict)  # operation of the schedule -> count


def traffic_table(
    communications: Sequence[Communication], times: Mapping[str, int]
) -> list[TrafficRow]:
    """The rows in the order in which their first communications start; those before the step are left out.

    Args:
        times: how often each action counts; by default once.
    """
    rows: dict[tuple[str, str, str], TrafficRow] = {}
    for what in communications:
        if not what.during:
            continue
        dtype = str(what.dtype).removeprefix("torch.")
        key = what.operation, what.axis, dtype
        if key not in rows:
            rows[key] = TrafficRow(what.operation, what.axis, what.ranks, dtype)
        row = rows[key]
        count = times.get(what.during, 1)
        row.count += count
        row.nbytes += count * what.nbytes
        row.sent += count * what.sent
        row.largest = max(row.largest, what.nbytes)
        operation = operation_of(what.during)
        row.actions[operation] = row.actions.get(operation, 0) + count
    return list(rows.values())
