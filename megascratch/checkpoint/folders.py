"""Where checkpoints lie: `{folder}/step_00000123/`, each complete from the moment it has its name."""

import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from megascratch.checkpoint.errors import DamagedError
from megascratch.checkpoint.local import LocalStep
from megascratch.checkpoint.manifest import FILE, DataFile, Manifest, parse
from megascratch.checkpoint.transfer import checksum
from megascratch.config.errors import UserError

T = TypeVar("T")
_STEP = re.compile(r"step_(\d{8,})")


def step_folder(folder: str | Path, step: int) -> Path:
    return Path(folder) / f"step_{step:08d}"


def step_number(path: str | Path) -> int:
    """The step of a step folder. Raises: UserError for another name."""
    match = _STEP.fullmatch(Path(path).name)
    if match is None:
        raise UserError(f"{path} is not named step_00000000")
    return int(match[1])


def steps(folder: str | Path) -> list[Path]:
    """The step folders of a run, newest first, whether they can be read or not."""
    try:
        found = [(int(match[1]), path) for path in Path(folder).iterdir() if (match := _STEP.fullmatch(path.name))]
    except OSError:
        return []
    return [path for _, path in sorted(found, reverse=True)]


def read_manifest(step_folder: str | Path) -> Manifest:
    """Reads and checks the table of contents; no tensor is touched.

    Raises: DamagedError where the folder is no checkpoint, or its manifest is damaged.
    """
    path = Path(step_folder)
    text = LocalStep(path).manifest_text()
    try:
        return parse(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise DamagedError(f"{path / FILE} is damaged: {reason}; load another step of the run") from error


def check_files(step: Path, manifest: Manifest) -> None:
    """Raises: DamagedError unless every file is there, of its size, with its header; no tensor is read."""
    for name, record in manifest.files.items():
        _check_file(step, name, record)


def _check_file(step: Path, name: str, record: DataFile) -> None:
    file = LocalStep(step).open(name)
    try:
        if file.size != record.bytes:
            raise DamagedError(f"{file.path} is damaged: it has {file.size:,} bytes, the manifest says "
                               f"{record.bytes:,}")
        header = bytearray(record.header_bytes)  # not more than the file has
        file.read_into(0, memoryview(header))
        if checksum(header) != record.header_xxh3_64:
            raise DamagedError(f"{file.path} is damaged: the header does not fit its checksum")
    finally:
        file.close()


def problem_of(step: Path) -> str:
    """What is wrong with a step, by its manifest and its files' sizes and headers; '' for nothing. Reads no tensor."""
    try:
        check_files(step, read_manifest(step))
    except DamagedError as error:
        return str(error)
    return ""


def latest(folder: str | Path) -> Path | None:
    """The newest step folder whose manifest, sizes and headers are sound."""
    return next((path for path in steps(folder) if not problem_of(path)), None)


def is_step(path: str | Path) -> bool:
    """Whether the path is a step folder itself, not a folder of them."""
    return os.path.lexists(Path(path) / FILE) or _STEP.fullmatch(Path(path).name) is not None


def find(path: str | Path) -> Path:
    """A step folder as it is, or the newest sound one in a folder of them. Raises: UserError where there is none."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"no checkpoint: {path} is not a folder")
    if is_step(path):
        return path
    newest = latest(path)
    if newest is None:
        raise UserError(f"no checkpoint: {path} has neither {FILE} nor a sound folder step_00000000")
    return newest


class Found(NamedTuple, Generic[T]):
    """What could be read, and what could not."""

    step: Path
    result: T
    passed_over: dict[Path, str]  # newer steps, and what is wrong with each


def newest_sound(path: str | Path, candidates: list[Path], read: Callable[[Path], T]) -> Found[T]:
    """Reads the first of the candidates that is not damaged.

    Args:
        path: as the user named it: a step folder that is named itself is refused when it is damaged.
        candidates: its steps, newest first; the same on all ranks, as is what `read` raises.

    Raises: DamagedError, UserError where none is sound, and whatever else `read` raises.
    """
    passed_over: dict[Path, str] = {}
    for step in candidates:
        try:
            return Found(step, read(step), passed_over)
        except DamagedError as error:
            if is_step(path):
                raise
            passed_over[step] = str(error)
    reasons = "".join(f"\n  {reason}" for reason in passed_over.values())
    raise UserError(f"no checkpoint: {path} has no sound step{reasons}")


def candidates(path: str | Path) -> list[Path]:
    """A step folder itself, or all in a folder of them, newest first. Raises: UserError where there is none."""
    path = Path(path)
    found = [path] if is_step(path) else steps(path)
    if not found:
        raise UserError(f"no checkpoint: {path} has neither {FILE} nor a folder step_00000000" if path.is_dir()
                        else f"no checkpoint: {path} is not a folder")
    return found


def set_aside(step: Path) -> Path:
    """Gives a damaged step another name, so that the run can write the step again. Its new path."""
    aside = step.with_name(f"damaged.{step.name}.{uuid.uuid4().hex[:6]}")
    os.rename(step, aside)
    return aside
