"""Records the samples that rollbacks skip: `skipped_samples.jsonl` next to the checkpoints, one line for each rollback.

    {"first": 800, "stop": 864, "back_to": 50, "step": 54, "reason": "the loss ..."}

A checkpoint is never changed, so the skipped samples are recorded here, before the run continues. A run that resumes
from any checkpoint of the folder skips them, too: sample numbers are those of the entire data set and mean the same for
every checkpoint (law 4).
"""

import json
from pathlib import Path
from typing import Any

from megascratch.config.errors import UserError
from megascratch.data.samples.views import Ranges, merge_ranges
from megascratch.runtime.atomic_file import flush_to_disk
from megascratch.storage.path import Place, StoragePath
from megascratch.storage.store import AbsentError, Store

FILE = "skipped_samples.jsonl"


def skipped_samples(folder: Place) -> Ranges:
    """The samples that the runs of a folder of checkpoints skip, as [first, stop) ranges. Raises: as `records`."""
    return merge_ranges([[record["first"], record["stop"]] for record in records(folder)])


def records(folder: Place) -> list[dict[str, Any]]:
    """The record of every rollback. A last line that a crash cut short is ignored.

    Raises: UserError for a line that is not a record.
    """
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
            f"{file}:{number} is not a record of skipped samples (first, stop, back_to): {line[:60]!r}"
        ) from error
    return record


def write_down(folder: Place, record: dict[str, Any]) -> None:
    """Appends a line, which is on the disk when this returns. Raises: UserError if it cannot be written."""
    file = folder / FILE
    line = json.dumps(record).encode() + b"\n"
    if not isinstance(file, Path):
        _append(file, line)
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as out:
            out.truncate(file.read_bytes().rfind(b"\n") + 1)  # drops a line that a crash cut short
            out.write(line)
            flush_to_disk(out)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


def _content(file: Place) -> bytes:
    return file.read_bytes() if isinstance(file, Path) else Store(file.url).content(file.url)


def _append(file: StoragePath, line: bytes) -> None:
    """Appends to an object in a store, which is written entirely or not at all. The folder has only one writer.

    Raises: StoreError.
    """
    try:
        before = _content(file)
    except AbsentError:
        before = b""
    Store(file.url).put(file.url, before + line)
