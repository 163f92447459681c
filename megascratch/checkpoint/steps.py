"""Finds the checkpoints of a run: step folders `{folder}/step_00000123/`, each complete once it has its name.

A folder is a local path or an address in object storage, such as s3://bucket/run/checkpoints.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from megascratch.checkpoint.backend.backend import is_folder, step_at, step_names
from megascratch.checkpoint.chunk_reader import ChunkReader
from megascratch.checkpoint.errors import DamagedError
from megascratch.checkpoint.format.chunk_table import DataFile
from megascratch.checkpoint.format.format_2 import parse_format_2
from megascratch.checkpoint.format.io import checksum, in_threads
from megascratch.checkpoint.format.manifest import (
    FILE,
    FORMAT,
    Manifest,
    parse,
    unsigned,
)
from megascratch.config.errors import UserError
from megascratch.config.printable import shown
from megascratch.storage import run_folders
from megascratch.storage.path import Place, storage_path
from megascratch.storage.run_folders import CHECKPOINTS, STEP_NAME, no_checkpoint

T = TypeVar("T")
MOST_MANIFEST_BYTES = 1 << 29


def step_folder(folder: str | Place, step: int) -> Place:
    return storage_path(folder) / f"step_{step:08d}"


def step_number(path: str | Place) -> int:
    """The step number in the name of a step folder. Raises: UserError for another name."""
    match = STEP_NAME.fullmatch(storage_path(path).name)
    if match is None:
        raise UserError(f"{path} is not named step_00000000")
    return int(match[1])


def list_steps(folder: str | Place) -> list[Place]:
    """The step folders of a run, newest first, readable or not.

    Raises: StoreError if a store does not answer, because then it is unknown whether there are any.
    """
    folder = storage_path(folder)
    return sorted((folder / name for name in step_names(folder)), key=step_number, reverse=True)


def manifest_text(step_folder: str | Place) -> bytes:
    """The bytes of the manifest. Raises: DamagedError if the folder is not a checkpoint, StoreError."""
    path = storage_path(step_folder)
    try:
        file = step_at(path).open(FILE)
    except DamagedError as error:
        raise DamagedError(
            f"{path} is not a checkpoint: {FILE} cannot be read ({_reason(error)})"
        ) from error
    try:
        if file.size > MOST_MANIFEST_BYTES:
            raise DamagedError(
                f"{file.path} is damaged: it has {file.size:,} bytes, too many for a manifest"
            )
        text = bytearray(file.size)
        file.read_into(0, memoryview(text))
        return bytes(text)
    finally:
        file.close()


def _reason(error: Exception) -> str:
    cause = error.__cause__
    return str(cause.strerror) if isinstance(cause, OSError) else str(error)


def read_manifest(step_folder: str | Place) -> Manifest:
    """Reads and checks the manifest; reads no row of the table of chunks and no tensor.

    Raises: DamagedError if the folder is not a checkpoint or its manifest is damaged; StoreError.
    """
    path = storage_path(step_folder)
    text = manifest_text(path)
    try:
        return _parsed(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DamagedError(
            f"{path / FILE} is damaged: {reason}; load another step of the run"
        ) from error


def _parsed(text: bytes) -> Manifest:
    body = unsigned(text)
    if body["format"] == FORMAT:
        return parse(body)
    if body["format"] == 2:
        return parse_format_2(body)
    raise ValueError(
        f"it has format {shown(body['format'], 40)}, this version reads only formats 2 and {FORMAT}"
    )


def check_step(step: Place, manifest: Manifest) -> None:
    """Checks the whole table of chunks, and that every file exists and has its size and header; reads no tensor.
    Raises: DamagedError, StoreError."""
    reader = ChunkReader(step, manifest)
    reader.check_files_are_full()
    reader.chunks(manifest.tensors)
    check_files(step, reader.files())


def check_files(step: Place, files: Iterable[DataFile]) -> None:
    """Checks that files exist and have their size and header; reads no tensor. Raises: DamagedError, StoreError."""
    in_threads(partial(_check_file, step), files, step_at(step).asked_at_once)


def _check_file(step: Place, record: DataFile) -> None:
    file = step_at(step).open(record.name)
    try:
        if file.size != record.bytes:
            raise DamagedError(
                f"{file.path} is damaged: it has {file.size:,} bytes, the manifest says {record.bytes:,}"
            )
        header = bytearray(record.header_bytes)  # at most the size of the file
        file.read_into(0, memoryview(header))
        if checksum(header) != record.header_xxh3_64:
            raise DamagedError(f"{file.path} is damaged: the header does not match its checksum")
    finally:
        file.close()


def problem_of(step: Place) -> str:
    """What is wrong with the manifest of a step, its table of chunks, or the sizes and headers of its files; '' if
    nothing. Reads no tensor."""
    try:
        check_step(step, read_manifest(step))
    except DamagedError as error:
        return str(error)
    return ""


def latest(folder: str | Place) -> Place | None:
    """The newest step folder whose manifest, file sizes and headers are valid; None if there is none."""
    for path in list_steps(folder):
        if not problem_of(path):
            return path
    return None


def is_step(path: str | Place) -> bool:
    """Whether the path is itself a step folder, not a folder of step folders."""
    path = storage_path(path)
    return STEP_NAME.fullmatch(path.name) is not None or step_at(path).is_there()


def checkpoints_of(path: str | Place) -> Place:
    """A step folder or a folder of steps as it is; of a run's folder, the folder `checkpoints` in it."""
    path = storage_path(path)
    if isinstance(path, Path):
        return run_folders.checkpoints_of(path)
    if is_step(path) or step_names(path):
        return path
    inside = path / CHECKPOINTS
    return inside if step_names(inside) else path


def resolve(path: str | Place) -> Place:
    """Returns a step folder as it is, or the newest valid one in a folder of steps or of a run. Raises: UserError."""
    path = checkpoints_of(path)
    if is_step(path):
        return path
    newest = latest(path)
    if newest is None:
        if step_names(path):
            raise UserError(f"no checkpoint: {path} has no valid step, only damaged ones")
        raise no_checkpoint(path, is_folder(path))
    return newest


class ResolvedStep(NamedTuple, Generic[T]):
    """The step that was read, and the newer ones that could not be."""

    step: Place
    result: T
    passed_over: dict[Place, str]  # newer steps that were skipped, and what is wrong with each


def latest_valid(
    path: str | Place, candidates: list[Place], read: Callable[[Place], T]
) -> ResolvedStep[T]:
    """Reads the first of the candidates that is not damaged.

    Args:
        path: what the user gave: if it is itself a step folder and damaged, no other step is tried.
        candidates: the steps in it, newest first; equal on all ranks.
        read: reads one step; must raise the same error on all ranks.

    Raises: DamagedError, UserError if no step is valid, and any other error of `read`.
    """
    passed_over: dict[Place, str] = {}
    for step in candidates:
        try:
            return ResolvedStep(step, read(step), passed_over)
        except DamagedError as error:
            if is_step(path):
                raise
            passed_over[step] = str(error)
    reasons = "".join(f"\n  {reason}" for reason in passed_over.values())
    raise UserError(f"no checkpoint: {path} has no valid step{reasons}")


def candidates(path: str | Place) -> list[Place]:
    """The step folder itself, or all steps in a folder of steps or of a run, newest first. Raises: UserError if there
    is none."""
    path = checkpoints_of(path)
    found = [path] if is_step(path) else list_steps(path)
    if not found:
        raise no_checkpoint(path, is_folder(path))
    return found


def quarantine(step: Place) -> Place:
    """Renames a damaged step, so that the run can write that step again. Returns the new path."""
    return step_at(step).set_aside()
