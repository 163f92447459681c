"""The files of a run's report: read with tolerance, because a report must never stop training, and written whole.

A damaged file (a bad disk, NULs after a power loss, an editor) is never lost: what cannot be read is left out, and the
file as it was stays beside the new one as `{name}.damaged`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.json_record import COUNT, NUMBER, TEXT, misfit, optional, parse_json, parse_object

ROW_FIELDS = {"step": COUNT, "loss": optional(NUMBER), "split": TEXT, "event": TEXT}
"""What is read of a row; the other fields are only copied."""


class ReportRows(NamedTuple):
    """What could be read of a file of rows."""

    rows: list[dict[str, Any]]
    damage: str
    """What could not, in words; '' for nothing."""


def read_rows(file: Path) -> ReportRows:
    """The rows of a metrics.jsonl in their order. A last line without its line end was cut short by a crash: it is
    left out without a word, as its step is done again. Never raises for what the file holds."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return ReportRows([], "")
    except OSError as error:
        return ReportRows([], f"{file} cannot be read: {error.strerror}")
    rows, unreadable = [], list[int]()
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        row = _row(line)
        if row is None:
            unreadable.append(number)
        else:
            rows.append(row)
    if not unreadable:
        return ReportRows(rows, "")
    lines = (
        f"line {unreadable[0]} is"
        if len(unreadable) == 1
        else (f"{len(unreadable):,} lines are, the first in line {unreadable[0]},")
    )
    return ReportRows(rows, f"{file}: {lines} damaged and left out")


def read_summary(file: Path) -> dict[str, Any]:
    """The summary of the run before; {} where there is none, or none that can be read."""
    try:
        return parse_object(file.read_bytes(), file)
    except (OSError, UserError):
        return {}


def set_aside(file: Path) -> Path | None:
    """Gives a damaged file a name of its own beside; None where that cannot be done."""
    for number in range(1, 1000):
        aside = file.with_name(f"{file.name}.damaged" + (f".{number}" if number > 1 else ""))
        if aside.exists():
            continue
        try:
            os.rename(file, aside)
        except OSError:
            return None
        return aside
    return None


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside, which then takes the name in one move: a full disk leaves no part of it.

    Raises: OSError, or what `write` raises; the file before it stays.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        write(partial)
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or "step" not in row or misfit(row, ROW_FIELDS) is not None:
        return None
    return row
