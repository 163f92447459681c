"""Writes files atomically: after a crash or on a full disk there is the old file or the complete new one.

    with explain_write_errors(path), atomic_file(path) as file:
        file.write(content)                       # goes to {name}.{pid}.partial next to `path`
                                                  # then: fsync, rename to `path`, fsync of the folder

Several files that must change together use the parts: `partial_path`, `flush_to_disk`, `move_into_place`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from megascratch.config.errors import UserError


@contextmanager
def atomic_file(
    path: str | Path, mode: Literal["wb", "w"] = "wb", partial: Path | None = None
) -> Iterator[IO[Any]]:
    """Opens a temporary file that replaces `path` when the block ends, and is removed if the block raises.

    Args:
        mode: bytes, or text in UTF-8.
        partial: the temporary file, on the same file system; default: `partial_path(path)`.

    Raises: OSError, or what the block raises; the old file stays.
    """
    partial = partial or partial_path(path)
    encoding = "utf-8" if mode == "w" else None
    try:
        with partial.open(mode, encoding=encoding) as file:
            yield file
            flush_to_disk(file)
        move_into_place(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_atomically(path: str | Path, content: bytes | str, partial: Path | None = None) -> None:
    """Replaces a file by `content`, text in UTF-8. Raises: OSError; the old file stays."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_file(path, partial=partial) as file:
        file.write(data)


def partial_path(path: str | Path) -> Path:
    """The temporary name of a file that this process writes: {name}.{pid}.partial, in the same folder."""
    return Path(f"{path}.{os.getpid()}.partial")


def flush_to_disk(file: IO[Any]) -> None:
    """Returns when what was written is on the disk. Raises: OSError."""
    file.flush()
    os.fsync(file.fileno())


def move_into_place(partial: Path, path: str | Path) -> None:
    """Renames a complete file, atomically, and syncs the folder. Raises: OSError."""
    os.replace(partial, path)
    fsync_folder(Path(path).parent)


def fsync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk. Raises: OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explain_write_errors(what: object, advice: str = "") -> Iterator[None]:
    """Turns an OSError into a UserError "`what` cannot be written: REASON`advice`"."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror}{advice}") from error
