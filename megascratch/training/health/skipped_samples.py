"""Samples that a run jumped over, beside its checkpoints: `skipped_samples.jsonl`, a line for each jump.

    {"first": 800, "stop": 864, "back_to": 50, "step": 54, "reason": "the loss ..."}

A checkpoint is never changed, so the jump that leads away from it is written here, before the run goes on. Whoever
goes on from any checkpoint of the folder jumps, too: the numbers are those of the whole data set, and say the same from
everywhere (law 4).
"""

import json
import os
from pathlib import Path
from typing import Any

from megascratch.config.errors import UserError
from megascratch.data.samples.skip_samples import Ranges, merge_ranges
from megascratch.storage.path import Place, StoragePath
from megascratch.storage.store import AbsentError, Store

FILE = "skipped_samples.jsonl"


def skipped_samples(folder: Place) -> Ranges:
    """What the runs of a folder of checkpoints jumped over. Raises: as `records`."""
    return merge_ranges([[record["first"], record["stop"]] for record in records(folder)])


def records(folder: Place) -> list[dict[str, Any]]:
    """Every jump. Raises: UserError for a line that is no such record; a last line that a crash cut short is left
    out."""
    try:
        text = _content(folder / FILE).decode()
    except (FileNotFoundError, AbsentError):
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / FILE} cannot be read: {error}") from error
    lines = text.splitlines()
    whole = lines if text.endswith("\n") else lines[:-1]
    return [_record(folder / FILE, number, line) for number, line in enumerate(whole, 1)]


def _record(file: Place, number: int, line: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
        numbers = [record[name] for name in ("first", "stop", "back_to")]
        if any(type(value) is not int for value in numbers) or not 0 <= numbers[0] <= numbers[1]:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{file}:{number} is no record of skipped samples (first, stop, back_to): {line[:60]!r}"
        ) from error
    return record


def write_down(folder: Place, record: dict[str, Any]) -> None:
    """Appends a line that is on the disk when this returns. Raises: UserError where disk or store refuse."""
    file, line = folder / FILE, json.dumps(record).encode() + b"\n"
    if not isinstance(file, Path):
        _append(file, line)
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as out:
            out.truncate(file.read_bytes().rfind(b"\n") + 1)  # of a line that a crash cut short
            out.write(line)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


def _content(file: Place) -> bytes:
    return file.read_bytes() if isinstance(file, Path) else Store(file.url).content(file.url)


def _append(file: StoragePath, line: bytes) -> None:
    """An object is written whole or not at all; the folder has one writer. Raises: StoreError."""
    try:
        before = _content(file)
    except AbsentError:
        before = b""
    Store(file.url).put(file.url, before + line)
