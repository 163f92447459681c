"""Reads the files of a run's report. Reading tolerates damage, because a report must never stop training.

A damaged file (a bad disk, NULs after a power loss, an editor) is never lost: what cannot be read is left out, and the
damaged file is kept next to the new one as `{name}.damaged`.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.json_record import (
    COUNT,
    NUMBER,
    TEXT,
    misfit,
    optional,
    parse_json,
    parse_object,
)

ROW_FIELDS = {"step": COUNT, "loss": optional(NUMBER), "split": TEXT, "event": TEXT}
"""The fields of a row that are read; all others are only copied."""


class ReportRows(NamedTuple):
    """The rows of a file that could be read."""

    rows: list[dict[str, Any]]
    damage: str
    """What could not be read, as a message; '' if everything could."""


def read_rows(file: Path) -> ReportRows:
    """The rows of a metrics.jsonl, in order. A last line without its line end was cut short by a crash: it is left out
    silently, because its step is done again. Never raises, whatever the file holds."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return ReportRows([], "")
    except OSError as error:
        return ReportRows([], f"{file} cannot be read: {error.strerror}")
    rows = []
    unreadable = list[int]()
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        row = _row(line)
        if row is None:
            unreadable.append(number)
        else:
            rows.append(row)
    if not unreadable:
        return ReportRows(rows, "")
    if len(unreadable) == 1:
        lines = f"line {unreadable[0]} is"
    else:
        lines = f"{len(unreadable):,} lines (the first is line {unreadable[0]}) are"
    return ReportRows(rows, f"{file}: {lines} damaged and left out")


def read_summary(file: Path) -> dict[str, Any]:
    """The summary of the previous run; {} if there is none, or it cannot be read."""
    try:
        return parse_object(file.read_bytes(), file)
    except (OSError, UserError):
        return {}


def set_aside(file: Path) -> Path | None:
    """Renames a damaged file to a free name next to it. Returns: its new path, or None if it cannot be renamed."""
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


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or "step" not in row or misfit(row, ROW_FIELDS) is not None:
        return None
    return row
